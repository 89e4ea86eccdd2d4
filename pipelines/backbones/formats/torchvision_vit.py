"""Supervised ViTs of torchvision, such as `vit_b_16-c867db91.pth`."""

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import (
    KeyFormat,
    Published,
    VitForm,
    count_blocks,
    heads_of,
    size_name,
    square_grid,
    with_both,
)

_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."
# `mlp.linear_1` is what the first files said for `mlp.0`.
_RENAMES = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (rf"^{_BLOCK}", r"blocks.\1."),
    (r"\.ln_1\.", ".norm1."),
    (r"\.ln_2\.", ".norm2."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
)
_FIRST = "encoder.layers.encoder_layer_0."
_SIDE, _HUGE, _LARGE = 224, (1280, 14), (1024, 16)
# Of which SWAG has weights that only a linear classifier was trained on, at 224 pixels.
_OF_SWAG = (_LARGE, (768, 16))
_NAMES = (
    "class_token",
    "encoder.pos_embedding",
    *with_both("conv_proj", "encoder.ln"),
    f"{_FIRST}self_attention.in_proj_weight",
    f"{_FIRST}self_attention.in_proj_bias",
    *with_both(*(f"{_FIRST}{part}" for part in ("ln_1", "ln_2", "self_attention.out_proj", "mlp.0", "mlp.3"))),
)


def read(published: Published) -> VitForm | None:
    """Blocks named `encoder.layers.encoder_layer_0`."""
    shapes = published.shapes
    width, patch = shapes["conv_proj.weight"][0], shapes["conv_proj.weight"][2]
    grid = square_grid(shapes["encoder.pos_embedding"][1] - 1)
    names = [f"{_FIRST}mlp.{part}.weight" for part in ("0", "linear_1")]
    hidden = next((shapes[name] for name in names if name in shapes), None)
    if grid is None or hidden is None:
        return None
    how, told = _evaluation(width, patch, grid[0] * patch)
    return VitForm(
        family="torchvision",
        title=f"supervised {size_name(width, patch)} of torchvision",
        width=width,
        depth=count_blocks(published, _BLOCK),
        heads=heads_of(width),
        mlp_width=hidden[0],
        patch=patch,
        grid=grid,
        positions="torchvision",
        evaluation=how,
        assumed=told,
    )


def _evaluation(width: int, patch: int, side: int) -> tuple[evaluation.Evaluation, tuple[str, ...]]:
    """How torchvision evaluates a file of this size, and what that assumes."""
    # Its ViT-H, and whatever was trained for more than 224 pixels, come from SWAG alone.
    if (width, patch) == _HUGE or side > _SIDE:
        return evaluation.TORCHVISION_SWAG, ()
    told = ("IMAGENET1K_V1's crop: the linear weights of SWAG look the same, and are evaluated without one, bicubic",)
    how = evaluation.TORCHVISION_L16 if (width, patch) == _LARGE else evaluation.TORCHVISION
    return how, told if (width, patch) in _OF_SWAG else ()


TORCHVISION = KeyFormat(
    family="torchvision",
    needs=("class_token", "conv_proj.weight", "encoder.pos_embedding", f"{_FIRST}ln_1.weight", "encoder.ln.weight"),
    names=_NAMES,
    read=read,
    renames=_RENAMES,
    left_out=("heads.",),
)
