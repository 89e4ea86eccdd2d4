"""DINO (facebookresearch/dino) and iBOT (bytedance/ibot): backbone files, and full checkpoints."""

from dataclasses import replace

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm, heads_undecided
from pipelines.backbones.formats.plain import NAMES, NEEDS, has_head, plain_form

_NEEDS = ("cls_token", *NEEDS)
_LEFT_OUT = ("head.mlp.", "head.last_layer", "masked_embed")
_OWN_PREFIXES = ("", "backbone.")
_IBOT_LOSS = "ibot_loss"
_FLAT = "DINO: an MAE encoder with learned positions looks the same, and --model mae loads it so"


def _learned_without_classes(published: Published) -> bool:
    return not published.sincos and not has_head(published)


def _is_ibot(published: Published) -> bool:
    """Its teacher file says `state_dict`; full checkpoints name its loss, and hold the embedding of masked patches."""
    return (
        published.has("masked_embed") or _IBOT_LOSS in published.beside or published.wrapper == ("state_dict",)
    ) and _learned_without_classes(published)


def _is_dino(published: Published) -> bool:
    """Whatever else has plain names and learned positions: what is asked last takes the files that say nothing."""
    return _learned_without_classes(published) and not _is_ibot(published)


def _read_dino(published: Published) -> VitForm | None:
    assumed = () if published.wrapper == ("teacher",) else (_FLAT,)
    form = plain_form(
        published, family="dino", name="DINO", positions="dino", evaluation=evaluation.DINO, assumed=assumed
    )
    return _decided(form, published.wrapper in {(), ("teacher",)} and published.prefix in _OWN_PREFIXES)


def _read_ibot(published: Published) -> VitForm | None:
    form = plain_form(published, family="ibot", name="iBOT", positions="dino", evaluation=evaluation.IBOT)
    own = published.has("masked_embed") or _IBOT_LOSS in published.beside or published.prefix in _OWN_PREFIXES
    return _decided(form, own)


def _decided(form: VitForm | None, as_published: bool) -> VitForm | None:
    """In a file as its authors write it, heads are theirs; learned positions under other keys may be anybody's."""
    if form is None or as_published:
        return form
    return replace(form, undecided=heads_undecided(form.width, form.depth))


DINO = KeyFormat(family="dino", needs=_NEEDS, names=NAMES, claims=_is_dino, read=_read_dino, left_out=_LEFT_OUT)
IBOT = KeyFormat(family="ibot", needs=_NEEDS, names=NAMES, claims=_is_ibot, read=_read_ibot, left_out=_LEFT_OUT)
