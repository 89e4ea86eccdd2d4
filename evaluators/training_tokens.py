"""Training tokens with their labels, for many passes: held in memory, or read from the store each time."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from evaluators.feature_map import FeatureMap
from evaluators.linear import Block, Blocks
from evaluators.probe_input import ProbeInput

_BLOCK_TOKENS = 16_384


class HeldTokens:
    """All training tokens in memory, once: passes over a part of them copy a block at a time.

    Args:
        probe: whose training tokens.
        mapping: to what the fit sees.
        block_bytes: about how much is read at a time.

    Attributes:
        passes: how often the tokens were gone through, or a part of them.
    """

    def __init__(self, probe: ProbeInput, mapping: FeatureMap, *, block_bytes: int) -> None:
        per_row = probe.tokens_per_row
        self.passes = 0
        self._probe, self._mapping, self._block_bytes = probe, mapping, block_bytes
        self._rows_per_block = max(1, _BLOCK_TOKENS // per_row)
        self._labels = probe.compact_labels(probe.train_rows).reshape(-1, probe.tokens_per_row)
        self._tokens: Float32[np.ndarray, "rows tokens features"] = np.empty(
            (len(probe.train_rows), per_row, probe.n_features), dtype=np.float32
        )
        flat, filled = self._tokens.reshape(-1, probe.n_features), 0
        for _, stored in probe.stored_blocks(probe.train_rows, block_bytes=block_bytes):
            flat[filled : filled + len(stored)] = mapping.apply(stored)
            filled += len(stored)

    def blocks(self, positions: Int64[np.ndarray, " rows"] | None = None) -> Blocks:
        """Passes over the tokens of some training rows.

        Args:
            positions: of the rows among the training rows, ascending; None for all.
        """
        n_rows = len(self._tokens) if positions is None else len(positions)

        def one_pass() -> Iterator[Block]:
            self.passes += 1
            for first in range(0, n_rows, self._rows_per_block):
                some = slice(first, first + self._rows_per_block)
                chosen = some if positions is None else positions[some]
                yield _flat(self._tokens[chosen]), _flat(self._labels[chosen])

        return one_pass

    def held(self, positions: Int64[np.ndarray, " rows"]) -> "HeldTokens":
        """The tokens of some training rows, in memory."""
        rows = self._probe.train_rows[positions]
        return HeldTokens(self._probe.trained_on(rows), self._mapping, block_bytes=self._block_bytes)


class StoredTokens:
    """Training tokens that stay in the store; their labels are held.

    Args:
        probe, mapping, block_bytes: as for `HeldTokens`.

    Attributes:
        passes: as for `HeldTokens`.
    """

    def __init__(self, probe: ProbeInput, mapping: FeatureMap, *, block_bytes: int) -> None:
        self.passes = 0
        self._probe, self._mapping, self._block_bytes = probe, mapping, block_bytes
        self._labels = probe.compact_labels(probe.train_rows).reshape(-1, probe.tokens_per_row)

    def blocks(self, positions: Int64[np.ndarray, " rows"] | None = None) -> Blocks:
        """As of `HeldTokens`."""
        rows = self._probe.train_rows if positions is None else self._probe.train_rows[positions]
        labels = self._labels if positions is None else self._labels[positions]

        def one_pass() -> Iterator[Block]:
            self.passes += 1
            done = 0
            for block_rows, stored in self._probe.stored_blocks(rows, block_bytes=self._block_bytes):
                yield self._mapping.apply(stored), _flat(labels[done : done + len(block_rows)])
                done += len(block_rows)

        return one_pass

    def held(self, positions: Int64[np.ndarray, " rows"]) -> HeldTokens:
        """As of `HeldTokens`."""
        rows = self._probe.train_rows[positions]
        return HeldTokens(self._probe.trained_on(rows), self._mapping, block_bytes=self._block_bytes)


TrainingTokens: TypeAlias = HeldTokens | StoredTokens


def _flat(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Tokens one by one; labels as numbers of 64 bits."""
    rows = values.reshape(-1, *values.shape[2:])
    return rows if rows.dtype.kind == "f" else rows.astype(np.int64)
