"""BEiT and BEiT v2 (microsoft/unilm): pre-trained, with one table of relative positions, or fine-tuned, one a block."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm
from pipelines.backbones.formats.relative_tables import LEFT_OUT, NAMES, NEEDS, relative_form, without_indices
from pipelines.backbones.normalisation import HALF, IMAGENET_MEAN, IMAGENET_STD

# The classifier that BEiT v2 trains beside its first blocks; it alone tells the two apart, and v2 takes other means.
_V2 = "cls_pt_layers."
_LIKE_OTHERS = (
    "mean and std of 0.5, as BEiT's: BEiT v2 fine-tuned, and SimMIM without what its checkpoint holds beside it, look "
    "the same and take ImageNet's, which --model beit2 and --model simmim do"
)


def _read(published: Published) -> VitForm | None:
    return relative_form(
        published,
        family="beit",
        name="BEiT",
        normalisation=(HALF, HALF),
        evaluation=evaluation.BEIT,
        assumed=(_LIKE_OTHERS,),
    )


def _read_second(published: Published) -> VitForm | None:
    return relative_form(
        published,
        family="beit2",
        name="BEiT v2",
        normalisation=(IMAGENET_MEAN, IMAGENET_STD),
        evaluation=evaluation.BEIT_V2,
    )


def _is_second(published: Published) -> bool:
    return published.has_any(_V2)


BEIT = KeyFormat(
    family="beit",
    needs=NEEDS,
    names=NAMES,
    claims=lambda published: not _is_second(published),
    read=_read,
    left_out=LEFT_OUT,
    finish=without_indices,
)
BEIT_V2 = KeyFormat(
    family="beit2",
    needs=NEEDS,
    names=NAMES,
    claims=_is_second,
    read=_read_second,
    left_out=(*LEFT_OUT, _V2),
    finish=without_indices,
)
