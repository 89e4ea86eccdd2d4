"""Plain ViTs of timm: which there are, and where each keeps its norm and its prefix tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from pipelines.backbones.preprocessing import ImageSize, size_text
from pipelines.backbones.stated import timm_arguments
from pipelines.backbones.weight_files import BackboneError

# One grid of patches from one convolution, blocks that keep it, prefix tokens from the first block on.
_PLAIN = (VisionTransformer, VisionTransformerRelPos, Beit, Eva)


# What makes a ViT of timm keep its final norm in `fc_norm`, as its authors' fine-tuned MAE does.
POOLED = "fc_norm=true"


def build_module(architecture: str, image_size: ImageSize | None, stated: Sequence[str] = ()) -> Any:
    """A ViT of timm without a head and with random weights, in evaluation mode.

    Args:
        architecture: timm's name.
        image_size: (height, width) of the input in pixels, or None for the architecture's own.
        stated: what the user states of the network, as `NAME=VALUE`.

    Raises:
        BackboneError: not a plain ViT, an argument that it does not have, or an input size that it does not take.
    """
    # timm would fetch from a host, or read a folder, that a stranger's plan names.
    if ":" in architecture:
        raise BackboneError(f"model {architecture!r} is no name of timm's but a place; name the architecture.")
    arguments = network_arguments(architecture, stated)
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(LayerNorm, eps=arguments.pop("norm_eps"))
    if image_size is not None:
        arguments["img_size"] = image_size
    try:
        module = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError, ZeroDivisionError) as error:
        if "img_size" in str(error):
            raise BackboneError(_not_plain(architecture)) from error
        at = "" if image_size is None else f" for {size_text(image_size)} pixels"
        reason = " ".join(str(error).split())[:160]
        raise BackboneError(
            f"model {architecture!r} cannot be built{at} ({reason}); check its name, and --image-size and --arg if you "
            "gave them."
        ) from error
    if not isinstance(module, _PLAIN) or not isinstance(module.patch_embed, PatchEmbed):
        raise BackboneError(_not_plain(architecture))
    size, patch = input_size(module), patch_size(module)
    if size[0] % patch[0] or size[1] % patch[1]:
        below, above = (
            [-(-n // p) * p if up else max(n // p, 1) * p for n, p in zip(size, patch, strict=True)]
            for up in (False, True)
        )
        raise BackboneError(
            f"--image-size {size_text(size)} is not a multiple of the {size_text(patch)}-pixel patch of "
            f"{architecture!r}; use {size_text((below[0], below[1]))} or {size_text((above[0], above[1]))}."
        )
    return module.eval().requires_grad_(False)


def network_arguments(architecture: str, stated: Sequence[str]) -> dict[str, Any]:
    """What the user states of the network itself, as the identity records it."""
    values = timm_arguments(architecture, stated)
    return {name: value for name, value in values.items() if name not in {"mean", "std"}}


def require_plain_vit(architecture: str, image_size: ImageSize | None, stated: Sequence[str] = ()) -> None:
    """Refuse what `build_module` would refuse, before any weights are fetched and without memory for them."""
    with torch.device("meta"):
        build_module(architecture, image_size, stated)


def takes_pooled(architecture: str) -> bool:
    """Whether `POOLED` makes another network of an architecture: one whose norm stands before pooling otherwise."""
    with torch.device("meta"):
        module = build_module(architecture, None)
    return isinstance(module, VisionTransformer) and norm_name(module) == "norm"


def _not_plain(architecture: str) -> str:
    return (
        f"model {architecture!r} is not a plain ViT: its tokens are not one grid of patches from the first block on. "
        "Name a ViT, DeiT, BEiT, EVA, DINO or SigLIP model of timm."
    )


def input_size(module: Any) -> ImageSize:
    """(height, width) of the input in pixels."""
    height, width = module.patch_embed.img_size
    return int(height), int(width)


def patch_size(module: Any) -> ImageSize:
    """(height, width) of a patch in pixels."""
    height, width = module.patch_embed.patch_size
    return int(height), int(width)


def norm_name(module: Any) -> str:
    """Where the final norm is: models that pool before it keep it in `fc_norm`; `none` where there is none."""
    for name in ("norm", "fc_norm"):
        if not isinstance(getattr(module, name, torch.nn.Identity()), torch.nn.Identity):
            return name
    return "none"


def has_class_token(module: Any) -> bool:
    """Whether the first prefix token is a class token."""
    return getattr(module, "cls_token", None) is not None


def register_count(module: Any) -> int:
    """Register tokens, which come last among the prefix tokens; a distillation token is none."""
    distillation = getattr(module, "dist_token", None) is not None
    return int(module.num_prefix_tokens) - int(has_class_token(module)) - int(distillation)


def head_count(module: Any) -> int:
    """Attention heads of a block; 0 where blocks have no attention of their own kind, as parallel ones."""
    return int(getattr(getattr(module.blocks[0], "attn", None), "num_heads", 0))
