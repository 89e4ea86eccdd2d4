"""MAE (facebookresearch/mae): `mae_pretrain_vit_*.pth`, `mae_visualize_vit_*.pth` with the decoder, and fine-tuned."""

from dataclasses import replace

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm, count_blocks, heads_undecided, pooling
from pipelines.backbones.formats.plain import NAMES, NEEDS, has_head, plain_form

_POOLED = ("fc_norm.weight", "fc_norm.bias")
_DECODER = "decoder_"
# Parts of Scale-MAE's decoder, which otherwise has MAE's names.
_SCALE_MAE = ("fpn.", "fcn", "mask_token_decoder", "pos_emb_projection.")

_SCALE_MAE_SIZE = (1024, 16)
_LEARNED = "MAE: its positions are not MAE's fixed waves; a DINO encoder looks the same, and --model dino loads it so"


def claims(published: Published) -> bool:
    """A ViT with a decoder or with fixed waves as positions, or alone under `model` as its authors save it."""
    alone = published.wrapper == ("model",) and not has_head(published)
    own = alone or is_pooled(published) or published.sincos or published.has_any(_DECODER)
    return own and not published.has_any(*_SCALE_MAE)


def is_pooled(published: Published) -> bool:
    """Whether it is MAE fine-tuned: timm's supervised models with a class token keep their norm before pooling."""
    return published.has("cls_token", *_POOLED) and has_head(published) and not published.has("norm.weight")


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
        form = replace(
            form, undecided=heads_undecided(form.width, form.depth), options={**form.options, **pooling(published)}
        )
    if form is not None and not (published.sincos or has_head(published) or form.decoder or pooling(published)):
        form = replace(form, assumed=(*form.assumed, _LEARNED))
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
    left_out=(_DECODER, "mask_token", "head."),
)
