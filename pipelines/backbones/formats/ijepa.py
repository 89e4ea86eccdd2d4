"""I-JEPA (facebookresearch/ijepa): `encoder` of a checkpoint that also holds the target encoder and the predictor."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm
from pipelines.backbones.formats.plain import NAMES, NEEDS, has_head, plain_form

_LEARNED = (
    "I-JEPA: its positions are not I-JEPA's fixed waves; another ViT without a class token looks the same, which "
    "timm's name with --model loads"
)


def _claims(published: Published) -> bool:
    return not published.has("cls_token") and not has_head(published)


def _read(published: Published) -> VitForm | None:
    # The repository's own interpolation takes the first patch for a class token, which there is none of; transformers'
    # is used instead.
    return plain_form(
        published,
        family="ijepa",
        name="I-JEPA",
        positions="transformers",
        class_token=False,
        evaluation=evaluation.IJEPA,
        assumed=() if published.sincos else (_LEARNED,),
    )


IJEPA = KeyFormat(
    family="ijepa", needs=NEEDS, names=tuple(name for name in NAMES if name != "cls_token"), claims=_claims, read=_read
)
