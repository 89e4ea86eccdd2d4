"""Reading one array of a feature set: by memory map where the disk is local, else through zarr-python.

A map is trusted only after zarr.json, the object's size and its index have been checked; whatever else is found goes to
zarr-python, which reads any legal array. Nothing is read that is not asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError
from feature_store.layout import shard_object
from feature_store.objects import ObjectRoot
from feature_store.shard_format import ArrayLayout, check_metadata, encode_index
from feature_store.shards import Shard, shards_of

Rows = np.ndarray[Any, Any]


class TokenReader:
    """The rows of one array.

    Args:
        root: the store.
        array: the array's path.
        layout: what the feature set declares of it.
    """

    def __init__(self, root: ObjectRoot, array: str, layout: ArrayLayout) -> None:
        self._root = root
        self._array = array
        self._layout = layout
        self._shards = shards_of(layout.n_rows, layout.rows_per_shard)
        path = f"{array}/zarr.json"
        check_metadata(parse_json(root.read(path), name=path), layout, path)

    def blocks(self, start: int, stop: int, max_rows: int) -> Iterator[tuple[int, Rows]]:
        """Rows `start`:`stop` in order, in blocks of at most `max_rows` that never cross a shard.

        Yields:
            (first row, rows [n, ...] in the storage dtype); read-only where mapped.
        """
        if start >= stop:
            return
        first, last = start // self._layout.rows_per_shard, (stop - 1) // self._layout.rows_per_shard
        for shard in self._shards[first : last + 1]:
            body = self._open_shard(shard)
            low, high = max(start, shard.start), min(stop, shard.stop)
            for begin in range(low, high, max_rows):
                end = min(begin + max_rows, high)
                yield begin, np.asarray(body[begin - shard.start : end - shard.start])

    def gather(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> Rows:
        """The given rows, in the order given, as a new array."""
        wanted = np.asarray(rows, dtype=np.int64)
        gathered = np.empty((len(wanted), *self._layout.row_shape), dtype=self._layout.dtype)
        shard_of_row = wanted // self._layout.rows_per_shard
        for index in np.unique(shard_of_row):
            shard = self._shards[index]
            places = np.flatnonzero(shard_of_row == index)
            body = self._open_shard(shard)
            if isinstance(body, np.ndarray):
                gathered[places] = body[wanted[places] - shard.start]
            else:
                for place in places:
                    gathered[place] = body[wanted[place] - shard.start]
        return gathered

    def _open_shard(self, shard: Shard) -> "Rows | _ZarrRows":
        mapped = self._map(shard)
        return mapped if mapped is not None else _ZarrRows(self._zarr_array(), shard)

    def _map(self, shard: Shard) -> Rows | None:
        layout = self._layout
        name = shard_object(self._array, shard, 1 + len(layout.row_shape))
        path = self._root.local_path(name)
        if path is None:
            return None
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise CorruptError(
                f"{name} is missing, though its receipt says it is there. Run the extraction again."
            ) from error
        present = layout.n_chunks(shard.n_rows)
        if size_bytes != layout.shard_bytes(shard.n_rows):
            return None
        octets = np.memmap(path, dtype=np.uint8, mode="r")
        if octets[-layout.index_bytes :].tobytes() != encode_index(layout, present):
            return None
        body = octets[: shard.n_rows * layout.row_bytes]
        return np.asarray(body).view(np.dtype(layout.dtype).newbyteorder("<")).reshape(shard.n_rows, *layout.row_shape)

    def _zarr_array(self) -> Any:
        # check_metadata has held the codecs to the allow-list, so opening cannot run anybody's code.
        return zarr.open_array(self._root.zarr_store(self._array), mode="r", zarr_format=3)


class _ZarrRows:
    """The rows of one shard through zarr-python; slices and single rows alone, never a whole large array."""

    def __init__(self, array: Any, shard: Shard) -> None:
        self._array = array
        self._start = shard.start

    def __getitem__(self, rows: slice | int) -> Rows:
        if isinstance(rows, slice):
            return np.asarray(self._array[self._start + rows.start : self._start + rows.stop])
        return np.asarray(self._array[self._start + int(rows)])
