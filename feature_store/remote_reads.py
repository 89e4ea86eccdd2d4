"""Rows of one shard behind a URL: fetched by ranges out of its body, a few large requests at a time.

Like the map of a local file it rests on the layout that every shard of Vitrine's has, so the index is compared first.
A shard that is read whole is also held to its receipt's checksum, before its last rows are given away.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped

from feature_store.durable_files import Buffer
from feature_store.errors import CorruptError
from feature_store.objects import ObjectRoot, crc32c
from feature_store.shard_format import ArrayLayout, encode_index

Rows: TypeAlias = Shaped[np.ndarray, "rows ..."]
RowNumbers: TypeAlias = Int64[np.ndarray, " rows"]
Span: TypeAlias = tuple[int, int]

# A request costs about as much as reading on over so many bytes, so nearer runs are read as one.
_GAP_BYTES = 256 << 10
# A shard object up to this size comes whole, index and all, whichever rows are wanted; one up to a piece where all are.
_SMALL_BYTES = 256 << 10
_PIECE_BYTES = 8 << 20


class RemoteShard:
    """Some rows of one shard; row numbers count from its first.

    Args:
        root: the store.
        path: of the object.
        layout: of the array.
        n_rows: of the shard.
        checksum: the object's CRC-32C, or None where nobody knows it.
        rows: those wanted, ascending, each once, at least one.
    """

    def __init__(
        self, root: ObjectRoot, path: str, layout: ArrayLayout, *, n_rows: int, checksum: int | None, rows: RowNumbers
    ) -> None:
        self._root = root
        self._path = path
        self._layout = layout
        self._n_rows = n_rows
        self._checksum = checksum
        self._rows = rows
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")
        self._size_bytes = layout.shard_bytes(n_rows)
        self._body_bytes = n_rows * layout.row_bytes
        self._reads_all = self._runs(rows, to_edges=True) == [(0, n_rows)]
        # Either all rows of an object that came whole, or what stands behind them: padding and index.
        self._all_rows: Rows | None = None
        self._tail = b""

    def open(self) -> bool:
        """Make the first request; False where the body is not the rows in C order from byte 0.

        Raises:
            StoreNotFoundError: there is no such object.
            CorruptError: it is too short, or not the one that the receipt speaks of.
        """
        comes_whole = self._size_bytes <= (_PIECE_BYTES if self._reads_all else _SMALL_BYTES)
        octets = self._root.read_range(self._path, 0 if comes_whole else self._body_bytes, self._size_bytes)
        if comes_whole:
            self._require_checksum(crc32c([octets]))
            self._all_rows = self._as_rows(memoryview(octets)[: self._body_bytes])
        else:
            self._tail = octets
        return octets.endswith(encode_index(self._layout, self._layout.n_chunks(self._n_rows)))

    def blocks(self, max_rows: int) -> Iterator[tuple[RowNumbers, Rows]]:
        """The rows in blocks of at most `max_rows`, once opened; some are read-only.

        Raises:
            CorruptError: a shard that was read whole has not its receipt's checksum.
        """
        if self._all_rows is not None:
            for begin in range(0, len(self._rows), max_rows):
                wanted = self._rows[begin : begin + max_rows]
                yield wanted, self._all_rows[as_slice(wanted)]
            return
        checked = self._reads_all
        value, reached = 0, 0
        for begin in range(0, len(self._rows), max_rows):
            wanted = self._rows[begin : begin + max_rows]
            last = begin + max_rows >= len(self._rows)
            if checked:
                runs = [(reached, self._n_rows if last else int(wanted[-1]) + 1)]
                reached = runs[0][1]
            else:
                runs = self._runs(wanted, to_edges=False)
            block = np.empty((len(wanted), *self._layout.row_shape), dtype=self._layout.dtype)
            for octets in self._fill(block, wanted, runs):
                value = crc32c([octets], value) if checked else 0
            if checked and last:
                self._require_checksum(crc32c([self._tail], value))
            yield wanted, block

    def all_rows(self) -> Rows:
        """All rows wanted as one array, once opened."""
        ((_, block),) = self.blocks(len(self._rows))
        return block

    def _runs(self, rows: RowNumbers, *, to_edges: bool) -> list[Span]:
        """Runs of rows to fetch: near ones as one, and up to the shard's edges where those are near."""
        gap_rows = _GAP_BYTES // max(1, self._layout.row_bytes)
        breaks = np.flatnonzero(np.diff(rows) > 1 + gap_rows)
        starts = rows[np.concatenate([[0], breaks + 1])].tolist()
        stops = (rows[np.concatenate([breaks, [len(rows) - 1]])] + 1).tolist()
        if to_edges and starts[0] <= gap_rows and stops[-1] >= self._n_rows - gap_rows:
            starts[0], stops[-1] = 0, self._n_rows
        return list(zip(starts, stops, strict=True))

    def _fill(self, block: Rows, wanted: RowNumbers, runs: list[Span]) -> Iterator[Buffer]:
        """Fetch runs of rows, put those wanted into their places, and give the bytes of each piece in order."""
        row_bytes = self._layout.row_bytes
        step = max(1, _PIECE_BYTES // max(1, row_bytes))
        spans = [(begin, min(begin + step, stop)) for start, stop in runs for begin in range(start, stop, step)]
        octet_spans = [(start * row_bytes, stop * row_bytes) for start, stop in spans]
        for (start, stop), octets in zip(spans, self._root.read_ranges(self._path, octet_spans), strict=True):
            values = self._as_rows(octets)
            low, high = np.searchsorted(wanted, [start, stop])
            block[low:high] = values if high - low == stop - start else values[wanted[low:high] - start]
            yield octets

    def _as_rows(self, octets: Buffer) -> Rows:
        return np.frombuffer(octets, dtype=self._dtype).reshape(-1, *self._layout.row_shape)

    def _require_checksum(self, value: int) -> None:
        if self._checksum is not None and value != self._checksum:
            raise CorruptError(
                f"{self._path} is not what its receipt says (checksum): its bytes were changed after they were "
                "written. Move it away and run the same `vitrine extract` again, which computes that shard alone."
            )


def as_slice(numbers: RowNumbers) -> slice | RowNumbers:
    """Consecutive numbers as a slice, which copies nothing; others as they are."""
    consecutive = bool((np.diff(numbers) == 1).all())
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if consecutive else numbers
