"""How a view becomes the backbone's input; all of it is part of the identity."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Fit = Literal["squash", "crop"]
ImageSize = tuple[int, int]


def size_text(size: ImageSize) -> str:
    """A (height, width) as users write it: one number for a square."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows that slide over an input which is larger than what the model is run on.

    Attributes:
        size: (height, width) of a window in pixels.
        stride: (down, right) from one window to the next in pixels; the last one ends with the input.
    """

    size: ImageSize
    stride: ImageSize


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
        position_embedding: how the checkpoint's position embedding was brought to this grid, or to that of a window.
        windows: that the input is cut into, or None where the model sees it whole.
    """

    image_size: ImageSize
    fit: Fit
    crop_fraction: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    position_embedding: str
    windows: Windows | None = None

    def to_json(self) -> dict[str, Any]:
        """The preprocessing as the identity records it, with what this code fixes."""
        plain = asdict(replace(self, windows=None))
        del plain["windows"]
        return {
            **plain,
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "decoder": "pillow",
            "resize_runs_in": "pillow, uint8",
            "antialias": True,
            "crop_fraction": 1.0 if self.fit == "squash" else self.crop_fraction,
            **({} if self.windows is None else {"windows": _windows_record(self.windows)}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preprocessing":
        """Read what `to_json` wrote."""
        names = ("fit", "crop_fraction", "interpolation", "position_embedding")
        height, width = value["image_size"]
        windows = value.get("windows")
        if windows is not None:
            windows = Windows(size=tuple(windows["size"]), stride=tuple(windows["stride"]))
        return cls(
            **{name: value[name] for name in names},
            image_size=(height, width),
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
            windows=windows,
        )


def _windows_record(windows: Windows) -> dict[str, Any]:
    return {
        "size": list(windows.size),
        "stride": list(windows.stride),
        "last": "ends with the input",
        "overlap": "mean in float32",
    }
