"""Columns, shift and scale against the same written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.feature_map import FeatureMap, standardising
from evaluators.moments import empty_moments, moments_of


def tokens(rows: int = 200, features: int = 6) -> np.ndarray:
    scale = np.geomspace(10, 0.1, features)
    return np.random.default_rng(0).normal(3, scale, size=(rows, features)).astype(np.float16)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("columns", [None, np.array([4, 0, 2])])
@pytest.mark.parametrize("affine", [False, True])
def test_apply_chooses_shifts_and_divides(dtype: type, columns: np.ndarray | None, affine: bool) -> None:
    block: np.ndarray = tokens().astype(dtype)
    kept = block if columns is None else block[:, columns]
    shift = np.linspace(-1, 1, kept.shape[1]).astype(np.float32) if affine else None
    scale = np.linspace(1, 3, kept.shape[1]).astype(np.float32) if affine else None
    expected = kept.astype(np.float32)
    if shift is not None and scale is not None:
        expected = (expected - shift) / scale
    mapped = FeatureMap(columns=columns, shift=shift, scale=scale).apply(block)
    assert mapped.dtype == np.float32
    assert mapped.flags.c_contiguous
    np.testing.assert_array_equal(mapped, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_apply_leaves_a_read_only_block_alone(dtype: type) -> None:
    block: np.ndarray = tokens().astype(dtype)
    before = block.copy()
    block.flags.writeable = False
    mapped = FeatureMap(shift=np.ones(6, dtype=np.float32)).apply(block)
    np.testing.assert_array_equal(block, before)
    assert not np.shares_memory(mapped, block)
    assert not np.shares_memory(FeatureMap().apply(block), block)


def test_apply_reads_reversed_rows() -> None:
    block = tokens()
    np.testing.assert_array_equal(FeatureMap().apply(block[::-1]), block[::-1].astype(np.float32))


@pytest.mark.parametrize("columns", [None, np.array([5, 1])])
def test_standardised_features_have_mean_zero_and_variance_one(columns: np.ndarray | None) -> None:
    block = tokens(5_000)
    mapped = standardising(moments_of(block), columns).apply(block)
    np.testing.assert_allclose(mapped.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(mapped.var(axis=0, dtype=np.float64), 1, rtol=1e-5)


def test_a_feature_that_never_varies_becomes_zero() -> None:
    block = tokens()
    block[:, 2] = 0.3
    mapped = standardising(moments_of(block), None).apply(block)
    np.testing.assert_allclose(mapped[:, 2], 0, atol=1e-6)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(IndexError, match=r"columns span 6\.\.6; the block has features 0\.\.5"):
        FeatureMap(columns=np.array([6])).apply(tokens())


def test_standardising_by_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="cover 0 rows"):
        standardising(empty_moments(6), None)
