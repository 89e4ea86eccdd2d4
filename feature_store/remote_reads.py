"""Rows of one shard behind a URL: fetched by ranges out of its body, a few large requests at a time.

Like the map of a local file it rests on the layout that every shard of Vitrine's has, so the index is compared first.
A shard that is read whole is also held to its receipt's checksum, before its last rows are given away.
"""

from collections.abc import Iterator
from functools import cached_property
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
# A shard object up to this size comes whole, index and all, in its first request.
_SMALL_BYTES = 256 << 10
_PIECE_BYTES = 8 << 20


class RemoteShard:
    """The rows of one shard; row numbers count from its first.

    Args:
        root: the store.
        path: of the object.
        layout: of the array.
        n_rows: of the shard.
        checksum: the object's CRC-32C, or None where nobody knows it.
    """

    def __init__(self, root: ObjectRoot, path: str, layout: ArrayLayout, n_rows: int, checksum: int | None) -> None:
        self._root = root
        self._path = path
        self._layout = layout
        self._n_rows = n_rows
        self._checksum = checksum
        self._size_bytes = layout.shard_bytes(n_rows)
        self._dtype = np.dtype(layout.dtype).newbyteorder("<")

    @cached_property
    def _small(self) -> bytes | None:
        if self._size_bytes > _SMALL_BYTES:
            return None
        data = self._root.read_range(self._path, 0, self._size_bytes)
        self._require_checksum(crc32c([data]))
        return data

    @cached_property
    def is_mappable(self) -> bool:
        """Whether the index says that the body is the rows in C order from byte 0.

        Raises:
            StoreNotFoundError: there is no such object.
            CorruptError: it is too short, or not the one that the receipt speaks of.
        """
        start = self._size_bytes - self._layout.index_bytes
        index = self._small[start:] if self._small else self._root.read_range(self._path, start, self._size_bytes)
        return index == encode_index(self._layout, self._layout.n_chunks(self._n_rows))

    def blocks(self, rows: RowNumbers, max_rows: int) -> Iterator[tuple[RowNumbers, Rows]]:
        """Ascending rows, each once, in blocks of at most `max_rows`; see `is_mappable` first.

        Raises:
            CorruptError: a shard that was read whole has not its receipt's checksum.
        """
        runs = self._runs(rows, to_edges=True)
        whole = self._checksum is not None and self._small is None and runs == [(0, self._n_rows)]
        value, reached = 0, 0
        for begin in range(0, len(rows), max_rows):
            wanted = rows[begin : begin + max_rows]
            last = begin + max_rows >= len(rows)
            if whole:
                runs = [(reached, self._n_rows if last else int(wanted[-1]) + 1)]
                reached = runs[0][1]
            else:
                runs = self._runs(wanted, to_edges=False)
            block = np.empty((len(wanted), *self._layout.row_shape), dtype=self._layout.dtype)
            for octets in self._fill(block, wanted, runs):
                value = crc32c([octets], value) if whole else 0
            if whole and last:
                tail = self._root.read_range(self._path, self._n_rows * self._layout.row_bytes, self._size_bytes)
                self._require_checksum(crc32c([tail], value))
            yield wanted, block

    def gather(self, rows: RowNumbers) -> Rows:
        """Rows in any order, as a new array."""
        wanted, places = np.unique(rows, return_inverse=True)
        ((_, block),) = self.blocks(wanted, len(wanted))
        return block if np.array_equal(wanted, rows) else block[places]

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
        for (start, stop), octets in zip(spans, self._read(octet_spans), strict=True):
            values = np.frombuffer(octets, dtype=self._dtype).reshape(stop - start, *self._layout.row_shape)
            low, high = np.searchsorted(wanted, [start, stop])
            block[low:high] = values if high - low == stop - start else values[wanted[low:high] - start]
            yield octets

    def _read(self, spans: list[Span]) -> Iterator[Buffer]:
        small = self._small
        if small is not None:
            return (small[start:stop] for start, stop in spans)
        return self._root.read_ranges(self._path, spans)

    def _require_checksum(self, value: int) -> None:
        if self._checksum is not None and value != self._checksum:
            raise CorruptError(
                f"{self._path} is not what its receipt says (checksum): its bytes were changed after they were "
                "written. Move it away and run the same `vitrine extract` again, which computes that shard alone."
            )
