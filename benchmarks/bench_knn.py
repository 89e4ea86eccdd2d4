"""Streamed exact k-NN against faiss on the whole bank, on the same float32 arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.ratio import compare, sized
from evaluators.neighbors import BANK_ROWS, QUERY_ROWS, search

faiss = pytest.importorskip("faiss")
FEATURES = 384


def tokens(rows: int, *, seed: int) -> np.ndarray:
    """Correlated features of unequal scale, rounded to float16 as stored ones are."""
    mixing = np.random.default_rng(0).standard_normal((FEATURES, FEATURES), dtype=np.float32)
    mixing *= np.geomspace(3, 0.05, FEATURES, dtype=np.float32)[:, None]
    plain = np.random.default_rng(seed).standard_normal((rows, FEATURES), dtype=np.float32)
    return (plain @ mixing + 1).astype(np.float16).astype(np.float32)


def blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@pytest.mark.parametrize("k", [1, 10, 100])
def test_knn(k: int) -> None:
    bank, queries = tokens(sized(tiny=500, full=100_000), seed=1), tokens(sized(tiny=50, full=QUERY_ROWS), seed=2)

    def indexed() -> tuple[np.ndarray, np.ndarray]:
        index = faiss.IndexFlatIP(FEATURES)
        index.add(bank)
        scores, rows = index.search(queries, k)
        return scores, rows

    def streamed() -> tuple[np.ndarray, np.ndarray]:
        found = list(search(lambda: blocks(bank, BANK_ROWS), blocks(queries, QUERY_ROWS), k=k, metric="dot"))
        return np.concatenate([part.scores for part in found]), np.concatenate([part.rows for part in found])

    found = compare(f"{k}-NN, faiss.IndexFlatIP", peer=indexed, ours=streamed)
    np.testing.assert_allclose(found.ours[0], found.peer[0], rtol=1e-4)
    assert (found.ours[1] == found.peer[1]).mean() > 0.999
