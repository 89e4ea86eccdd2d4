"""What compression is fitted with, against scikit-learn and closed forms."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from evaluators.compression import fit_codec, fit_projection, fit_quantiser
from feature_store import StoreError
from feature_store.compression import LEVELS
from tests.feature_store.samples import fill_store


def tokens(n_tokens: int = 500, n_features: int = 12, *, seed: int = 0) -> np.ndarray[Any, Any]:
    """Tokens of falling variances in a turned basis, with means that dwarf some of them."""
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(n_features, n_features)))[0]
    scaled = random.normal(size=(n_tokens, n_features)) * 0.7 ** np.arange(n_features)
    moved: np.ndarray[Any, Any] = (scaled @ turn + random.normal(scale=4, size=n_features)).astype(np.float32)
    return moved


@pytest.mark.parametrize("n_components", [1, 4, 11])
def test_a_projection_is_scikit_learns(n_components: int) -> None:
    values = tokens()
    projection, kept = fit_projection(lambda: iter(np.array_split(values, 7)), n_components)
    oracle = PCA(n_components, svd_solver="full").fit(values.astype(np.float64))
    expected = oracle.transform(values.astype(np.float64))
    found = projection.apply(values)
    # A component has no sign of its own.
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)
    assert kept == pytest.approx(oracle.explained_variance_ratio_.sum(), rel=1e-5)
    assert all(column[np.abs(column).argmax()] > 0 for column in projection.basis.T)


def test_a_projection_depends_little_on_the_cut_into_blocks() -> None:
    values = tokens()
    one, _ = fit_projection(lambda: [values], 5)
    other, _ = fit_projection(lambda: np.array_split(values, 50), 5)
    np.testing.assert_allclose(one.basis, other.basis, atol=1e-6)


def test_a_quantiser_reaches_from_the_least_to_the_greatest_value() -> None:
    values = tokens()
    values[:, 3] = 2.5
    quantiser = fit_quantiser(np.array_split(values, 9))
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    np.testing.assert_allclose(quantiser.offset, (low + high) / 2, rtol=1e-6)
    assert quantiser.scale[3] == 1
    varying = np.arange(12) != 3
    np.testing.assert_allclose(quantiser.scale[varying], ((high - low) / 254)[varying], rtol=1e-6)
    levels = quantiser.encode(values)
    assert levels[:, varying].min(axis=0).tolist() == [-LEVELS] * 11
    assert levels[:, varying].max(axis=0).tolist() == [LEVELS] * 11
    np.testing.assert_array_equal(quantiser.decode(levels)[:, 3], 2.5)


def test_a_quantiser_is_the_same_however_the_blocks_are_cut() -> None:
    values = tokens()
    one, other = fit_quantiser([values]), fit_quantiser(np.array_split(values[::-1], 13))
    digests = [hashlib.sha256(q.offset.tobytes() + q.scale.tobytes()).hexdigest() for q in (one, other)]
    assert digests[0] == digests[1]


def test_no_block_is_an_error() -> None:
    def nothing() -> Iterator[np.ndarray[Any, Any]]:
        yield from ()

    with pytest.raises(ValueError, match="0 blocks; extremes need at least one"):
        fit_quantiser(nothing())


def test_only_the_rows_named_count(tmp_path: Path) -> None:
    features = fill_store(str(tmp_path / "store"))
    rows = np.arange(0, 14)
    fit = fit_codec(features, 1, "patches", rows, n_components=2, quantise=True)
    values = features.read(1, "patches", rows).reshape(-1, 3).astype(np.float32)
    assert fit.n_tokens == len(values) == 14 * 4
    assert fit.codec.projection is not None
    assert fit.codec.quantiser is not None
    np.testing.assert_allclose(fit.codec.projection.mean, values.mean(axis=0), rtol=1e-5, atol=1e-6)
    projected = fit.codec.projection.apply(values)
    expected = (projected.max(axis=0).astype(np.float64) - projected.min(axis=0)) / 254
    np.testing.assert_allclose(fit.codec.quantiser.scale, expected, rtol=1e-6)
    oracle = PCA(2).fit(values.astype(np.float64))
    assert fit.kept_variance == pytest.approx(oracle.explained_variance_ratio_.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("n_components", "n_rows", "message"),
    [(3, 21, "tokens have 3 features; name a number from 1 to 2"), (2, 2, "only 2 cls tokens are there to fit it on")],
)
def test_a_pca_that_cannot_be_fitted_is_refused(tmp_path: Path, n_components: int, n_rows: int, message: str) -> None:
    features = fill_store(str(tmp_path / "store"))
    with pytest.raises(StoreError, match=message):
        fit_codec(features, 1, "cls", np.arange(n_rows), n_components=n_components, quantise=False)
