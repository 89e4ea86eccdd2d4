"""One record for one network, by whichever name or file it was asked for.

`--model demo`, `auto` with its file, a name in the catalogue and several names of timm can stand for one network with
the same weights. What the identity records of the architecture must then be the same, or features that exist already
are computed a second time.
"""

from collections.abc import Mapping
from typing import Any

import timm
import torch

from pipelines.backbones.preprocessing import ImageSize

# Names of timm that stand for all other names of the same network, and for published files: by features, blocks, side
# of a patch and prefix tokens.
_NAMES = {
    (192, 12, 16, 1): ("vit_tiny_patch16_224",),
    (384, 12, 16, 1): ("vit_small_patch16_224",),
    (384, 12, 8, 1): ("vit_small_patch8_224",),
    (384, 12, 14, 1): ("vit_small_patch14_dinov2",),
    (384, 12, 14, 5): ("vit_small_patch14_reg4_dinov2",),
    (768, 12, 16, 1): (
        "vit_base_patch16_224",
        "beit_base_patch16_224",
        "vit_base_patch16_clip_224",
        "vit_base_patch16_clip_quickgelu_224",
    ),
    (768, 12, 8, 1): ("vit_base_patch8_224",),
    (768, 12, 14, 1): ("vit_base_patch14_dinov2",),
    (768, 12, 14, 5): ("vit_base_patch14_reg4_dinov2",),
    (768, 12, 32, 1): ("vit_base_patch32_224", "vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"),
    (1024, 24, 16, 1): ("vit_large_patch16_224", "beit_large_patch16_224"),
    (1024, 24, 14, 1): (
        "vit_large_patch14_dinov2",
        "vit_large_patch14_clip_224",
        "vit_large_patch14_clip_quickgelu_224",
    ),
    (1024, 24, 14, 5): ("vit_large_patch14_reg4_dinov2",),
    (1024, 24, 32, 1): ("vit_large_patch32_224",),
    (1280, 32, 14, 1): ("vit_huge_patch14_224",),
    (1280, 32, 14, 0): ("vit_huge_patch14_gap_224",),
    (1280, 32, 16, 0): ("vit_huge_patch16_gap_448",),
    (1408, 40, 16, 0): ("vit_giant_patch16_gap_224",),
    (1536, 40, 14, 1): ("vit_giant_patch14_dinov2",),
    (1536, 40, 14, 5): ("vit_giant_patch14_reg4_dinov2",),
}
# With the tag that the first feature sets of the demo recorded, so that they are still found.
_RECORDED = {"vit_small_patch14_reg4_dinov2": "vit_small_patch14_reg4_dinov2.lvd142m"}
# What says nothing of the tokens: how weights begin, how a head would pool, and which kernel computes attention.
_IRRELEVANT = frozenset({"training", "init_values", "global_pool", "num_classes", "fused_attn"})
_Settings = dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]]


def timm_record(
    architecture: str,
    module: Any,
    image_size: ImageSize,
    *,
    norm: str,
    of: str | None = None,
    stated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the identity records of a network that was asked for by timm's name.

    Args:
        architecture: timm's name; its tag says nothing of the network.
        module: the network; may be on the meta device.
        image_size: (height, width) of its input in pixels.
        norm: where its final norm is.
        of: which of the networks in its file it is, where the file holds several: a digest does not say.
        stated: what the user states of the network itself; recorded where that makes it another than its name says.
    """
    if name := _shared_name(module, image_size):
        return _record(name, _arguments(image_size), norm, of)
    return _record(architecture.partition(".")[0], {**_arguments(image_size), **(stated or {})}, norm, of)


def published_record(
    network: str,
    arguments: Mapping[str, Any],
    module: Any,
    image_size: ImageSize,
    *,
    norm: str,
    of: str | None = None,
) -> dict[str, Any]:
    """What the identity records of the network of a published file.

    Args:
        network: the class that runs it.
        arguments: what the class is called with, recorded where timm has no name for the network.
        module, image_size, norm, of: see `timm_record`.
    """
    name = _shared_name(module, image_size)
    if name is not None:
        network, arguments = name, _arguments(image_size)
    return _record(network, arguments, norm, of)


def _arguments(image_size: ImageSize) -> dict[str, Any]:
    return {"num_classes": 0, "img_size": list(image_size)}


def _record(name: str, arguments: Mapping[str, Any], norm: str, of: str | None) -> dict[str, Any]:
    return {
        "library": "timm",
        "name": _RECORDED.get(name, name),
        "arguments": dict(arguments),
        "norm": norm,
        **({} if of is None else {"network": of}),
    }


def _shared_name(module: Any, image_size: ImageSize) -> str | None:
    """The name in `_NAMES` whose network a module is, or None."""
    size = (module.embed_dim, len(module.blocks), module.patch_embed.patch_size[0], module.num_prefix_tokens)
    settings: _Settings | None = None
    for name in _NAMES.get(size, ()):
        with torch.device("meta"):
            named = timm.create_model(name, pretrained=False, num_classes=0, img_size=image_size)
        settings = settings or _settings(module)
        if _settings(named) == settings:
            return name
    return None


def _settings(module: Any) -> _Settings:
    """Of every layer its class, its plain attributes, and the shapes of its own tensors."""
    found: _Settings = {}
    for name, layer in module.named_modules():
        own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        found[name] = (
            type(layer).__qualname__,
            {key: value for key, value in vars(layer).items() if key not in _IRRELEVANT and _is_plain(value)},
            {key: tuple(tensor.shape) for key, tensor in own},
        )
    return found


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)
