"""Streamed variance against NumPy's, on the same float16 array in memory."""

from __future__ import annotations

import numpy as np

from benchmarks.ratio import compare, sized
from evaluators.moments import stream_moments

FEATURES = 384
BLOCK_ROWS = 16_384


def test_variance() -> None:
    rows = sized(tiny=1_000, full=300_000)
    scale = np.geomspace(10, 0.1, FEATURES, dtype=np.float32)
    tokens = (np.random.default_rng(0).standard_normal((rows, FEATURES), dtype=np.float32) * scale).astype(np.float16)

    def streamed() -> np.ndarray:
        return stream_moments(tokens[start : start + BLOCK_ROWS] for start in range(0, rows, BLOCK_ROWS)).variance

    found = compare("variance, numpy.var", peer=lambda: np.var(tokens, axis=0, dtype=np.float64), ours=streamed)
    np.testing.assert_allclose(found.ours, found.peer, rtol=1e-10)
