"""Nearest neighbours against a brute-force search, with ties everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import neighbors
from evaluators.neighbors import Neighbors, majority_vote, search
from evaluators.parameters import Backend, Metric

METRICS: list[Metric] = ["dot", "cosine", "l2"]
BACKENDS: list[Backend] = ["faiss", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "faiss":
        pytest.importorskip("faiss")
    name: Backend = request.param
    return name


def in_blocks(rows: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (rows[start : start + size] for start in range(0, len(rows), size))


def nearest(
    bank: np.ndarray, queries: np.ndarray, *, k: int, metric: Metric, backend: Backend = "auto", block: int = 10**6
) -> Neighbors:
    found = list(search(in_blocks(bank, block), in_blocks(queries, 64)(), k=k, metric=metric, backend=backend))
    scores, rows = ([getattr(part, name) for part in found] for name in ("scores", "rows"))
    return Neighbors(scores=np.concatenate(scores), rows=np.concatenate(rows))


def brute_force(bank: np.ndarray, queries: np.ndarray, *, k: int, metric: Metric) -> Neighbors:
    if metric == "l2":
        scores = ((queries[:, None].astype(np.float64) - bank[None]) ** 2).sum(axis=2)
    else:
        scores = (queries[:, None].astype(np.float64) * bank[None]).sum(axis=2)
    scores = scores.astype(np.float32)
    rows = np.argsort(scores if metric == "l2" else -scores, axis=1, kind="stable")[:, :k]
    return Neighbors(scores=np.take_along_axis(scores, rows, axis=1), rows=rows)


def normalised(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def whole_numbers(rows: int, features: int, *, seed: int) -> np.ndarray:
    """Rows whose scores are exact in float32 and tie all the time."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, features)).astype(np.float32)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("features", [3, 33])
@pytest.mark.parametrize("k", [1, 2, 10, 99, 100, 150])
@pytest.mark.parametrize("block", [1_500, 400, 37])
def test_ties_go_to_the_lower_row_at_every_k_and_block_size(
    metric: Metric, features: int, k: int, block: int, backend: Backend
) -> None:
    bank, queries = whole_numbers(1_500, features, seed=0), whole_numbers(70, features, seed=1)
    expected = brute_force(bank, queries, k=k, metric=metric)
    found = nearest(bank, queries, k=k, metric=metric, backend=backend, block=block)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["dot", "l2"]), st.data())
def test_block_sizes_do_not_matter(rows: int, block: int, metric: Metric, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows))
    bank, queries = whole_numbers(rows, 2, seed=rows), whole_numbers(5, 2, seed=k)
    expected = brute_force(bank, queries, k=k, metric=metric)
    np.testing.assert_array_equal(nearest(bank, queries, k=k, metric=metric, block=block).rows, expected.rows)


@pytest.mark.parametrize("metric", METRICS)
def test_real_valued_rows_are_ranked_as_in_double_precision(metric: Metric, backend: Backend) -> None:
    rng = np.random.default_rng(2)
    bank, queries = (rng.normal(1, 1, (rows, 48)).astype(np.float32) for rows in (2_000, 100))
    found = nearest(bank, queries, k=20, metric=metric, backend=backend, block=700)
    if metric == "cosine":
        bank, queries = normalised(bank), normalised(queries)
    expected = brute_force(bank, queries, k=20, metric=metric)
    # Normalising in float32 leaves the last place open, and with it the order of scores that differ by less.
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    assert (found.rows == expected.rows).mean() > 0.999


@pytest.mark.parametrize("metric", METRICS)
def test_identical_rows_tie_wherever_they_stand(metric: Metric, backend: Backend) -> None:
    # A float32 matrix product gives identical rows other last bits at the edges of its tiles.
    rng = np.random.default_rng(3)
    distinct = rng.normal(size=(40, 96)).astype(np.float32)
    bank, queries = np.tile(distinct, (51, 1)), rng.normal(size=(64, 96)).astype(np.float32)
    found = nearest(bank, queries, k=60, metric=metric, backend=backend, block=999)
    # The best distinct row fills the first 51 places with its copies, in row order; the second best the next 9.
    for places in (slice(0, 51), slice(51, 60)):
        rows = found.rows[:, places]
        np.testing.assert_array_equal(np.diff(rows, axis=1), len(distinct))
        assert (rows[:, 0] < len(distinct)).all()


def test_small_distances_far_from_the_origin_are_not_lost(backend: Backend) -> None:
    # |q|^2 is near 6e7, where float32 steps by 4: the expansion of the square alone ranks at random.
    rng = np.random.default_rng(4)
    bank, queries = (1_000 + rng.normal(0, 0.05, (rows, 64)).astype(np.float32) for rows in (600, 40))
    expected = brute_force(bank, queries, k=5, metric="l2")
    found = nearest(bank, queries, k=5, metric="l2", backend=backend, block=250)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


def test_zero_vectors_are_as_similar_to_all_rows(backend: Backend) -> None:
    bank, queries = whole_numbers(300, 4, seed=5), np.zeros((2, 4), dtype=np.float32)
    bank[7] = 0
    found = nearest(bank, queries, k=30, metric="cosine", backend=backend, block=64)
    np.testing.assert_array_equal(found.rows, np.tile(np.arange(30), (2, 1)))
    np.testing.assert_array_equal(found.scores, 0)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("block", [2_000, 700, 37])
@pytest.mark.parametrize("seed", [0, 1])
def test_blocks_do_not_change_the_neighbours_among_near_duplicates_far_from_the_origin(
    metric: Metric, block: int, seed: int, backend: Backend
) -> None:
    # Squared distances near 1e-8 between vectors of squared length 1.4e6: below what the difference of two lengths
    # gives in double precision. So many lie within float32's error of the best that the whole bank is searched again.
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, 384))
    centres[:, [3, 77, 200, 301]] += 600
    bank = (np.repeat(centres, 100, axis=0) + rng.normal(size=(2_000, 384)) * 1e-4).astype(np.float32)
    queries = (centres[:8] + rng.normal(size=(8, 384)) * 1e-4).astype(np.float32)
    expected = brute_force(bank, queries, k=5, metric=metric)
    found = nearest(bank, queries, k=5, metric=metric, backend=backend, block=block)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_a_bank_of_more_than_two_to_the_32_rows_is_refused_before_it_is_searched() -> None:
    # A view of one value: it has the rows, and no memory.
    block = np.broadcast_to(np.float32(1), (2**32 + 1, 1))
    queries = np.ones((1, 1), dtype=np.float32)
    with pytest.raises(ValueError, match=r"4,294,967,297 rows or more.*at most 4,294,967,296 \(2\*\*32\)"):
        next(search(lambda: iter([block]), iter([queries]), k=1, metric="dot"))


def test_the_last_rows_that_a_bank_may_have_are_told_apart() -> None:
    last = torch.tensor([neighbors.MAX_BANK_ROWS - 2, neighbors.MAX_BANK_ROWS - 1])
    keys = neighbors._keys(torch.tensor([-3.5, -3.5]), last)
    assert keys[0] > keys[1]
    np.testing.assert_array_equal(neighbors._neighbors(keys[:, None], "dot").rows[:, 0], last.numpy())


def test_a_row_of_the_bank_finds_itself_at_distance_zero(backend: Backend) -> None:
    bank = np.random.default_rng(6).normal(5, 1, (500, 32)).astype(np.float32)
    found = nearest(bank, bank, k=1, metric="l2", backend=backend, block=130)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(500))
    np.testing.assert_array_equal(found.scores, 0)


def test_k_may_be_the_whole_bank_and_no_more(backend: Backend) -> None:
    bank, queries = whole_numbers(12, 3, seed=7), whole_numbers(4, 3, seed=8)
    found = nearest(bank, queries, k=12, metric="dot", backend=backend, block=5)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(12), (4, 1)))
    with pytest.raises(ValueError, match="k is 13 and the bank has 12 rows"):
        nearest(bank, queries, k=13, metric="dot", backend=backend, block=5)


def test_each_block_of_queries_gives_one_result() -> None:
    bank = whole_numbers(20, 3, seed=0)
    queries = [bank[:3], bank[:0], bank[3:5]]
    found = list(search(in_blocks(bank, 6), queries, k=2, metric="dot"))
    assert [part.rows.shape for part in found] == [(3, 2), (0, 2), (2, 2)]


def test_empty_and_read_only_blocks_of_the_bank_are_read() -> None:
    bank, queries = whole_numbers(20, 3, seed=0), whole_numbers(4, 3, seed=1)
    bank.flags.writeable = False
    found = next(iter(search(lambda: [bank[:0], bank[:9], bank[9:9], bank[9:]], [queries], k=4, metric="dot")))
    np.testing.assert_array_equal(found.rows, brute_force(bank, queries, k=4, metric="dot").rows)


def test_auto_works_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = whole_numbers(50, 3, seed=0), whole_numbers(4, 3, seed=1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    expected = brute_force(bank, queries, k=4, metric="l2")
    np.testing.assert_array_equal(nearest(bank, queries, k=4, metric="l2", backend="auto").rows, expected.rows)
    with pytest.raises(ModuleNotFoundError, match="faiss"):
        nearest(bank, queries, k=4, metric="l2", backend="faiss")


def test_torch_searches_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_TILE_ROWS", 16)
    bank, queries = whole_numbers(100, 3, seed=0), whole_numbers(40, 3, seed=1)
    expected = brute_force(bank, queries, k=30, metric="dot")
    np.testing.assert_array_equal(nearest(bank, queries, k=30, metric="dot", backend="torch").rows, expected.rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_ties_go_to_the_lower_row_on_a_gpu(metric: Metric) -> None:
    bank, queries = whole_numbers(1_500, 33, seed=0), whole_numbers(70, 33, seed=1)
    found = next(iter(search(in_blocks(bank, 400), [queries], k=20, metric=metric, device="cuda")))
    np.testing.assert_array_equal(found.rows, brute_force(bank, queries, k=20, metric=metric).rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value: float, backend: Backend) -> None:
    bank = whole_numbers(30, 3, seed=0)
    bank[4, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        nearest(bank, whole_numbers(4, 3, seed=1), k=30, metric="dot", backend=backend)


def test_bank_and_queries_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="4 features and the queries 3"):
        nearest(whole_numbers(9, 4, seed=0), whole_numbers(2, 3, seed=0), k=1, metric="dot")


def test_unknown_choices_are_refused() -> None:
    rows = whole_numbers(9, 4, seed=0)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(rows, rows, k=0, metric="dot")
    # Under pytest the signature of `search` is checked first, so the names are tried one step further in.
    with pytest.raises(ValueError, match="metric 'l3' is unknown"):
        neighbors._check_choices(1, "l3", "auto", "cpu")
    with pytest.raises(ValueError, match="backend 'numpy' is unknown"):
        neighbors._check_choices(1, "dot", "numpy", "cpu")
    with pytest.raises(ValueError, match="device 'cuda'"):
        next(search(lambda: [rows], [rows], k=1, metric="dot", backend="faiss", device="cuda"))


def voted(labels: list[int]) -> int:
    """The rule in words: most votes; among those, whoever comes first in the list."""
    most = max(labels.count(label) for label in labels)
    return next(label for label in labels if labels.count(label) == most)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7).flatmap(lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=1)))
def test_a_tied_vote_goes_to_the_class_of_the_nearest_member(labels: list[list[int]]) -> None:
    np.testing.assert_array_equal(majority_vote(np.array(labels), 5), [voted(row) for row in labels])


def test_votes_are_counted_in_pieces_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_VOTES_AT_ONCE", 20)
    labels = np.random.default_rng(0).integers(0, 5, (50, 4))
    np.testing.assert_array_equal(majority_vote(labels, 5), [voted(row) for row in labels.tolist()])


def test_votes_for_unknown_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels span 0\.\.5"):
        majority_vote(np.array([[0, 5]]), 5)
    with pytest.raises(ValueError, match="k is 0"):
        majority_vote(np.empty((3, 0), dtype=np.int64), 5)
