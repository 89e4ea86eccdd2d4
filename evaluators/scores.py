"""Patches and pixels, and what a prediction is worth: confusion, intersection over union, accuracy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer


def patch_labels(
    mask: Integer[np.ndarray, "height width"], grid: tuple[int, int]
) -> Integer[np.ndarray, "grid_height grid_width"]:
    """The label of each patch: that of the pixel at its centre, `floor((i + 0.5) * height / grid_height)`.

    Args:
        mask: class of every pixel of the view, as the view was cut (before any resizing for a model).
        grid: height and width of the patch lattice.

    Returns:
        Labels in the mask's dtype.

    Raises:
        ValueError: the grid or the mask is empty.
    """
    rows, columns = (_centres(pixels, patches) for pixels, patches in zip(mask.shape, grid, strict=True))
    labels: Integer[np.ndarray, "grid_height grid_width"] = mask[rows[:, None], columns[None, :]]
    return labels


def paint(
    predictions: Integer[np.ndarray, "grid_height grid_width"], height_px: int, width_px: int
) -> Integer[np.ndarray, "height width"]:
    """Spread patch predictions over the pixels: pixel y takes patch `floor(y * grid_height / height)`.

    Args:
        predictions: class of each patch.
        height_px, width_px: size of the view in source pixels.

    Returns:
        Class of every pixel, in the dtype of `predictions`.

    Raises:
        ValueError: the grid or the picture is empty.
    """
    grid_height, grid_width = predictions.shape
    _require_positive(grid_height, grid_width, height_px, width_px)
    rows = np.arange(height_px, dtype=np.int64) * grid_height // height_px
    columns = np.arange(width_px, dtype=np.int64) * grid_width // width_px
    painted: Integer[np.ndarray, "height width"] = predictions[rows[:, None], columns[None, :]]
    return painted


def confusion(
    truth: Integer[np.ndarray, "*pixels"], predicted: Integer[np.ndarray, "*predictions"], *, n_classes: int
) -> Int64[np.ndarray, "classes predicted_classes"]:
    """Count how often each class was predicted as each class.

    Args:
        truth: true classes; entries outside 0..n_classes-1 are void and ignored.
        predicted: predicted classes, in the same shape; not negative. A value of n_classes or more is void.
        n_classes: number of classes that are scored.

    Returns:
        Counts [n_classes, n_classes + 1], truth by prediction. The last column holds predictions of void, which
        count as wrong.

    Raises:
        ValueError: the shapes differ, or a prediction is negative.
    """
    if truth.shape != predicted.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and prediction {predicted.shape}; each truth needs one prediction. "
            "Paint the patch predictions at the size of the mask first."
        )
    scored = (truth >= 0) & (truth < n_classes)
    kept_truth = truth[scored].astype(np.int64)
    kept_predicted = predicted[scored].astype(np.int64)
    if kept_predicted.size and kept_predicted.min() < 0:
        raise ValueError(
            f"a prediction is {kept_predicted.min()}; predicted classes start at 0. "
            f"Give void the value {n_classes} or more."
        )
    cells = kept_truth * (n_classes + 1) + np.minimum(kept_predicted, n_classes)
    counts = np.bincount(cells, minlength=n_classes * (n_classes + 1))
    return counts.reshape(n_classes, n_classes + 1).astype(np.int64, copy=False)


def iou(counts: Int64[np.ndarray, "classes predicted_classes"]) -> Float64[np.ndarray, " classes"]:
    """Intersection over union of each class, TP / (TP + FP + FN), from the counts of `confusion`.

    Returns:
        Values in 0..1; NaN for a class that occurs neither in the truth nor in the prediction.
    """
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=1) + counts[:, : len(counts)].sum(axis=0) - hits
    values: Float64[np.ndarray, " classes"] = np.full(len(counts), np.nan)
    np.divide(hits, union, out=values, where=union > 0)
    return values


def mean_iou(
    counts: Int64[np.ndarray, "classes predicted_classes"], scored: Int64[np.ndarray, " scored"] | None = None
) -> float:
    """Mean of `iou` over the scored classes that occur (None: all are scored); NaN where none does."""
    values = iou(counts) if scored is None else iou(counts)[scored]
    occurring = values[~np.isnan(values)]
    return float(occurring.mean()) if occurring.size else float("nan")


def accuracy(counts: Int64[np.ndarray, "classes predicted_classes"]) -> float:
    """Share of the scored entries whose prediction is right; NaN where nothing is scored."""
    total = int(counts.sum())
    return int(np.trace(counts)) / total if total else float("nan")


def _centres(pixels: int, patches: int) -> Int64[np.ndarray, " patches"]:
    """Index of the pixel at each patch's centre; integers, so that no rounding moves a centre."""
    _require_positive(pixels, patches)
    return (2 * np.arange(patches, dtype=np.int64) + 1) * pixels // (2 * patches)


def _require_positive(*sizes: int) -> None:
    """Refuse an empty grid or picture."""
    if min(sizes) < 1:
        raise ValueError(
            f"sizes {sizes} hold a value below 1; a grid and a picture need at least one patch and pixel each way. "
            "Check the grid of the feature set and the size of the mask."
        )
