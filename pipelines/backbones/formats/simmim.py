"""SimMIM (microsoft/SimMIM): the pre-training checkpoint, whose blocks share one table of relative positions."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import KeyFormat, Published, VitForm, count_blocks, size_name, square_grid

_TABLE = "encoder.rel_pos_bias.relative_position_bias_table"
# Distances from the class token, to it, and from it to itself, which follow those between patches in the table.
_CLASS_DISTANCES = 3
_LEFT_OUT = ("mask_token", "decoder.", "head.", "rel_pos_bias.relative_position_index")


def read(published: Published) -> VitForm | None:
    """An encoder with one table of relative positions for all blocks, and with separate query and value biases."""
    shapes = published.shapes
    width, patch = shapes["encoder.patch_embed.proj.weight"][0], shapes["encoder.patch_embed.proj.weight"][2]
    heads, grid = shapes[_TABLE][1], table_grid(shapes[_TABLE])
    if grid is None:
        return None
    return VitForm(
        family="simmim",
        title=f"SimMIM {size_name(width, patch)}",
        network="Beit",
        width=width,
        depth=count_blocks(published, r"encoder\.blocks\.(\d+)\."),
        heads=heads,
        mlp_width=shapes["encoder.blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        options={
            "use_abs_pos_emb": "encoder.pos_embed" in shapes,
            "use_shared_rel_pos_bias": True,
            **({"init_values": 1.0} if "encoder.blocks.0.gamma_1" in shapes else {}),
        },
        positions="relative-bias",
        evaluation=evaluation.SIMMIM,
        decoder={"depth": 1, "width": width} if published.has_any("decoder.") else None,
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
    prefixes=("module.",),
    needs=(_TABLE, "encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.q_bias", "encoder.norm.weight"),
    read=read,
    renames=((r"^encoder\.", ""),),
    left_out=_LEFT_OUT,
)
