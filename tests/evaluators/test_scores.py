"""Patches, pixels and scores against plain loops and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.scores import accuracy, confusion, iou, mean_iou, paint, patch_labels

SIZES = st.integers(1, 50)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_a_patch_takes_the_label_of_the_pixel_at_its_centre(height: int, width: int, rows: int, columns: int) -> None:
    mask = np.arange(height * width).reshape(height, width)
    labels = patch_labels(mask, (rows, columns))
    half = Fraction(1, 2)
    for i in range(rows):
        for j in range(columns):
            y, x = floor((i + half) * height / rows), floor((j + half) * width / columns)
            assert labels[i, j] == mask[y, x]


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_a_pixel_takes_the_prediction_of_its_patch(height: int, width: int, rows: int, columns: int) -> None:
    predictions = np.arange(rows * columns).reshape(rows, columns)
    painted = paint(predictions, height, width)
    for y in range(height):
        for x in range(width):
            assert painted[y, x] == predictions[floor(Fraction(y * rows, height)), floor(Fraction(x * columns, width))]


def test_painted_labels_of_patches_of_whole_pixels_are_the_mask_again() -> None:
    blocks = np.arange(12).reshape(3, 4)
    mask = np.kron(blocks, np.ones((5, 7), dtype=np.int64))
    np.testing.assert_array_equal(paint(patch_labels(mask, (3, 4)), 15, 28), mask)


def counted(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    counts = np.zeros((n_classes, n_classes + 1), dtype=np.int64)
    for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if 0 <= true < n_classes:
            counts[true, min(guess, n_classes)] += 1
    return counts


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_confusion_counts_pixels_one_by_one(dtype: type) -> None:
    rng = np.random.default_rng(0)
    truth: np.ndarray = rng.integers(0 if dtype is np.uint8 else -1, 7, (20, 30)).astype(dtype)
    predicted: np.ndarray = rng.integers(0, 9, (20, 30)).astype(dtype)
    counts = confusion(truth, predicted, n_classes=5)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, counted(truth, predicted, 5))


def test_void_truth_is_ignored_and_void_prediction_is_wrong() -> None:
    truth = np.array([[0, 0, 255], [1, 1, 2]])
    predicted = np.array([[0, 255, 0], [1, 0, 1]])
    counts = confusion(truth, predicted, n_classes=2)
    np.testing.assert_array_equal(counts, [[1, 0, 1], [1, 1, 0]])
    assert accuracy(counts) == 2 / 4


def test_iou_is_that_of_sets_of_pixels() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    values = iou(confusion(truth, predicted, n_classes=5))
    scored = set(np.flatnonzero(truth < 5).tolist())
    for label in range(5):
        true = set(np.flatnonzero(truth == label).tolist())
        guessed = set(np.flatnonzero(predicted == label).tolist()) & scored
        assert values[label] == len(true & guessed) / len(true | guessed)
    assert mean_iou(confusion(truth, predicted, n_classes=5)) == pytest.approx(values.mean(), abs=1e-15)


def test_a_class_that_occurs_nowhere_does_not_enter_the_mean() -> None:
    # Class 0: 1 hit, 1 missed, so 1/2. Class 1: predicted once and never true, so 0. Class 2: nowhere.
    counts = confusion(np.array([0, 0]), np.array([0, 1]), n_classes=3)
    np.testing.assert_array_equal(iou(counts), [1 / 2, 0, np.nan])
    assert mean_iou(counts) == 1 / 4


def test_nothing_scored_gives_no_number() -> None:
    counts = confusion(np.array([3]), np.array([0]), n_classes=3)
    assert isnan(mean_iou(counts))
    assert isnan(accuracy(counts))


def test_truth_and_prediction_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"truth has shape \(2,\) and prediction \(3,\)"):
        confusion(np.zeros(2, dtype=np.int64), np.zeros(3, dtype=np.int64), n_classes=2)


def test_a_negative_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="a prediction is -1"):
        confusion(np.array([0]), np.array([-1]), n_classes=2)


def test_an_empty_grid_or_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        patch_labels(np.zeros((4, 4), dtype=np.int64), (0, 2))
    with pytest.raises(ValueError, match="below 1"):
        paint(np.zeros((2, 2), dtype=np.int64), 0, 4)
