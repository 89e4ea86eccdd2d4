"""A ViT of timm as a frozen backbone: one forward pass gives the tokens of every asked layer."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from timm.layers.config import set_fused_attn, use_fused_attn

from pipelines.backbones.architecture import (
    build_module,
    has_class_token,
    head_count,
    input_size,
    network_arguments,
    norm_name,
    register_count,
)
from pipelines.backbones.backbone import Backbone, Tokens
from pipelines.backbones.class_attention import class_attention as watch_class
from pipelines.backbones.fitting import embedding_resampling, load_weights
from pipelines.backbones.formats.evaluation import Evaluation, of_timm
from pipelines.backbones.held_weights import hold_weights
from pipelines.backbones.preprocessing import ImageSize, Preprocessing
from pipelines.backbones.request import BackboneRequest
from pipelines.backbones.same_network import timm_record
from pipelines.backbones.stated import timm_arguments
from pipelines.backbones.weight_files import BackboneError

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TimmBackbone(Backbone):
    """A plain ViT of timm; its `module` is timm's."""

    def tokens_of(
        self,
        inputs: Float32[torch.Tensor, "views 3 h w"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[torch.Tensor, " views"] | None = None,
    ) -> Tokens:
        """See `Backbone.tokens_of`."""
        dtype = _AUTOCAST.get(self.request.compute_dtype)
        device_type = torch.device(self.request.device).type
        if class_attention and not (self.has_cls and self.n_heads):
            raise BackboneError(f"{self.request.title} has no class token whose attention could be told.")
        with (
            torch.inference_mode(),
            torch.autocast(device_type, dtype=dtype, enabled=dtype is not None),
            watch_class(
                self.module.blocks,
                layers if class_attention else (),
                n_heads=self.n_heads,
                n_prefix=self.module.num_prefix_tokens,
            ) as seen,
        ):
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
            tokens = self._split(outputs, layers)
        return tokens | {(layer, "attention"): rows for layer, rows in seen.items()}

    def _split(self, outputs: Sequence[Any], layers: Sequence[int]) -> Tokens:
        tokens: Tokens = {}
        for layer, output in zip(layers, outputs, strict=True):
            patches, prefix = output if isinstance(output, tuple) else (output, None)
            if self.architecture["norm"] == "fc_norm":
                patches = self.module.fc_norm(patches)
                prefix = None if prefix is None else self.module.fc_norm(prefix)
            tokens[layer, "patches"] = patches
            if prefix is not None and self.has_cls:
                tokens[layer, "cls"] = prefix[:, 0]
            if prefix is not None and self.n_registers:
                tokens[layer, "registers"] = prefix[:, prefix.shape[1] - self.n_registers :]
        # What was computed in more than float32 stays so.
        return {name: values.to(torch.promote_types(values.dtype, torch.float32)) for name, values in tokens.items()}


def load_timm(request: BackboneRequest, *, attention_kernel: str | None = None) -> Backbone:
    """Load a backbone with its weights.

    Args:
        request: from `resolve_timm`.
        attention_kernel: `fused` or `explicit`; None for timm's own choice on this device.

    Raises:
        WeightsChangedError: the file is not the one that was resolved.
        BackboneError: not a ViT, an input size that it does not take, or weights that do not fit.
    """
    with attention(attention_kernel):
        module = build_module(request.architecture, request.image_size, request.arguments)
    with hold_weights(Path(request.weights), request.weights_sha256) as path:
        position_embedding = load_weights(
            module, path, request.architecture, rule=request.position_embedding, network=request.network
        )
    compute_float32_in_full(request.device)
    return _backbone(request, module.to(request.device), position_embedding)


def describe_timm(request: BackboneRequest) -> Backbone:
    """All that an identity and a plan need of a backbone, without its weights: it cannot run.

    Of the checkpoint only names and shapes are read.

    Raises:
        BackboneError: not a ViT, an input size that it does not take, or a file that is no checkpoint.
    """
    with torch.device("meta"):
        module = build_module(request.architecture, request.image_size, request.arguments)
    position_embedding = embedding_resampling(
        module,
        Path(request.weights),
        request.architecture,
        rule=request.position_embedding,
        network=request.network,
    )
    return _backbone(request, module, position_embedding)


def random_timm(
    architecture: str, *, image_size: ImageSize | None = None, compute_dtype: str = "float32", device: str = "cpu"
) -> Backbone:
    """A ViT of timm with random weights, the same in every call: to time it, since its tokens say nothing.

    Args:
        architecture: timm's name, with or without its tag.
        image_size, compute_dtype, device: see `BackboneRequest`.

    Raises:
        BackboneError: not a ViT, or an input size that it does not take.
    """
    request = BackboneRequest(
        model=architecture,
        title=f"{architecture} with random weights",
        architecture=architecture,
        weights="",
        weights_sha256="",
        image_size=image_size,
        compute_dtype=compute_dtype,
        device=device,
    )
    compute_float32_in_full(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(architecture, image_size)
    return _backbone(request, module.to(device), "random")


def compute_float32_in_full(device: str) -> None:
    """Have a GPU compute float32 as float32, before a model runs there."""
    if device.startswith("cuda"):
        # Otherwise the patch embedding, a convolution, would be computed with ten bits of mantissa in float32.
        torch.backends.cudnn.allow_tf32 = False


def _backbone(request: BackboneRequest, module: Any, position_embedding: str) -> Backbone:
    height, width = module.patch_embed.grid_size
    image_size = input_size(module)
    return TimmBackbone(
        request=request,
        module=module,
        preprocessing=_preprocessing(module.pretrained_cfg, request, image_size, position_embedding),
        architecture=timm_record(
            request.architecture,
            module,
            image_size,
            norm=norm_name(module),
            of=request.network,
            stated=network_arguments(request.architecture, request.arguments),
        ),
        depth=len(module.blocks),
        grid=(int(height), int(width)),
        n_features=int(module.num_features),
        n_registers=register_count(module),
        has_cls=has_class_token(module),
        n_heads=head_count(module),
    )


def kernel_name() -> str:
    """Which attention kernel timm uses now: `fused` or `explicit`."""
    return "fused" if use_fused_attn() else "explicit"


@contextlib.contextmanager
def attention(kernel: str | None) -> Iterator[None]:
    """While a model is built, which is when timm's layers choose; the process's own setting comes back.

    Args:
        kernel: `fused` or `explicit`; None for timm's own choice.
    """
    before = kernel_name()
    set_fused_attn((kernel or before) == "fused")
    try:
        yield
    finally:
        set_fused_attn(before == "fused")


def _preprocessing(
    config: Mapping[str, Any], request: BackboneRequest, image_size: ImageSize, position_embedding: str
) -> Preprocessing:
    """As the model's authors evaluate it, or as timm does where they are not known; with the user's fit if given."""
    evaluation = of_timm(_full_name(config)) or Evaluation(
        source="timm",
        share=float(config.get("crop_pct") or 1.0),
        interpolation=str(config["interpolation"]),
        squash=config.get("crop_mode") == "squash",
    )
    stated = timm_arguments(request.architecture, request.arguments)
    return Preprocessing(
        image_size=image_size,
        fit=request.fit or ("squash" if evaluation.squash else "crop"),
        crop_fraction=evaluation.crop_fraction(image_size),
        interpolation=evaluation.interpolation,
        mean=stated.get("mean", tuple(config["mean"])),
        std=stated.get("std", tuple(config["std"])),
        position_embedding=position_embedding,
    )


def _full_name(config: Mapping[str, Any]) -> str:
    """The name that timm has for a model, with the tag that users may leave out."""
    tag, architecture = config.get("tag"), config.get("architecture", "")
    return f"{architecture}.{tag}" if tag else str(architecture)
