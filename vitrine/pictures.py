"""Pictures of results that one would rather look at than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluators.scores import paint
from feature_store import DatasetSpec

_VOID_COLOUR = (0, 0, 0)


def draw_spectrum(variance: Sequence[float], *, title: str, path: Path) -> None:
    """Variances of all features by rank, both axes logarithmic."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    ordered = np.sort(np.asarray(variance))[::-1]
    axes.loglog(np.arange(1, len(ordered) + 1), np.maximum(ordered, 1e-12), marker=".", markersize=3, linewidth=1)
    axes.set(xlabel="feature, by rank", ylabel="variance over the training tokens", title=title)
    axes.grid(visible=True, which="both", alpha=0.2)
    _save(figure, path)


def draw_removal_curve(
    dropped: Sequence[int], curves: Mapping[str, Sequence[float]], *, title: str, path: Path
) -> None:
    """Draw mIoU against the number of features removed, a line for each way of choosing them."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in curves.items():
        axes.plot(dropped, values, marker="o", markersize=4, label=f"{name} removed")
    axes.set(xlabel="features removed", ylabel="mIoU", title=title, ylim=(0, None))
    axes.grid(visible=True, alpha=0.2)
    axes.legend()
    _save(figure, path)


def draw_prediction(
    images: Sequence[np.ndarray[Any, Any]],
    masks: Sequence[np.ndarray[Any, Any]],
    predictions: Sequence[np.ndarray[Any, Any]],
    *,
    dataset: DatasetSpec,
    path: Path,
) -> None:
    """Images, their true masks, and the predicted ones, side by side.

    Args:
        images: RGB [height, width, 3].
        masks: raw values [height, width].
        predictions: classes [grid height, grid width].
        dataset: names and colours of the classes.
        path: of the picture.
    """
    colours = class_colours(dataset)
    figure = Figure(figsize=(8, 2.7 * len(images) + 0.9), layout="constrained")
    axes = figure.subplots(len(images), 3, squeeze=False)
    seen: set[int] = set()
    for row, (image, mask, prediction) in enumerate(zip(images, masks, predictions, strict=True)):
        painted = paint(prediction, *mask.shape)
        seen |= set(np.unique(mask).tolist()) | set(np.unique(prediction).tolist())
        for column, (shown, name) in enumerate(
            (
                (image, "image"),
                (_coloured(mask, colours), "true mask"),
                (_coloured(painted, colours), "predicted by 1-NN"),
            )
        ):
            axes[row][column].imshow(shown)
            axes[row][column].set_axis_off()
            if row == 0:
                axes[row][column].set_title(name, fontsize=10)
    handles = [
        axes[0][0].scatter([], [], marker="s", color=np.asarray(colours[index]) / 255, label=dataset.classes[index])
        for index in sorted(seen)
        if 0 <= index < dataset.n_classes
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    _save(figure, path)


def draw_reconstruction(columns: Mapping[str, Sequence[np.ndarray[Any, Any]]], *, path: Path) -> None:
    """Images side by side: a column for each way of making them, a row for each view.

    Args:
        columns: by title, RGB in 0..1 [height, width, 3], as many in every column.
        path: of the picture.
    """
    n_rows = max(len(images) for images in columns.values())
    figure = Figure(figsize=(2.4 * len(columns), 2.4 * n_rows + 0.3), layout="constrained")
    axes = figure.subplots(n_rows, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        axes[0][column].set_title(title, fontsize=9)
        for row, image in enumerate(images):
            axes[row][column].imshow(image)
            axes[row][column].set_axis_off()
    _save(figure, path)


def class_colours(dataset: DatasetSpec) -> list[tuple[int, int, int]]:
    """The dataset's own colours, or evenly spread hues; black for void, at the end."""
    own = list(dataset.colours)
    if not own:
        hues = np.arange(dataset.n_classes) / max(1, dataset.n_classes) * 6
        channels = np.clip(np.abs((hues[:, None] + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
        own = [(int(r), int(g), int(b)) for r, g, b in channels * 200 + 30]
    return [*own, _VOID_COLOUR]


def _coloured(mask: np.ndarray[Any, Any], colours: Sequence[tuple[int, int, int]]) -> np.ndarray[Any, Any]:
    void = len(colours) - 1
    classes = np.where((mask >= 0) & (mask < void), mask, void)
    coloured: np.ndarray[Any, Any] = np.asarray(colours, dtype=np.uint8)[classes]
    return coloured


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
