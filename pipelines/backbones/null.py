"""The null model: a fixed linear map of each patch's pixels, for trying out storage and pipelines.

It says nothing of an image that its pixels do not say. It needs no file and no timm, takes microseconds an image, and
gives the same bits on every machine: its weights are small whole numbers, and the sums are exact.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float32

from pipelines.backbones.backbone import Backbone, Tokens
from pipelines.backbones.catalogue import NULL
from pipelines.backbones.preprocessing import ImageSize, Preprocessing, size_text
from pipelines.backbones.request import BackboneRequest, RequestOptions
from pipelines.backbones.weight_files import BackboneError

NO_KERNEL = "none"
_DEPTH, _FEATURES, _PATCH_PX = 2, 32, 16
_IMAGE_SIZE = (64, 64)
_VALUES_PER_PATCH = _PATCH_PX * _PATCH_PX * 3
_MOST_WEIGHT = 4
_LEVELS = 255


@dataclass(frozen=True, kw_only=True)
class NullBackbone(Backbone):
    """The null model: a patch token is a linear map of the patch's pixels, and the class token the mean of them.

    Its `module` is the map, float64 [layers, values of a patch, features].
    """

    def tokens_of(
        self,
        inputs: Float32[torch.Tensor, "views 3 h w"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[torch.Tensor, " views"] | None = None,
    ) -> Tokens:
        """See `Backbone.tokens_of`."""
        (height, width), views = self.grid, len(inputs)
        # Back to the whole numbers that the pixels were: sums of whole numbers have one value in any order.
        pixels = (inputs * _LEVELS).round().double()
        patches = pixels.reshape(views, 3, height, _PATCH_PX, width, _PATCH_PX).permute(0, 2, 4, 1, 3, 5)
        flat = patches.reshape(views, height * width, _VALUES_PER_PATCH)
        tokens: Tokens = {}
        for layer in layers:
            mapped = flat @ self.module[layer - 1]
            scale = _LEVELS * _MOST_WEIGHT * _PATCH_PX
            tokens[layer, "patches"] = (mapped / scale).float()
            tokens[layer, "cls"] = (mapped.sum(dim=1) / (scale * height * width)).float()
        return tokens


def resolve_null(
    *, weights: Path | None, image_size: ImageSize | None, **options: Unpack[RequestOptions]
) -> BackboneRequest:
    """The null model as a request.

    Raises:
        BackboneError: weights or arguments are given, another compute dtype than float32, or a size that patches do
            not divide.
    """
    if weights is not None:
        raise BackboneError(f"model 'null' takes no weights, and {weights} were given; leave --weights out.")
    if (compute_dtype := options.get("compute_dtype", "float32")) != "float32":
        raise BackboneError(f"model 'null' is exact and has no {compute_dtype} form; leave --compute out.")
    if options.get("position_embedding"):
        raise BackboneError("model 'null' has no position embedding; leave --position-embedding out.")
    if options.get("network"):
        raise BackboneError("model 'null' has no file that holds networks; leave --network out.")
    if options.get("arguments"):
        raise BackboneError("model 'null' is the same map for everyone and takes no arguments; leave --arg out.")
    size = _IMAGE_SIZE if image_size is None else image_size
    if any(side < _PATCH_PX or side % _PATCH_PX for side in size):
        raise BackboneError(
            f"--image-size {size_text(size)} is not a positive multiple of the {_PATCH_PX}-pixel patch of 'null'; use "
            f"{size_text(_IMAGE_SIZE)}."
        )
    return BackboneRequest(
        model=NULL,
        title="null model (a fixed linear map of pixels)",
        architecture=NULL,
        weights="",
        weights_sha256=hashlib.sha256(_weights().tobytes()).hexdigest(),
        image_size=size,
        **options,
    )


def load_null(request: BackboneRequest) -> NullBackbone:
    """The null model, ready to run."""
    size = request.image_size or _IMAGE_SIZE
    return NullBackbone(
        request=request,
        module=torch.from_numpy(_weights().astype(np.float64)).to(request.device),
        preprocessing=Preprocessing(
            image_size=size,
            fit=request.fit or "crop",
            crop_fraction=1.0,
            interpolation="bicubic",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            position_embedding="none",
        ),
        architecture={"library": "vitrine", "name": NULL, "arguments": {"img_size": list(size)}, "norm": "none"},
        depth=_DEPTH,
        grid=(size[0] // _PATCH_PX, size[1] // _PATCH_PX),
        n_features=_FEATURES,
        n_registers=0,
        has_cls=True,
    )


def _weights() -> np.ndarray[tuple[int, int, int], np.dtype[np.int8]]:
    """The map, int8 [layers, values of a patch, features], from its name: no random generator's version decides it."""
    n_values = _DEPTH * _VALUES_PER_PATCH * _FEATURES
    octets = np.frombuffer(hashlib.shake_256(b"vitrine null").digest(n_values), dtype=np.uint8)
    weights = (octets % (2 * _MOST_WEIGHT + 1)).astype(np.int8) - np.int8(_MOST_WEIGHT)
    return weights.reshape(_DEPTH, _VALUES_PER_PATCH, _FEATURES)
