"""What a worker needs to know to load a backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from pipelines.backbones.preprocessing import Fit, ImageSize, Windows


class RequestOptions(TypedDict, total=False):
    """What may be asked of any model; see `BackboneRequest`."""

    fit: Fit | None
    compute_dtype: str
    device: str
    position_embedding: str | None
    network: str | None
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """One backbone, resolved: everything a worker needs to load it.

    Attributes:
        model: the name that the user typed, or the architecture's.
        title: what reports call it.
        architecture: timm's name, the family of a published file, or `null`.
        weights: the checkpoint file on this machine; empty for a model without one.
        weights_sha256: of that file, or of the numbers that stand in for it.
        image_size: (height, width) of the input in pixels, or None for the architecture's own.
        windows: that slide over the input, each of which the model sees alone; None for the whole input at once.
        fit: how a view of other proportions becomes the input; None for the model's own way.
        compute_dtype: `float32`, `bfloat16` or `float16`.
        position_embedding: the rule that resamples the position embedding; None for the model's own.
        device: `cpu`, `cuda`, `cuda:1` ...
        network: the name of the network in a file that holds several; None where it holds one, or has none to choose.
        arguments: what the user states of the network, as `NAME=VALUE`.
        assumed: what neither the file nor the user says, and the value that is taken.
    """

    model: str
    title: str
    architecture: str
    weights: str
    weights_sha256: str
    image_size: ImageSize | None = None
    windows: Windows | None = None
    fit: Fit | None = None
    compute_dtype: str = "float32"
    device: str = "cpu"
    network: str | None = None
    arguments: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    position_embedding: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "BackboneRequest":
        """Read what `dataclasses.asdict` gave, after a way through JSON, which knows no tuples."""
        size, windows = value["image_size"], value["windows"]
        if windows is not None:
            windows = Windows(size=tuple(windows["size"]), stride=tuple(windows["stride"]))
        texts = {name: tuple(value[name]) for name in ("arguments", "assumed")}
        return cls(**{**value, **texts, "image_size": None if size is None else tuple(size), "windows": windows})
