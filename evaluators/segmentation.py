"""Scoring predictions: patches painted at full resolution against masks, or whole images against labels."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np
from jaxtyping import Int64

from evaluators.probe_input import ProbeInput
from evaluators.results import ImageScores, ProbeResult, Scores, SegmentationScores
from evaluators.scores import accuracy, confusion, iou, mean_iou, paint, patch_labels


class Scorer:
    """Collects predictions row by row; memory does not grow with the rows.

    The tiles of an image do not overlap and cover it, so the sum of the tiles' confusions is the confusion of the
    stitched prediction.

    Args:
        probe: the subject that was classified.
    """

    def __init__(self, probe: ProbeInput) -> None:
        self._probe = probe
        n = probe.n_classes
        self._pixels = np.zeros((n, n + 1), dtype=np.int64)
        self._patches = np.zeros((n, n + 1), dtype=np.int64)
        self._ceiling = np.zeros((n, n + 1), dtype=np.int64)

    def add(self, rows: Int64[np.ndarray, " rows"], predicted: Int64[np.ndarray, " tokens"]) -> None:
        """Score the predicted classes of all tokens of some rows, in the order of `ProbeInput.stored_blocks`."""
        n = self._probe.n_classes
        if self._probe.on != "patches":
            truth = self._probe.scored_truth(self._probe.labels(rows))
            self._patches += confusion(truth, predicted, n_classes=n)
            return
        grid = self._probe.features.spec.grid
        by_row = predicted.reshape(len(rows), *grid)
        for mask, prediction in zip(self._probe.features.masks.iter_masks(rows.tolist()), by_row, strict=True):
            truth = self._probe.scored_truth(mask)
            centres = patch_labels(mask.astype(np.int64), grid)
            self._pixels += confusion(truth, paint(prediction, *truth.shape), n_classes=n)
            self._patches += confusion(self._probe.scored_truth(centres), prediction, n_classes=n)
            self._ceiling += confusion(truth, paint(centres, *truth.shape), n_classes=n)

    def result(self, details: Mapping[str, Any]) -> ProbeResult:
        """The record of everything that was added, with what is particular to the evaluator."""
        probe = self._probe
        return ProbeResult(
            scores=self.scores(),
            n_train=len(probe.train_rows) * probe.tokens_per_row,
            n_test=len(probe.test_rows) * probe.tokens_per_row,
            n_features=probe.n_features,
            train_split=probe.train_name,
            test_split=probe.test_name,
            details={"on": probe.on, **self._scored(), **details},
        )

    def _scored(self) -> dict[str, Any]:
        """Which classes were scored, where not all were."""
        names, scored = self._probe.features.dataset.spec.classes, self._probe.scored
        return {} if len(scored) == len(names) else {"scored": [names[index] for index in scored]}

    def scores(self) -> Scores:
        """The figures over everything that was added."""
        names, scored = self._probe.features.dataset.spec.classes, self._probe.scored
        if self._probe.on != "patches":
            return ImageScores(
                accuracy=_number(accuracy(self._patches)),
                class_accuracy=_named(names, _recall(self._patches), scored),
                absent=_absent(names, self._patches, scored),
            )
        return SegmentationScores(
            miou=_number(mean_iou(self._pixels, scored)),
            class_iou=_named(names, iou(self._pixels), scored),
            pixel_accuracy=_number(accuracy(self._pixels)),
            patch_accuracy=_number(accuracy(self._patches)),
            ceiling_miou=_number(mean_iou(self._ceiling, scored)),
            absent=_absent(names, self._pixels, scored),
        )


def _number(value: float) -> float | None:
    """A figure as a record holds it: JSON has no NaN, so what cannot be said is null."""
    return None if isnan(value) else value


def _absent(
    names: tuple[str, ...], counts: Int64[np.ndarray, "classes predicted_classes"], scored: Int64[np.ndarray, " scored"]
) -> tuple[str, ...]:
    """The names of the scored classes without any truth."""
    return tuple(names[index] for index in scored if not counts[index].any())


def _recall(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    totals = matrix.sum(axis=1)
    recall: np.ndarray[Any, Any] = np.divide(
        np.diag(matrix), totals, out=np.full(len(totals), np.nan), where=totals > 0
    )
    return recall


def _named(
    names: tuple[str, ...], values: np.ndarray[Any, Any], scored: np.ndarray[Any, Any]
) -> dict[str, float | None]:
    """Figures by class name; None where there is none, or the class is not scored."""
    counts = np.isin(np.arange(len(names)), scored) & ~np.isnan(values)
    return {name: float(value) if there else None for name, value, there in zip(names, values, counts, strict=True)}
