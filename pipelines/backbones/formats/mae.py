"""MAE (facebookresearch/mae): `mae_pretrain_vit_*.pth`, and `mae_visualize_vit_*.pth` with the decoder."""

from dataclasses import replace

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm, count_blocks, heads_undecided
from pipelines.backbones.formats.plain import NAMES, NEEDS, has_head, plain_form

_DECODER = "decoder_"
# Parts of Scale-MAE's decoder, which otherwise has MAE's names.
_SCALE_MAE = ("fpn.", "fcn", "mask_token_decoder", "pos_emb_projection.")

_SCALE_MAE_SIZE = (1024, 16)


def claims(published: Published) -> bool:
    """A ViT with a decoder or with fixed waves as positions, or alone under `model` as its authors save it."""
    alone = published.wrapper == ("model",) and not has_head(published)
    return (alone or published.sincos or published.has_any(_DECODER)) and not published.has_any(*_SCALE_MAE)


def read(published: Published) -> VitForm | None:
    """The encoder, with what the decoder is."""
    form = plain_form(
        published,
        family="mae",
        name="MAE",
        positions="mae",
        evaluation=evaluation.MAE,
        decoder=decoder_of(published),
    )
    if form is not None:
        form = replace(form, undecided=heads_undecided(form.width, form.depth))
    if form is not None and form.decoder is None and (form.width, form.patch) == _SCALE_MAE_SIZE:
        note = "MAE, not Scale-MAE, whose encoder alone looks the same: name it with --model scale-mae-l16"
        return replace(form, assumed=(*form.assumed, note))
    return form


def decoder_of(published: Published) -> dict[str, int] | None:
    """Blocks and width of the decoder in a file, if there is one."""
    embedding = published.shapes.get("decoder_embed.weight")
    if embedding is None:
        return None
    return {"depth": count_blocks(published, r"decoder_blocks\.(\d+)\."), "width": embedding[0]}


MAE = KeyFormat(
    family="mae",
    needs=("cls_token", *NEEDS),
    names=NAMES,
    claims=claims,
    read=read,
    left_out=(_DECODER, "mask_token"),
)
