"""Inputs larger than what a model is run on: windows slide over them, and where they overlap tokens are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32

from pipelines.backbones.backbone import Backbone, Tokens
from pipelines.backbones.preprocessing import ImageSize, Windows, size_text
from pipelines.backbones.request import BackboneRequest
from pipelines.backbones.weight_files import BackboneError


@dataclass(frozen=True, kw_only=True)
class WindowedBackbone(Backbone):
    """A backbone that sees its input window by window.

    A patch token is the mean of that patch's tokens in all windows that hold it; a class or register token is the mean
    over all windows. Means are taken in float32, windows in row-major order.

    Attributes:
        windows: their size and stride.
        inner: the backbone that is run on each of them.
    """

    windows: Windows
    inner: Backbone

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of every window in pixels, row by row."""
        tops, lefts = (
            window_starts(*sides)
            for sides in zip(self.preprocessing.image_size, self.windows.size, self.windows.stride, strict=True)
        )
        return [(top, left) for top in tops for left in lefts]

    def tokens_of(
        self,
        inputs: Float32[torch.Tensor, "views 3 h w"],
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: Float32[torch.Tensor, " views"] | None = None,
    ) -> Tokens:
        """See `Backbone.tokens_of`; one window of every view is a batch, so that its shape never changes."""
        height, width = self.windows.size
        sums: Tokens = {}
        counts = torch.zeros(self.grid, device=inputs.device)
        with torch.inference_mode():
            for top, left in self.corners:
                window = inputs[:, :, top : top + height, left : left + width].contiguous()
                tokens = self.inner.tokens_of(window, layers, ground_sample_distance_m=ground_sample_distance_m)
                place = self._place(top, left)
                counts[place] += 1
                self._add(sums, tokens, place)
            return {
                name: (total / counts[..., None]).flatten(1, 2) if name[1] == "patches" else total / len(self.corners)
                for name, total in sums.items()
            }

    def _place(self, top: int, left: int) -> tuple[slice, slice]:
        """The part of the grid that a window covers."""
        (height, width), (rows, columns) = self.windows.size, self.inner.grid
        row, column = top * rows // height, left * columns // width
        return slice(row, row + rows), slice(column, column + columns)

    def _add(self, sums: Tokens, tokens: Tokens, place: tuple[slice, slice]) -> None:
        for name, values in tokens.items():
            if name[1] != "patches":
                sums[name] = sums[name] + values if name in sums else values
                continue
            if name not in sums:
                sums[name] = values.new_zeros((len(values), *self.grid, values.shape[-1]))
            sums[name][:, place[0], place[1]] += values.unflatten(1, self.inner.grid)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every `stride`, and a last one that ends with the input.

    Args:
        length: of the input.
        window: length of a window, at most that of the input.
        stride: from one window to the next, at most a window.
    """
    starts = list(range(0, length - window + 1, stride))
    return starts if starts[-1] + window == length else [*starts, length - window]


def sliding(request: BackboneRequest, image_size: ImageSize | None, windows: Windows) -> BackboneRequest:
    """The request for windows over an input of this size.

    Args:
        request: for one window.
        image_size: (height, width) of the whole input.
        windows: that slide over it.

    Raises:
        BackboneError: no size, one smaller than a window, or a stride that leaves gaps.
    """
    if image_size is None:
        raise BackboneError(
            f"--window {size_text(windows.size)} slides over an input whose size is not given; add --image-size."
        )
    if any(window > side for window, side in zip(windows.size, image_size, strict=True)):
        raise BackboneError(
            f"--window {size_text(windows.size)} is larger than the input, --image-size {size_text(image_size)}; leave "
            "--window out."
        )
    if any(not 0 < stride <= window for stride, window in zip(windows.stride, windows.size, strict=True)):
        raise BackboneError(
            f"--stride {size_text(windows.stride)} leaves gaps between windows of {size_text(windows.size)}; use at "
            "most a window."
        )
    return replace(request, image_size=image_size, windows=windows)


def one_window(request: BackboneRequest) -> BackboneRequest:
    """The request for the backbone that sees one window."""
    assert request.windows is not None
    return replace(request, image_size=request.windows.size, windows=None)


def in_windows(inner: Backbone, request: BackboneRequest) -> WindowedBackbone:
    """The backbone that slides over the request's input.

    Args:
        inner: for `one_window` of the request.
        request: from `sliding`.

    Raises:
        BackboneError: patches do not divide the input or the stride, so that windows have no common grid.
    """
    size, windows = request.image_size, request.windows
    assert size is not None
    assert windows is not None
    patch = (windows.size[0] // inner.grid[0], windows.size[1] // inner.grid[1])
    for option, sides in (("--image-size", size), ("--stride", windows.stride)):
        if sides[0] % patch[0] or sides[1] % patch[1]:
            raise BackboneError(
                f"{option} {size_text(sides)} is not a multiple of the {size_text(patch)}-pixel patch of "
                f"{request.model!r}, so that the patches of windows would not meet; use multiples of it."
            )
    return WindowedBackbone(
        request=request,
        module=inner.module,
        preprocessing=replace(inner.preprocessing, image_size=size, windows=windows),
        architecture=inner.architecture,
        depth=inner.depth,
        grid=(size[0] // patch[0], size[1] // patch[1]),
        n_features=inner.n_features,
        n_registers=inner.n_registers,
        has_cls=inner.has_cls,
        windows=windows,
        inner=inner,
    )
