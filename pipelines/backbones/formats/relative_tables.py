"""ViTs with tables of relative positions: BEiT, and SimMIM, which has its names and, fine-tuned, its file as well."""

from pipelines.backbones.formats.evaluation import Evaluation
from pipelines.backbones.formats.form import (
    Published,
    State,
    VitForm,
    count_blocks,
    pooling,
    size_name,
    square_grid,
    with_both,
)

# One table for all blocks, as pre-training has it, or one a block, as fine-tuning has.
SHARED = "rel_pos_bias.relative_position_bias_table"
OWN = "blocks.0.attn.relative_position_bias_table"
# Distances from the class token, to it, and from it to itself, which follow those between patches in the table.
_CLASS_DISTANCES = 3
_BIASED = ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
_OF_BLOCKS = ("attn.qkv.weight", "attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2", *with_both(*_BIASED))
NEEDS = ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.mlp.fc1.weight")
NAMES = ("cls_token", *with_both("patch_embed.proj", "norm"), SHARED, *(f"blocks.0.{part}" for part in _OF_BLOCKS))
LEFT_OUT = ("mask_token", "decoder.", "lm_head.", "head.")
_Three = tuple[float, float, float]


def relative_form(
    published: Published,
    *,
    family: str,
    name: str,
    normalisation: tuple[_Three, _Three],
    evaluation: Evaluation,
    assumed: tuple[str, ...] = (),
) -> VitForm | None:
    """The form of a file with such tables, or None where it has none, or one that fits no square of patches.

    Args:
        published: with all that `NEEDS` names.
        family, evaluation, assumed: see `VitForm`.
        name: of the family, for people.
        normalisation: mean and std.
    """
    shapes = published.shapes
    table = shapes.get(SHARED) or shapes.get(OWN)
    grid = None if table is None else table_grid(table)
    if table is None or grid is None:
        return None
    width, patch = shapes["patch_embed.proj.weight"][0], shapes["patch_embed.proj.weight"][2]
    return VitForm(
        family=family,
        title=f"{name} {size_name(width, patch)}",
        network="Beit",
        width=width,
        depth=count_blocks(published),
        heads=table[1],
        mlp_width=shapes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        options={
            "use_abs_pos_emb": "pos_embed" in shapes,
            "use_rel_pos_bias": OWN in shapes,
            "use_shared_rel_pos_bias": SHARED in shapes,
            **({"init_values": 1.0} if "blocks.0.gamma_1" in shapes else {}),
            **pooling(published),
        },
        positions="relative-bias",
        # Each head has a column of the table.
        said=frozenset({"num_heads"}),
        mean=normalisation[0],
        std=normalisation[1],
        evaluation=evaluation,
        assumed=assumed,
    )


def table_grid(table: tuple[int, ...]) -> tuple[int, int] | None:
    """(height, width) of the patch lattice whose distances a table holds: there are (2 n - 1)^2 between patches."""
    window = square_grid(table[0] - _CLASS_DISTANCES)
    if window is None or window[0] % 2 == 0:
        return None
    side = (window[0] + 1) // 2
    return side, side


def without_indices(state: State, _form: VitForm) -> State:
    """Without the tables of which distance stands between which tokens: the network makes its own."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
