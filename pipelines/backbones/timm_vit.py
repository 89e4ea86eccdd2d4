"""Any ViT of timm as a frozen backbone: one forward pass gives the tokens of every asked layer."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jaxtyping import UInt8
from timm.layers import set_fused_attn, use_fused_attn

from feature_store import TokenKind
from pipelines.backbones.checkpoint import BackboneError, read_state
from pipelines.backbones.preprocessing import Preprocessing
from pipelines.backbones.registry import BackboneRequest

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# What a checkpoint may hold beyond the frozen backbone: heads, and the parts that only pre-training uses.
_SURPLUS_PREFIXES = ("head.", "head_dist.", "fc_norm.", "decoder_", "mask_token", "projection_head.", "proj_head.")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen model, ready to run.

    Attributes:
        request: what it was loaded from.
        module: the network, in evaluation mode, on its device.
        preprocessing: how views become its input.
        architecture: name, arguments and the norm that every layer passes, as the identity records them.
        depth: transformer blocks.
        grid: (height, width) of the patch lattice.
        n_features: width of a token.
        n_registers: register tokens, 0 where there are none.
        has_cls: whether there is a class token.
    """

    request: BackboneRequest
    module: Any
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]
    depth: int
    grid: tuple[int, int]
    n_features: int
    n_registers: int
    has_cls: bool

    def forward(
        self, pixels: UInt8[np.ndarray, "views height width 3"], layers: Sequence[int]
    ) -> dict[tuple[int, TokenKind], torch.Tensor]:
        """The tokens of a batch.

        Args:
            pixels: views after `fit_view`, RGB.
            layers: block numbers counted from 1, ascending.

        Returns:
            (layer, kind) -> float32 [views, patches, features], [views, features] or [views, registers, features], on the
            backbone's device, after the norm that `architecture` names.
        """
        inputs = self.normalise(torch.from_numpy(pixels).to(self.request.device, non_blocking=True))
        return self.tokens_of(inputs, layers)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Uint8 [views, height, width, 3] to the float32 [views, 3, height, width] that the model takes."""
        mean = torch.tensor(self.preprocessing.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def tokens_of(self, inputs: torch.Tensor, layers: Sequence[int]) -> dict[tuple[int, TokenKind], torch.Tensor]:
        """As `forward`, from normalised pixels."""
        dtype = _AUTOCAST.get(self.request.compute_dtype)
        device_type = torch.device(self.request.device).type
        with torch.inference_mode(), torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            outputs = self.module.forward_intermediates(
                inputs,
                indices=[layer - 1 for layer in layers],
                norm=True,
                stop_early=True,
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        return self._split(outputs, layers)

    def _split(self, outputs: Sequence[Any], layers: Sequence[int]) -> dict[tuple[int, TokenKind], torch.Tensor]:
        tokens: dict[tuple[int, TokenKind], torch.Tensor] = {}
        for layer, output in zip(layers, outputs, strict=True):
            patches, prefix = output if isinstance(output, tuple) else (output, None)
            if self.architecture["norm"] == "fc_norm":
                patches = self.module.fc_norm(patches)
                prefix = None if prefix is None else self.module.fc_norm(prefix)
            tokens[layer, "patches"] = patches.float()
            if prefix is not None and self.has_cls:
                tokens[layer, "cls"] = prefix[:, 0].float()
            if prefix is not None and self.n_registers:
                tokens[layer, "registers"] = prefix[:, int(self.has_cls) :].float()
        return tokens


def load_backbone(request: BackboneRequest, *, attention_kernel: str | None = None) -> Backbone:
    """Load a backbone with its weights.

    Args:
        request: from `resolve_backbone`.
        attention_kernel: `fused` or `explicit`; None for timm's own choice on this device.

    Raises:
        BackboneError: not a ViT, an input size that it does not take, or weights that do not fit.
    """
    if attention_kernel is not None:
        set_fused_attn(attention_kernel == "fused")
    module = _build(request)
    resampling = _load_weights(module, request)
    config = module.pretrained_cfg
    grid = tuple(int(side) for side in module.patch_embed.grid_size)
    has_cls = getattr(module, "cls_token", None) is not None
    norm = _norm_name(module)
    image_size = _image_size(module)
    return Backbone(
        request=request,
        module=module.to(request.device),
        preprocessing=Preprocessing(
            image_size=image_size,
            fit=request.fit or "crop",
            crop_fraction=float(config.get("crop_pct") or 1.0),
            interpolation=str(config["interpolation"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            position_embedding=resampling,
        ),
        architecture={
            "library": "timm",
            "name": request.architecture,
            "arguments": {"num_classes": 0, "img_size": image_size},
            "norm": norm,
        },
        depth=len(module.blocks),
        grid=(grid[0], grid[1]),
        n_features=int(module.num_features),
        n_registers=int(module.num_prefix_tokens) - int(has_cls),
        has_cls=has_cls,
    )


def kernel_name() -> str:
    """Which attention kernel timm uses now: `fused` or `explicit`."""
    return "fused" if use_fused_attn() else "explicit"


def _build(request: BackboneRequest) -> Any:
    arguments: dict[str, Any] = {} if request.image_size is None else {"img_size": request.image_size}
    try:
        module = timm.create_model(request.architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise BackboneError(
            f"model {request.architecture!r} cannot be built for {request.image_size} pixels ({error}); "
            "choose another --image-size, a multiple of its patch."
        ) from error
    if not all(
        hasattr(module, name) for name in ("blocks", "forward_intermediates", "num_prefix_tokens", "patch_embed")
    ):
        raise BackboneError(f"model {request.architecture!r} is not a plain ViT; it has no patch tokens of one grid.")
    patch = module.patch_embed.patch_size
    size = _image_size(module)
    if size % patch[0] or size % patch[1]:
        raise BackboneError(
            f"--image-size {size} is not a multiple of the {patch[0]}-pixel patch of {request.architecture!r}; "
            f"use {size // patch[0] * patch[0] or patch[0]} or {(size // patch[0] + 1) * patch[0]}."
        )
    return module.eval().requires_grad_(False)


def _image_size(module: Any) -> int:
    height, width = module.patch_embed.img_size
    if height != width:
        raise BackboneError(f"the model takes {height} x {width} pixels; only square inputs are supported.")
    return int(height)


def _norm_name(module: Any) -> str:
    """Where the final LayerNorm is: models that pool before the norm keep it in `fc_norm`."""
    for name in ("norm", "fc_norm"):
        if not isinstance(getattr(module, name, torch.nn.Identity()), torch.nn.Identity):
            return name
    return "none"


def _load_weights(module: Any, request: BackboneRequest) -> str:
    """Fill the module; returns how the position embedding came to its size."""
    state = read_state(Path(request.weights))
    stored_positions = state.get("pos_embed")
    # timm takes every checkpoint with a mask token for DINOv2; MAE's belongs to the decoder, which is not used.
    if any(name.startswith("decoder_") for name in state):
        state = {name: value for name, value in state.items() if not name.startswith(("decoder_", "mask_token"))}
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(state, module) if convert else state
        wanted = module.state_dict()
        kept = {name: value for name, value in converted.items() if name in wanted}
        surplus = [n for n in converted if n not in wanted and not n.startswith(_SURPLUS_PREFIXES)]
        missing = sorted(set(wanted) - set(kept))
        if not missing and not surplus:
            module.load_state_dict(kept, strict=True)
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"weights {request.weights} do not fit {request.architecture!r} ({reason}).") from error
    if missing or surplus:
        raise BackboneError(
            f"weights {request.weights} do not fit {request.architecture!r}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(surplus)} unexpected {surplus[:3]}. Name the architecture that the file was saved from."
        )
    return _resampling(stored_positions, module)


def _resampling(stored: torch.Tensor | None, module: Any) -> str:
    own = getattr(module, "pos_embed", None)
    if stored is None or own is None:
        return "none stored"
    patches = int(np.prod(module.patch_embed.grid_size))
    stored_patches = int(stored.shape[1] if stored.ndim == 3 else stored.shape[0])
    side = int(stored_patches**0.5)
    if patches in {stored_patches, stored_patches - 1, stored_patches - int(module.num_prefix_tokens)}:
        return "as stored"
    height, width = module.patch_embed.grid_size
    return f"bicubic with antialias from {side}x{side} to {height}x{width} (timm)"
