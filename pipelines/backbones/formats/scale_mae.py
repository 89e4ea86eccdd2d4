"""Scale-MAE (bair-climate-initiative/scale-mae): `scalemae-vitlarge-800.pth`, and the mirror of its encoder alone."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm
from pipelines.backbones.formats.mae import decoder_of
from pipelines.backbones.formats.plain import NAMES, NEEDS, plain_form

# The decoder has MAE's names, and beside it a pyramid and convolutions for low and high frequencies.
# With --project_pos_emb there is a projection of the decoder's positions too.
_OWN = ("fpn.", "fcn", "mask_token_decoder", "pos_emb_projection.")
_LEFT_OUT = ("decoder_", "mask_token", "head.", "fc_norm.", *_OWN)


def _claims(published: Published) -> bool:
    """The encoder alone has MAE's names and shapes: only its user, or its digest, can tell it from MAE's."""
    return published.has_any(*_OWN)


def _read(published: Published) -> VitForm | None:
    return plain_form(
        published,
        family="scale-mae",
        name="Scale-MAE",
        network="ScaleMae",
        positions="ground-distance",
        decoder=decoder_of(published),
        evaluation=evaluation.SCALE_MAE,
    )


SCALE_MAE = KeyFormat(
    family="scale-mae",
    needs=("cls_token", *NEEDS),
    names=NAMES,
    claims=_claims,
    read=_read,
    # What is stored as positions is what training began with; they are computed anew for every image.
    left_out=(*_LEFT_OUT, "pos_embed"),
)
