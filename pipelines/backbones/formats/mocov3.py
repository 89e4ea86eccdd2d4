"""MoCo v3 (facebookresearch/moco-v3): `base_encoder` of a training checkpoint, in the names of the first of timm."""

from dataclasses import replace

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm
from pipelines.backbones.formats.plain import NAMES, NEEDS, plain_form

_ENCODERS = ("base_encoder.", "momentum_encoder.")
# Its ViT-S has 12 heads of 32 features, where other families' have 6 of 64.
_HEADS = {384: 12, 768: 12}


def _claims(published: Published) -> bool:
    return published.prefix.endswith(_ENCODERS)


def _read(published: Published) -> VitForm | None:
    form = plain_form(published, family="mocov3", name="MoCo v3", positions="timm", evaluation=evaluation.MOCO_V3)
    return None if form is None else replace(form, heads=_HEADS.get(form.width, form.heads))


MOCO_V3 = KeyFormat(
    family="mocov3",
    needs=("cls_token", *NEEDS),
    names=NAMES,
    claims=_claims,
    read=_read,
    left_out=("head.",),
)
