"""Moments against NumPy in double precision, and their independence of order and block size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.moments import Moments, empty_moments, merge_moments, moments_of, stream_moments


def tokens(rows: int, features: int, *, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    scale = np.geomspace(10, 0.1, features)
    return np.random.default_rng(seed).normal(mean, scale, size=(rows, features))


def assert_same(left: Moments, right: Moments) -> None:
    assert left.count == right.count
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "features"), [(1, 3), (7, 1), (5_000, 300), (50_000, 5)])
def test_moments_of_a_block_are_those_of_numpy(dtype: type, rows: int, features: int) -> None:
    block: np.ndarray = tokens(rows, features).astype(dtype)
    moments = moments_of(block)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean, block.mean(axis=0, dtype=np.float64), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(moments.variance, block.var(axis=0, dtype=np.float64), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(moments.std, block.std(axis=0, dtype=np.float64), rtol=1e-11, atol=1e-12)


def test_a_large_mean_cancels_nothing() -> None:
    # The textbook sum of squares loses 8 of 16 digits here in float64 and everything in float32.
    block = (1e4 + np.random.default_rng(1).normal(size=(20_000, 3))).astype(np.float32)
    np.testing.assert_allclose(moments_of(block).variance, block.astype(np.longdouble).var(axis=0), rtol=1e-12)


def test_a_constant_feature_has_no_variance() -> None:
    block = np.full((9_000, 2), 0.1, dtype=np.float16)
    np.testing.assert_array_equal(moments_of(block).m2, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), st.randoms(use_true_random=False))
def test_order_and_sizes_of_blocks_do_not_matter(sizes: list[int], shuffler: object) -> None:
    rows = tokens(sum(sizes), 4, mean=3).astype(np.float16)
    blocks = np.split(rows, np.cumsum(sizes)[:-1])
    shuffler.shuffle(blocks)  # type: ignore[attr-defined]
    assert_same(stream_moments(blocks), moments_of(rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_merging_is_commutative_and_associative(first: int, second: int, third: int) -> None:
    a, b, c = (moments_of(tokens(rows, 3, seed=seed, mean=seed)) for seed, rows in enumerate((first, second, third)))
    assert_same(merge_moments(a, b), merge_moments(b, a))
    assert_same(merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(b, c)))


def test_the_empty_set_is_the_identity() -> None:
    some = moments_of(tokens(5, 3))
    assert_same(merge_moments(some, empty_moments(3)), some)
    assert_same(merge_moments(empty_moments(3), some), some)
    assert_same(moments_of(np.empty((0, 3), dtype=np.float16)), empty_moments(3))


def test_a_read_only_block_is_read_without_a_warning() -> None:
    block = tokens(10, 3).astype(np.float16)
    expected = moments_of(block)
    block.flags.writeable = False
    assert_same(moments_of(block), expected)


def test_the_variance_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="cover 0 rows"):
        _ = empty_moments(3).variance


def test_moments_over_different_features_are_not_merged() -> None:
    with pytest.raises(ValueError, match="over 3 and over 4 features"):
        merge_moments(moments_of(tokens(5, 3)), moments_of(tokens(5, 4)))


def test_a_stream_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="0 blocks"):
        stream_moments([])
