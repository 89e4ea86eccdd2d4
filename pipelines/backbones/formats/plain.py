"""The names that most code of ViTs took from the first of timm: `blocks.0.attn.qkv.weight` under no prefix."""

from typing import Any

from pipelines.backbones.formats.evaluation import Evaluation
from pipelines.backbones.formats.form import (
    Published,
    VitForm,
    count_blocks,
    heads_of,
    size_name,
    square_grid,
    with_both,
)

_BLOCK = (
    "norm1.weight",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "norm2.weight",
    "mlp.fc1.weight",
    "mlp.fc2.weight",
)
NEEDS = ("pos_embed", "patch_embed.proj.weight", *(f"blocks.0.{part}" for part in _BLOCK))
BLOCK = with_both(*(f"blocks.0.{part}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")))
NAMES = ("cls_token", "pos_embed", *with_both("patch_embed.proj", "norm"), *BLOCK)
_PATCH_DIMENSIONS = 4


def plain_form(
    published: Published,
    *,
    family: str,
    name: str,
    positions: str,
    evaluation: Evaluation,
    class_token: bool = True,
    **others: Any,
) -> VitForm | None:
    """The form of a file with the plain names, or None where its shapes fit no ViT.

    Args:
        published: prefixes taken off, with all that `NEEDS` names.
        family, positions, evaluation, others: see `VitForm`.
        name: of the family, for people.
        class_token: whether the file must have one, or must not.
    """
    # Layer scale is DINOv2's, whose files have the plain names too.
    if published.has("cls_token") != class_token or published.has("blocks.0.ls1.gamma"):
        return None
    shapes = published.shapes
    embedding = shapes["patch_embed.proj.weight"]
    if len(embedding) != _PATCH_DIMENSIONS or len(shapes["pos_embed"]) != len(("one", "positions", "width")):
        return None
    width, patch = embedding[0], embedding[2]
    grid = square_grid(shapes["pos_embed"][1] - class_token)
    if grid is None:
        return None
    return VitForm(
        family=family,
        title=f"{name} {size_name(width, patch)}",
        width=width,
        depth=count_blocks(published),
        heads=heads_of(width),
        mlp_width=shapes["blocks.0.mlp.fc1.weight"][0],
        patch=patch,
        grid=grid,
        class_token=class_token,
        positions=positions,
        evaluation=evaluation,
        **others,
    )


def has_head(published: Published) -> bool:
    """Whether the file classifies."""
    return published.has("head.weight") or published.has("head_dist.weight")
