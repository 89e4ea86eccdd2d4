"""Reading one array of a feature set: by memory map where the disk is local, by ranges of bytes behind a URL.

Either is trusted only after zarr.json, the object's size and its index have been checked; whatever else is found goes
to zarr-python, which reads any legal shard. Nothing is read that is not asked for. Maps that blocks come from are let
go at once, so that memory does not grow; of those that few rows were picked from a bounded number is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped

from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.kept_maps import mapped
from feature_store.layout import shard_object
from feature_store.objects import ObjectRoot
from feature_store.read_ahead import read_ahead
from feature_store.records import read_json
from feature_store.remote_reads import RemoteShard, as_slice
from feature_store.shard_format import ArrayLayout, encode_index
from feature_store.shards import ROWS_PER_CHUNK, Shard, shards_of
from feature_store.zarr_metadata import require_metadata

Rows: TypeAlias = Shaped[np.ndarray, "rows ..."]
RowNumbers: TypeAlias = Int64[np.ndarray, " rows"]
Items: TypeAlias = slice | Int64[np.ndarray, " items"]

# Where less than an eighth of a shard is asked for, its map stays open for whoever asks next.
_FEW_ROWS = 8
_LARGE_ROW_BYTES = 1 << 13
_WHOLE_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class StatedChecksums:
    """The checksums of some objects, by path: what a reader needs to know of receipts, and may take elsewhere."""

    by_path: Mapping[str, int]

    def __call__(self, shard: Shard, path: str) -> int | None:
        """The CRC-32C of the object at `path`, where it is known."""
        return self.by_path.get(path)


class TokenReader:
    """The rows of one array.

    Args:
        root: the store.
        array: the array's path.
        layout: what the feature set declares of it.
        checksum_of: the CRC-32C of the object at a path that holds a shard, where it is known.

    Raises:
        CorruptError: the array's zarr.json is missing, or says something else.
    """

    def __init__(
        self,
        root: ObjectRoot,
        array: str,
        layout: ArrayLayout,
        checksum_of: Callable[[Shard, str], int | None] = lambda shard, path: None,
    ) -> None:
        self._root = root
        self._is_local = root.local_path(array) is not None
        self._checksum_of = checksum_of
        self._array = array
        self._layout = layout
        self._shards = shards_of(layout.n_rows, layout.rows_per_shard)
        # Where shards of a local disk stand, links resolved once; that takes longer than to map one.
        self._places: dict[int, Path] = {}
        path = f"{array}/zarr.json"
        try:
            require_metadata(read_json(root, path), layout.metadata(), path)
        except StoreNotFoundError as error:
            raise CorruptError(
                f"{path} is missing, so nothing says how the array is laid out. Restore it from a copy, or run the "
                "same `vitrine extract` again."
            ) from error

    def blocks(self, rows: RowNumbers, max_rows: int, items: Items | None = None) -> Iterator[tuple[RowNumbers, Rows]]:
        """Ascending rows, in blocks of at most `max_rows` that never cross a shard.

        Args:
            rows, max_rows: as said.
            items: positions on the axis behind the rows (patches, mostly); None for all.

        Yields:
            (row numbers [n], rows [n, ...] in the storage dtype). Consecutive rows of a mapped shard are a read-only
            view of the file; others are a copy.
        """
        shard_of_row = rows // self._layout.rows_per_shard
        groups = np.split(rows, np.flatnonzero(np.diff(shard_of_row)) + 1) if rows.size else []
        parts = [self._in_shard(group) for group in groups]
        bodies = map(self._open_local, parts) if self._is_local else read_ahead(self._open_remote, parts)
        for (shard, wanted), body in zip(parts, bodies, strict=True):
            if isinstance(body, RemoteShard):
                # Rows come whole and are cut afterwards, so it is whole rows that must fit.
                at_once = max_rows if items is None else min(max_rows, max(1, _WHOLE_BYTES // self._layout.row_bytes))
                for some, block in body.blocks(at_once):
                    yield some + shard.start, _taken(block, slice(None), items)
                continue
            for begin in range(0, len(wanted), max_rows):
                some = wanted[begin : begin + max_rows]
                yield some + shard.start, _taken(body, as_slice(some), items)

    def gather(self, rows: RowNumbers, items: Items | None = None) -> Rows:
        """The given rows, in the order given, as a new array; of each the `items` on its first axis, or all."""
        shape = self._layout.row_shape
        if items is not None:
            shape = (np.empty(shape[0], dtype=bool)[items].size, *shape[1:])
        gathered = np.empty((len(rows), *shape), dtype=self._layout.dtype)
        shard_of_row = rows // self._layout.rows_per_shard
        places = [np.flatnonzero(shard_of_row == index) for index in np.unique(shard_of_row)]
        if self._is_local:
            for some in places:
                self._copy_local(gathered, some, rows[some], items)
            return gathered
        fetched = read_ahead(lambda some: self._fetch(rows[some], items), places)
        for some, found in zip(places, fetched, strict=True):
            gathered[as_slice(some)] = found
        return gathered

    def _in_shard(self, rows: RowNumbers) -> tuple[Shard, RowNumbers]:
        """The shard that rows lie in, and their numbers counted from its first."""
        shard = self._shards[int(rows[0]) // self._layout.rows_per_shard]
        return shard, rows - shard.start

    def _copy_local(
        self, gathered: np.ndarray[Any, Any], places: RowNumbers, rows: RowNumbers, items: Items | None
    ) -> None:
        """Put rows of one shard on this disk into their places."""
        shard, wanted = self._in_shard(rows)
        body = self._open_local((shard, wanted), keep=len(places) * _FEW_ROWS < shard.n_rows)
        if isinstance(body, np.ndarray) and items is None and self._layout.row_bytes >= _LARGE_ROW_BYTES:
            for place, row in zip(places.tolist(), wanted.tolist(), strict=True):
                gathered[place] = body[row]  # one copy; fancy indexing on both sides makes two
        else:
            gathered[as_slice(places)] = _taken(body, as_slice(wanted), items)

    def _fetch(self, rows: RowNumbers, items: Items | None) -> Rows:
        """Rows of one shard behind a URL, in any order."""
        shard, wanted = self._in_shard(rows)
        unique, places = np.unique(wanted, return_inverse=True)
        body = self._open_remote((shard, unique))
        if isinstance(body, RemoteShard):
            return _taken(body.all_rows(), as_slice(places), items)
        return _taken(body, as_slice(wanted), items)

    def _open_local(self, part: tuple[Shard, RowNumbers], *, keep: bool = False) -> "Rows | _ZarrRows":
        shard, _ = part
        name = self._object_of(shard)
        try:
            opened = self._map(shard, self._places.get(shard.index) or self._local_path(name), keep=keep)
        except (FileNotFoundError, NotADirectoryError) as error:  # StoreNotFoundError is one
            raise missing_object(name) from error
        return opened if opened is not None else _ZarrRows(self._zarr_array, shard)

    def _open_remote(self, part: tuple[Shard, RowNumbers]) -> "RemoteShard | _ZarrRows":
        """The shard by ranges; its size is the receipt's affair, which was held to it when it was read."""
        shard, wanted = part
        name = self._object_of(shard)
        checksum = self._checksum_of(shard, name)
        remote = RemoteShard(self._root, name, self._layout, n_rows=shard.n_rows, checksum=checksum, rows=wanted)
        try:
            return remote if remote.open() else _ZarrRows(self._zarr_array, shard)
        except StoreNotFoundError as error:
            raise missing_object(name) from error

    def _object_of(self, shard: Shard) -> str:
        return shard_object(self._array, shard, 1 + len(self._layout.row_shape))

    def _local_path(self, name: str) -> Path:
        place = self._root.local_path(name)
        assert place is not None, "asked of a local root alone"
        return place

    def _map(self, shard: Shard, place: Path, *, keep: bool) -> Rows | None:
        layout = self._layout
        octets = mapped(place, layout.shard_bytes(shard.n_rows), keep=keep)
        self._places[shard.index] = place
        index = encode_index(layout, layout.n_chunks(shard.n_rows))
        if octets is None or octets[-layout.index_bytes :].tobytes() != index:
            return None
        body = octets[: shard.n_rows * layout.row_bytes]
        return body.view(np.dtype(layout.dtype).newbyteorder("<")).reshape(shard.n_rows, *layout.row_shape)

    @cached_property
    def _zarr_array(self) -> Any:
        # The metadata has been held to one codec that runs nobody's code and claims no more than a chunk.
        import zarr

        return zarr.open_array(self._root.zarr_store(self._array), mode="r", zarr_format=3)


def missing_object(name: str) -> CorruptError:
    """The error that says that an object is gone, though its receipt is there."""
    return CorruptError(
        f"{name} is missing, though its receipt says it is there. Run the same `vitrine extract` again."
    )


def _taken(body: "Rows | _ZarrRows", rows: slice | RowNumbers, items: Items | None) -> Rows:
    """Rows of a shard, and of each the items asked for; of a map nothing else is touched."""
    if isinstance(body, _ZarrRows):
        return body.take(rows, items)
    if items is None:
        return body[rows]
    if isinstance(rows, slice) or isinstance(items, slice):
        return body[rows, items]
    return np.asarray(body[np.ix_(rows, items)])


class _ZarrRows:
    """The rows of one shard through zarr-python, chunk by chunk; never a whole large array."""

    def __init__(self, array: Any, shard: Shard) -> None:
        self._array = array
        self._shard = shard

    def take(self, rows: slice | RowNumbers, items: Items | None) -> Rows:
        """Some rows, and of each some items; what is not asked for is dropped chunk by chunk."""
        if items is None and isinstance(rows, slice):
            return self._read(rows.start, rows.stop)
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        found: Rows | None = None
        chunk_of_row = numbers // ROWS_PER_CHUNK
        for chunk in np.unique(chunk_of_row):
            places = np.flatnonzero(chunk_of_row == chunk)
            start = int(chunk) * ROWS_PER_CHUNK
            values = self._read(start, min(start + ROWS_PER_CHUNK, self._shard.n_rows))[numbers[places] - start]
            values = values if items is None else values[:, items]
            if found is None:
                found = np.empty((len(numbers), *values.shape[1:]), dtype=values.dtype)
            found[places] = values
        assert found is not None, "a shard is opened for at least one row"
        return found

    def _read(self, start: int, stop: int) -> Rows:
        try:
            return np.asarray(self._array[self._shard.start + start : self._shard.start + stop])
        except OSError:
            raise
        except Exception as error:
            # A broken index leads zarr-python into errors of every kind.
            raise CorruptError(
                f"shard {self._shard.index} of {self._array.store} is neither Vitrine's nor one that zarr-python can "
                f"read ({error!r}). Remove its receipt and run the same `vitrine extract` again."
            ) from error
