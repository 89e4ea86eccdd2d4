"""The masks of a dataset in a store: packed as they come, read back one view at a time.

Views may differ in size, so masks stand one after another in one flat array, cut into compressed chunks (masks compress
about fifty-fold); a second array holds the size of each. Both are plain Zarr v3 arrays. They are encoded and decoded
here, not by zarr-python, for two reasons: a stranger's chunk can claim a gigabyte, and a chunk that is missing or was
changed must be noticed, not read as zeros.
"""

import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt8, UInt16

from feature_store.canonical import pretty_json
from feature_store.errors import CorruptError, ManifestError, StoreNotFoundError
from feature_store.objects import ObjectRoot, crc32c
from feature_store.records import read_json
from feature_store.zarr_metadata import GROUP_METADATA, array_metadata, bytes_codec, require_metadata

Mask: TypeAlias = UInt8[np.ndarray, "_ _"] | UInt16[np.ndarray, "_ _"]
_StoredMask: TypeAlias = UInt16[np.ndarray, "height width"]
MAX_MASK_PIXELS = 1 << 28
_CHUNK_VALUES = 1 << 22
_CHUNK_ROWS = 1 << 16
_SPOOL_BYTES = 64 << 20
_CHECKSUM_BYTES = 4
_ZSTD_LEVEL = 3
_VALUES, _SIZES = "mask_values", "mask_sizes"


def checked_mask(mask: np.ndarray[Any, Any]) -> Mask:
    """`mask`, when it is one.

    Raises:
        ManifestError: not [height, width] of uint8 or uint16, empty, or beyond `MAX_MASK_PIXELS`.
    """
    if mask.dtype not in (np.uint8, np.uint16) or mask.ndim != 2 or not 0 < mask.size <= MAX_MASK_PIXELS:
        raise ManifestError(
            f"a mask of shape {mask.shape} and dtype {mask.dtype}: masks are [height, width] of uint8 or uint16, with "
            f"1 to {MAX_MASK_PIXELS} pixels. Convert it, or give None for a view without one."
        )
    return mask


def _metadata(name: str, shape: Sequence[int]) -> dict[str, Any]:
    dtype, most, axes = {
        _VALUES: ("uint16", _CHUNK_VALUES, ("pixel",)),
        _SIZES: ("int32", _CHUNK_ROWS, ("row", "height_width")),
    }[name]
    codecs = [
        bytes_codec(dtype),
        {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}},
        {"name": "crc32c"},
    ]
    chunk_shape = (min(max(shape[0], 1), most), *shape[1:])
    return array_metadata(shape=shape, chunk_shape=chunk_shape, dtype=dtype, codecs=codecs, axes=axes)


def _encode(values: np.ndarray[Any, Any]) -> bytes:
    """One chunk: compressed, then its checksum."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    body = bytes(pa.Codec("zstd", compression_level=_ZSTD_LEVEL).compress(little.tobytes(), asbytes=True))
    return body + crc32c([body]).to_bytes(_CHECKSUM_BYTES, "little")


class MaskPacker:
    """Packs masks in row order; memory is bounded by a chunk, the largest mask and the sizes.

    What is packed waits in a temporary file without a name, since a dataset's place is known only after its last mask.
    The file goes when this does, or when it is closed.
    """

    def __init__(self) -> None:
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115, the next line ends it
        weakref.finalize(self, self._spool.close)
        self._lengths: list[int] = []
        self._pending: list[UInt16[np.ndarray, " pixels"]] = []
        self._n_pending = 0
        self._n_values = 0
        # Height and width of each row in turn, as numbers and not as objects: there may be millions of rows.
        self._sizes = array("i")

    def append(self, mask: Mask | None) -> None:
        """Add the next row's mask; None for a row without one."""
        if mask is None:
            self._sizes.extend((0, 0))
            return
        content = checked_mask(mask).astype(np.uint16)
        self._sizes.extend(content.shape)
        self._pending.append(content.reshape(-1))
        self._n_pending += content.size
        self._n_values += content.size
        if self._n_pending >= _CHUNK_VALUES:
            self._spool_whole_chunks()

    def _spool_whole_chunks(self) -> None:
        values = np.concatenate(self._pending)
        whole = len(values) // _CHUNK_VALUES * _CHUNK_VALUES
        for start in range(0, whole, _CHUNK_VALUES):
            self._add_chunk(values[start : start + _CHUNK_VALUES])
        self._pending, self._n_pending = [values[whole:].copy()], len(values) - whole

    def _add_chunk(self, values: UInt16[np.ndarray, " pixels"]) -> None:
        encoded = _encode(values)
        self._spool.write(encoded)
        self._lengths.append(len(encoded))

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Every object of `annotations.zarr` as (name, content); to be asked after the last mask."""
        rest = np.concatenate([np.empty(0, dtype=np.uint16), *self._pending])
        self._pending, self._n_pending = [], 0  # it is spooled below, so that asking again adds nothing
        if len(rest):
            # Zarr fills the last chunk up; a set of less than one chunk has a chunk of its own length.
            padded = np.zeros(min(self._n_values, _CHUNK_VALUES), dtype=np.uint16)
            padded[: len(rest)] = rest
            self._add_chunk(padded)
        self._spool.seek(0)
        for index, length in enumerate(self._lengths):
            yield f"{_VALUES}/c/{index}", self._spool.read(length)
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        chunk_rows = min(max(len(sizes), 1), _CHUNK_ROWS)
        for index, start in enumerate(range(0, len(sizes), chunk_rows)):
            padded_sizes = np.zeros((chunk_rows, 2), dtype=np.int32)
            some = sizes[start : start + chunk_rows]
            padded_sizes[: len(some)] = some
            yield f"{_SIZES}/c/{index}/0", _encode(padded_sizes)
        yield f"{_VALUES}/zarr.json", pretty_json(_metadata(_VALUES, (self._n_values,)))
        yield f"{_SIZES}/zarr.json", pretty_json(_metadata(_SIZES, sizes.shape))
        yield "zarr.json", pretty_json(dict(GROUP_METADATA))

    def close(self) -> None:
        """Free the temporary file."""
        self._spool.close()


class MaskReader:
    """The masks of a dataset, from the store.

    Args:
        root: the store.
        folder: `annotations.zarr` of the dataset.
        n_rows: of the dataset.

    Raises:
        CorruptError: the arrays are not those of so many rows.
    """

    def __init__(self, root: ObjectRoot, folder: str, n_rows: int) -> None:
        self._root, self._folder = root, folder
        sizes = _ChunkedArray(root, folder, _SIZES, (n_rows, 2)).read(0, n_rows).astype(np.int64)
        if sizes.min() < 0 or (sizes.prod(axis=1) > MAX_MASK_PIXELS).any():
            raise CorruptError(f"{folder}/{_SIZES} states impossible sizes. {_remedy(folder)}")
        self._sizes: Int64[np.ndarray, "rows 2"] = sizes
        self._offsets: Int64[np.ndarray, " rows_and_end"] = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
        self._values = _ChunkedArray(root, folder, _VALUES, (int(self._offsets[-1]),))

    def has_mask(self, row: int) -> bool:
        """Whether the view has a mask."""
        return bool(self._offsets[row + 1] > self._offsets[row])

    @property
    def with_mask(self) -> Bool[np.ndarray, " rows"]:
        """Whether each view has a mask."""
        return np.diff(self._offsets) > 0

    @property
    def any_mask(self) -> bool:
        """Whether any view has a mask."""
        return bool(self._offsets[-1] > 0)

    def all_shaped_as(self, height: int, width: int) -> bool:
        """Whether every mask has the proportions of this size."""
        return bool((self._sizes[:, 0] * width == self._sizes[:, 1] * height).all())

    def read(self, row: int) -> _StoredMask:
        """The mask of one view, raw values; [0, 0] for a view without one.

        Raises:
            IndexError: no such row.
            CorruptError: a chunk is missing or was changed.
        """
        if not 0 <= row < len(self._sizes):
            raise IndexError(f"row {row} asked of masks of rows 0..{len(self._sizes) - 1}; rows count from 0.")
        height, width = self._sizes[row].tolist()
        return self._values.read(int(self._offsets[row]), int(self._offsets[row + 1])).reshape(height, width)

    def iter_masks(self, rows: Iterable[int]) -> Iterator[_StoredMask]:
        """The masks of some rows; of ascending rows each chunk is opened once. Memory is one chunk and one mask."""
        return (self.read(row) for row in rows)


class _ChunkedArray:
    """An array in compressed chunks along its first axis, of which the last one opened is kept."""

    def __init__(self, root: ObjectRoot, folder: str, name: str, shape: tuple[int, ...]) -> None:
        self._root, self._folder, self._array, self._n_axes = root, folder, f"{folder}/{name}", len(shape)
        expected = _metadata(name, shape)
        path = f"{self._array}/zarr.json"
        try:
            require_metadata(read_json(root, path), expected, path)
        except StoreNotFoundError as error:
            raise CorruptError(f"{path} is missing. {_remedy(folder)}") from error
        self._dtype = np.dtype(expected["data_type"]).newbyteorder("<")
        self._chunk_shape: tuple[int, ...] = tuple(expected["chunk_grid"]["configuration"]["chunk_shape"])
        self._held: tuple[int, np.ndarray[Any, Any]] | None = None

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Entries `start`:`stop` of the first axis, as a new array."""
        rows = self._chunk_shape[0]
        parts = [np.empty((0, *self._chunk_shape[1:]), dtype=self._dtype)]
        chunks = range(start // rows, -(-stop // rows) if stop > start else 0)
        parts += [self._chunk(index)[max(start - index * rows, 0) : stop - index * rows] for index in chunks]
        return np.concatenate(parts)

    def _chunk(self, index: int) -> np.ndarray[Any, Any]:
        if self._held is None or self._held[0] != index:
            self._held = (index, self._open_chunk(index))
        return self._held[1]

    def _open_chunk(self, index: int) -> np.ndarray[Any, Any]:
        path = "/".join([self._array, "c", str(index), *["0"] * (self._n_axes - 1)])
        size_bytes = prod(self._chunk_shape) * self._dtype.itemsize
        try:
            # What does not compress grows by less than this.
            data = self._root.read(path, max_bytes=size_bytes + (1 << 20))
        except StoreNotFoundError as error:
            raise CorruptError(f"{path} is missing. {_remedy(self._folder)}") from error
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if crc32c([body]).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            raise CorruptError(f"{path} was changed after it was written. {_remedy(self._folder)}")
        try:
            # Into a buffer of the right size: what the chunk claims of itself is not believed.
            values = pa.Codec("zstd").decompress(body, decompressed_size=size_bytes, asbytes=True)
        except MemoryError:
            raise  # Arrow's too: the machine failed, not the data
        except (pa.ArrowException, OSError) as error:
            raise CorruptError(f"{path} cannot be decompressed ({error}). {_remedy(self._folder)}") from error
        return np.frombuffer(values, dtype=self._dtype).reshape(self._chunk_shape)


def _remedy(folder: str) -> str:
    return f"Move {folder.rpartition('/')[0]} away and run the same `vitrine extract` again, which writes it anew."
