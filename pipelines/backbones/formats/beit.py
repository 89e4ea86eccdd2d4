"""BEiT (microsoft/unilm): pre-trained, with one table of relative positions, or fine-tuned, with one a block."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import (
    KeyFormat,
    Published,
    VitForm,
    count_blocks,
    pooling,
    size_name,
)
from pipelines.backbones.formats.simmim import NAMES, table_grid
from pipelines.backbones.normalisation import HALF, IMAGENET_MEAN, IMAGENET_STD

_SHARED = "rel_pos_bias.relative_position_bias_table"
_OWN = "blocks.0.attn.relative_position_bias_table"
# The classifier that BEiT v2 trains beside its first blocks; it alone tells the two apart, and v2 takes other means.
_V2 = "cls_pt_layers."
_LEFT_OUT = ("mask_token", "lm_head.", "head.", "rel_pos_bias.relative_position_index", _V2)


def _read(published: Published) -> VitForm | None:
    shapes = published.shapes
    table = shapes.get(_SHARED) or shapes.get(_OWN)
    grid = None if table is None else table_grid(table)
    if table is None or grid is None:
        return None
    width, patch = shapes["patch_embed.proj.weight"][0], shapes["patch_embed.proj.weight"][2]
    second = published.has_any(_V2)
    return VitForm(
        family="beit",
        title=f"BEiT{' v2' if second else ''} {size_name(width, patch)}",
        network="Beit",
        width=width,
        depth=count_blocks(published),
        heads=table[1],
        mlp_width=shapes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        options={
            "use_abs_pos_emb": "pos_embed" in shapes,
            "use_rel_pos_bias": _OWN in shapes,
            "use_shared_rel_pos_bias": _SHARED in shapes,
            **({"init_values": 1.0} if "blocks.0.gamma_1" in shapes else {}),
            **pooling(published),
        },
        positions="relative-bias",
        said=frozenset({"num_heads"}),
        mean=IMAGENET_MEAN if second else HALF,
        std=IMAGENET_STD if second else HALF,
        evaluation=evaluation.BEIT_V2 if second else evaluation.BEIT,
        assumed=() if second else ("mean and std of 0.5, as BEiT's; BEiT v2 fine-tuned takes ImageNet's",),
    )


BEIT = KeyFormat(
    family="beit",
    needs=("cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.mlp.fc1.weight"),
    names=NAMES,
    read=_read,
    left_out=_LEFT_OUT,
    finish=lambda state, _form: {
        name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")
    },
)
