"""A ViT of timm as a frozen backbone: one forward pass gives the tokens of every asked layer."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from timm.layers.config import set_fused_attn, use_fused_attn

from feature_store import TokenKind
from pipelines.backbones.architecture import build_module, has_class_token, input_side, norm_name, register_count
from pipelines.backbones.fitting import load_weights
from pipelines.backbones.preprocessing import Fit, Preprocessing
from pipelines.backbones.registry import BackboneRequest

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Tokens = dict[tuple[int, TokenKind], torch.Tensor]


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

    def forward(self, pixels: UInt8[np.ndarray, "views height width 3"], layers: Sequence[int]) -> Tokens:
        """The tokens of a batch.

        Args:
            pixels: views after `fit_view`, RGB; in pinned memory a GPU may read them after this returns.
            layers: block numbers counted from 1, ascending.

        Returns:
            (layer, kind) -> float32 [views, patches, features], [views, features] or [views, registers, features], on
            the backbone's device, after the norm that `architecture` names.
        """
        with torch.inference_mode():
            on_device = torch.from_numpy(pixels).to(self.request.device, non_blocking=True)
            return self.tokens_of(self.normalise(on_device), layers)

    def normalise(self, pixels: UInt8[torch.Tensor, "views height width 3"]) -> Float32[torch.Tensor, "views 3 h w"]:
        """Scale pixels to 0..1, and subtract and divide by the channels' mean and standard deviation."""
        mean = torch.tensor(self.preprocessing.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.preprocessing.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def tokens_of(self, inputs: Float32[torch.Tensor, "views 3 h w"], layers: Sequence[int]) -> Tokens:
        """As `forward`, from normalised pixels on the backbone's device."""
        dtype = _AUTOCAST.get(self.request.compute_dtype)
        device_type = torch.device(self.request.device).type
        with torch.inference_mode(), torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            outputs = self.module.forward_intermediates(
                inputs,
                indices=[layer - 1 for layer in layers],
                norm=True,
                stop_early=True,
                # timm's models with relative positions fail when they have none to return.
                return_prefix_tokens=self.module.num_prefix_tokens > 0,
                output_fmt="NLC",
                intermediates_only=True,
            )
            return self._split(outputs, layers)

    def _split(self, outputs: Sequence[Any], layers: Sequence[int]) -> Tokens:
        tokens: Tokens = {}
        for layer, output in zip(layers, outputs, strict=True):
            patches, prefix = output if isinstance(output, tuple) else (output, None)
            if self.architecture["norm"] == "fc_norm":
                patches = self.module.fc_norm(patches)
                prefix = None if prefix is None else self.module.fc_norm(prefix)
            tokens[layer, "patches"] = patches.float()
            if prefix is not None and self.has_cls:
                tokens[layer, "cls"] = prefix[:, 0].float()
            if prefix is not None and self.n_registers:
                tokens[layer, "registers"] = prefix[:, prefix.shape[1] - self.n_registers :].float()
        return tokens


def load_backbone(request: BackboneRequest, *, attention_kernel: str | None = None) -> Backbone:
    """Load a backbone with its weights.

    Args:
        request: from `resolve_backbone`.
        attention_kernel: `fused` or `explicit`; None for timm's own choice on this device.

    Raises:
        BackboneError: not a ViT, an input size that it does not take, or weights that do not fit.
    """
    with _attention(attention_kernel or kernel_name()):
        module = build_module(request.architecture, request.image_size)
    position_embedding = load_weights(module, Path(request.weights), request.architecture)
    if request.device.startswith("cuda"):
        # Otherwise the patch embedding, a convolution, would be computed with ten bits of mantissa in float32.
        torch.backends.cudnn.allow_tf32 = False
    height, width = module.patch_embed.grid_size
    image_size = input_side(module)
    return Backbone(
        request=request,
        module=module.to(request.device),
        preprocessing=_preprocessing(module.pretrained_cfg, request.fit, image_size, position_embedding),
        architecture={
            "library": "timm",
            "name": request.architecture,
            "arguments": {"num_classes": 0, "img_size": image_size},
            "norm": norm_name(module),
        },
        depth=len(module.blocks),
        grid=(int(height), int(width)),
        n_features=int(module.num_features),
        n_registers=register_count(module),
        has_cls=has_class_token(module),
    )


def kernel_name() -> str:
    """Which attention kernel timm uses now: `fused` or `explicit`."""
    return "fused" if use_fused_attn() else "explicit"


@contextlib.contextmanager
def _attention(kernel: str) -> Iterator[None]:
    """While a model is built, which is when timm's layers choose; the process's own setting comes back."""
    before = kernel_name()
    set_fused_attn(kernel == "fused")
    try:
        yield
    finally:
        set_fused_attn(before == "fused")


def _preprocessing(
    config: Mapping[str, Any], fit: Fit | None, image_size: int, position_embedding: str
) -> Preprocessing:
    """The model's own configuration, with the user's fit where one is given."""
    return Preprocessing(
        image_size=image_size,
        fit=fit or ("squash" if config.get("crop_mode") == "squash" else "crop"),
        crop_fraction=float(config.get("crop_pct") or 1.0),
        interpolation=str(config["interpolation"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        position_embedding=position_embedding,
    )
