"""SimMIM (microsoft/SimMIM): the pre-training checkpoint, whose blocks share one table of relative positions."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import (
    KeyFormat,
    Published,
    VitForm,
    count_blocks,
    size_name,
    square_grid,
    with_both,
)

_TABLE = "rel_pos_bias.relative_position_bias_table"
# Distances from the class token, to it, and from it to itself, which follow those between patches in the table.
_CLASS_DISTANCES = 3
_BIASED = ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
_OF_BLOCKS = ("attn.qkv.weight", "attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2", *with_both(*_BIASED))
# BEiT has the same names.
NAMES = ("cls_token", *with_both("patch_embed.proj", "norm"), _TABLE, *(f"blocks.0.{part}" for part in _OF_BLOCKS))
_LEFT_OUT = ("mask_token", "decoder.", "head.", "rel_pos_bias.relative_position_index")


def _has_decoder(published: Published) -> bool:
    return any(name.split(".")[-1] == "decoder" for name in published.outside)


def _claims(published: Published) -> bool:
    """Its encoder has BEiT's names, and stands under `encoder.` beside a decoder of one convolution."""
    return published.prefix == "encoder." or _has_decoder(published)


def read(published: Published) -> VitForm | None:
    """An encoder with one table of relative positions for all blocks, and with separate query and value biases."""
    shapes = published.shapes
    width, patch = shapes["patch_embed.proj.weight"][0], shapes["patch_embed.proj.weight"][2]
    heads, grid = shapes[_TABLE][1], table_grid(shapes[_TABLE])
    if grid is None:
        return None
    return VitForm(
        family="simmim",
        title=f"SimMIM {size_name(width, patch)}",
        network="Beit",
        width=width,
        depth=count_blocks(published, r"blocks\.(\d+)\."),
        heads=heads,
        mlp_width=shapes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        options={
            "use_abs_pos_emb": "pos_embed" in shapes,
            "use_shared_rel_pos_bias": True,
            **({"init_values": 1.0} if "blocks.0.gamma_1" in shapes else {}),
        },
        positions="relative-bias",
        said=frozenset({"num_heads"}),
        evaluation=evaluation.SIMMIM,
        decoder={"depth": 1, "width": width} if _has_decoder(published) else None,
    )


def table_grid(table: tuple[int, ...]) -> tuple[int, int] | None:
    """(height, width) of the patch lattice whose distances a table holds: there are (2 n - 1)^2 between patches."""
    window = square_grid(table[0] - _CLASS_DISTANCES)
    if window is None or window[0] % 2 == 0:
        return None
    side = (window[0] + 1) // 2
    return side, side


SIMMIM = KeyFormat(
    family="simmim",
    needs=(_TABLE, "patch_embed.proj.weight", "blocks.0.attn.q_bias", "norm.weight"),
    names=NAMES,
    claims=_claims,
    read=read,
    left_out=_LEFT_OUT,
)
