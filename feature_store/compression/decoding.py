"""Reading quantised tokens as the values that they stand for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from feature_store.compression.codec import Quantiser
from feature_store.token_reader import Items, RowNumbers, Rows, TokenReader


class DecodingReader:
    """The rows of one int8 array as float32.

    Args:
        reader: of the array.
        quantiser: of its layer and token kind.
        valid: whether each row of the feature set has tokens; those without are zero, whatever level 0 stands for.
    """

    def __init__(self, reader: TokenReader, quantiser: Quantiser, valid: Bool[np.ndarray, " rows"]) -> None:
        self._reader, self._quantiser, self._valid = reader, quantiser, valid

    def blocks(self, rows: RowNumbers, max_rows: int, items: Items | None = None) -> Iterator[tuple[RowNumbers, Rows]]:
        """As `TokenReader.blocks`; every block is a copy."""
        for wanted, levels in self._reader.blocks(rows, max_rows, items):
            yield wanted, self._decode(wanted, levels)

    def gather(self, rows: RowNumbers, items: Items | None = None) -> Rows:
        """As `TokenReader.gather`."""
        return self._decode(rows, self._reader.gather(rows, items))

    def _decode(self, rows: RowNumbers, levels: np.ndarray[Any, Any]) -> Rows:
        values = self._quantiser.decode(levels)
        values[~self._valid[rows]] = 0
        return values
