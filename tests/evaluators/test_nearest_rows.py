"""nearest_rows: the rows and patches that brute force finds, under every condition, selection, metric and token."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evaluators import nearest, stored_query
from feature_store import FeatureSet, IncompleteError, QueryError, Selection, SelectionError

from .conftest import Synthetic


def _tokens(store: Synthetic, on: str) -> np.ndarray[Any, Any]:
    """[rows, tokens of a row, features], in float64."""
    if on == "cls":
        return store.cls[:, None].astype(np.float64)
    patches = store.patches.astype(np.float64)
    return patches.mean(axis=1, keepdims=True) if on == "mean" else patches


def _brute_force(
    tokens: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], query: np.ndarray[Any, Any], metric: str
) -> list[tuple[int, int, float]]:
    """All (row, patch, score), best first; of equal scores the lower row, then patch."""
    found = []
    for row in rows:
        for patch, token in enumerate(tokens[row]):
            if metric == "l2":
                score = float(((token - query) ** 2).sum())
            else:
                lengths = np.linalg.norm(token) * np.linalg.norm(query) if metric == "cosine" else 1.0
                score = float(token @ query / lengths)
            found.append((int(row), patch, score))
    sign = 1 if metric == "l2" else -1
    return sorted(found, key=lambda entry: (sign * entry[2], entry[0], entry[1]))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("on", ["patches", "cls", "mean"])
def test_nearest_is_brute_force(segmented: Synthetic, on: Any, metric: Any) -> None:
    tokens = _tokens(segmented, on)
    queries = tokens[[3, 5], 0] + 0.125
    for condition in (None, "split = 'train' AND row > 2"):
        among = segmented.features if condition is None else segmented.features.where(condition)
        rows = np.asarray([row for row in among.rows if segmented.valid[row]])
        found = nearest(among, queries, 5, on=on, metric=metric)
        for query in range(2):
            expected = _brute_force(tokens, rows, queries[query], metric)[:5]
            assert found.rows[query].tolist() == [row for row, _, _ in expected]
            np.testing.assert_allclose(found.scores[query], [score for _, _, score in expected], rtol=1e-5, atol=1e-5)
            if on == "patches":
                assert found.patches is not None
                assert found.patches[query].tolist() == [patch for _, patch, _ in expected]
            else:
                assert found.patches is None


def test_a_selection_compares_its_features_alone(segmented: Synthetic) -> None:
    kept = [0, 2, 5]
    weights = segmented.features.spec.identity.weights_sha256
    selection = Selection(
        name="some", features=tuple(kept), width=6, weights_sha256=weights, layer=2, kind="patches", made_by={}
    )
    tokens = _tokens(segmented, "patches")
    query = tokens[4, 3]
    found = nearest(segmented.features, query, 9, selection=selection, metric="l2")
    rows = np.flatnonzero(segmented.valid)
    expected = _brute_force(tokens[:, :, kept], rows, query[kept], "l2")[:9]
    assert found.patches is not None
    assert list(zip(found.rows[0].tolist(), found.patches[0].tolist(), strict=True)) == [e[:2] for e in expected]
    other = Selection(name="x", features=(0,), width=6, weights_sha256="cd" * 32, layer=2, kind="cls", made_by={})
    with pytest.raises(SelectionError, match="was made for weights"):
        nearest(segmented.features, query, 1, selection=other)


def test_equal_scores_go_to_the_lower_row_then_patch(synthetic: Callable[..., Synthetic]) -> None:
    store = synthetic(n_rows=10, invalid=tuple(range(10)))
    # Every token of an invalid row is zero, and none of them may be found.
    with pytest.raises(QueryError, match="1 neighbours were asked for among 0 tokens of 0 rows"):
        nearest(store.features, np.ones(6), 1)
    store = synthetic(n_rows=10)
    found = nearest(store.features, np.zeros(6), 30, metric="dot")
    assert found.rows[0].tolist() == [0] * 12 + [1] * 12 + [2] * 6
    assert found.patches is not None
    assert found.patches[0].tolist() == [*range(12), *range(12), *range(6)]


def test_the_answer_names_image_and_tile(segmented: Synthetic) -> None:
    (entries,) = nearest(segmented.features, stored_query(segmented.features, 4, 3), 2).to_json()
    assert entries[0] == {
        "rank": 1,
        "row": 4,
        "patch": 3,
        "score": pytest.approx(1),
        "uri": "0004.png",
        "tile": None,
    }
    assert entries[1]["rank"] == 2


@pytest.mark.parametrize("block_tokens", [5, 64])
def test_block_sizes_change_nothing(segmented: Synthetic, block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    query = stored_query(segmented.features, 1, 2)
    whole = nearest(segmented.features, query, 40)
    monkeypatch.setattr("evaluators.nearest_rows.BANK_BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr("evaluators.nearest_rows._READ_BYTES", 200)
    assert nearest(segmented.features, query, 40).to_json() == whole.to_json()


def test_a_stored_token_is_the_query_that_was_stored(segmented: Synthetic) -> None:
    features = segmented.features
    np.testing.assert_array_equal(stored_query(features, 2, 5)[0], segmented.patches[2, 5].astype("f4"))
    np.testing.assert_array_equal(stored_query(features, 2, on="cls")[0], segmented.cls[2].astype("f4"))
    mean = segmented.patches[2].astype("f8").mean(axis=0)
    np.testing.assert_allclose(stored_query(features, 2, on="mean")[0], mean, atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda f: stored_query(f, 14, 0), r"row 14 does not exist; .* has 0\.\.13"),
        (lambda f: stored_query(f, -1, 0), "row -1 does not exist"),
        (lambda f: stored_query(f, 7, 0), "row 7 of .* has no tokens"),
        (lambda f: stored_query(f, 1, 12), r"patch 12 does not exist: a row has patches 0 to 11"),
        (lambda f: stored_query(f, 1), "a patch is named by row and patch"),
        (lambda f: stored_query(f, 1, 1, on="cls"), "an image by its row alone"),
        (lambda f: nearest(f, np.ones(6), 0), "0 neighbours were asked for among 144 tokens of 12 rows"),
        (lambda f: nearest(f, np.ones(6), 145), "145 neighbours were asked for"),
        (lambda f: nearest(f, np.ones(5), 1), r"queries of shape \(5,\) do not fit .*; give \[queries, 6\]"),
        (lambda f: nearest(f, np.full(6, np.nan), 1), "not finite"),
    ],
)
def test_what_cannot_be_found_is_refused(
    segmented: Synthetic, ask: Callable[[FeatureSet], object], reason: str
) -> None:
    with pytest.raises(QueryError, match=reason):
        ask(segmented.features)


def test_a_feature_set_that_lacks_shards_is_refused(synthetic: Callable[..., Synthetic]) -> None:
    from feature_store import open_store

    store = synthetic(n_rows=14, commit=slice(0, 1))
    with pytest.raises(IncompleteError, match="has 1 of 2 shards"):
        nearest(open_store(store.url).features(), np.ones(6), 1)
    assert set(nearest(store.features, np.ones(6), 96).rows[0].tolist()) == set(range(8))
