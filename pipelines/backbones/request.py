"""What a worker needs to know to load a backbone."""

from dataclasses import dataclass

from pipelines.backbones.preprocessing import Fit, ImageSize


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """One backbone, resolved: everything a worker needs to load it.

    Attributes:
        model: the name that the user typed, or the architecture's.
        title: what reports call it.
        architecture: timm's name, or `null`.
        weights: the checkpoint file on this machine; empty for a model without one.
        weights_sha256: of that file, or of the numbers that stand in for it.
        image_size: (height, width) of the input in pixels, or None for the architecture's own.
        fit: how a view of other proportions becomes the input; None for the model's own way.
        compute_dtype: `float32`, `bfloat16` or `float16`.
        device: `cpu`, `cuda`, `cuda:1` ...
    """

    model: str
    title: str
    architecture: str
    weights: str
    weights_sha256: str
    image_size: ImageSize | None = None
    fit: Fit | None = None
    compute_dtype: str = "float32"
    device: str = "cpu"
