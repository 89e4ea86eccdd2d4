"""How a view becomes the backbone's input; all of it is part of the identity."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Fit = Literal["squash", "crop"]
ImageSize = tuple[int, int]


def size_text(size: ImageSize) -> str:
    """A (height, width) as users write it: one number for a square."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded RGB view to normalised pixels.

    Attributes:
        image_size: (height, width) of the input, in pixels.
        fit: `squash` resizes the whole view to the input's size; `crop` resizes it so that it just covers the input's
            size over `crop_fraction`, and cuts the centre.
        crop_fraction: side of the centre crop over that of what it is cut from; 1 for `squash`.
        interpolation: `bicubic`, `bilinear`, `nearest` or `lanczos`, always of PIL, on uint8.
        mean, std: of the three channels, for pixels scaled to 0..1.
        position_embedding: how the checkpoint's position embedding was brought to this grid.
    """

    image_size: ImageSize
    fit: Fit
    crop_fraction: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    position_embedding: str

    def to_json(self) -> dict[str, Any]:
        """The preprocessing as the identity records it, with what this code fixes."""
        return {
            **asdict(self),
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "decoder": "pillow",
            "resize_runs_in": "pillow, uint8",
            "antialias": True,
            "crop_fraction": 1.0 if self.fit == "squash" else self.crop_fraction,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preprocessing":
        """Read what `to_json` wrote."""
        names = ("fit", "crop_fraction", "interpolation", "position_embedding")
        tuples = {name: tuple(value[name]) for name in ("image_size", "mean", "std")}
        return cls(**{name: value[name] for name in names}, **tuples)
