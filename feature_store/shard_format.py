"""The bytes of one shard of a Zarr v3 array, as Vitrine lays every array out.

Sharded, inner chunk (8 rows, everything else), inner codec `bytes` alone, index at the end. So a shard's body is its
rows in C order from byte 0, which a reader can map, and a writer can write without building chunks first. The index
says what zarr-python's `write_empty_chunks=True` would say: every chunk with rows is present. Chunks that lie wholly
behind the array's last row are absent.

The format is the `sharding_indexed` codec of the Zarr v3 specification (ZEP 2).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from feature_store.durable_files import Buffer
from feature_store.errors import ShardError
from feature_store.objects import crc32c
from feature_store.shards import ROWS_PER_CHUNK
from feature_store.zarr_metadata import array_metadata, bytes_codec

_ABSENT = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_INDEX_ENTRY_BYTES = 16
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """The shape of one array and of its shards.

    Attributes:
        n_rows: length of the first axis.
        row_shape: the other axes.
        dtype: `float16`, `float32` or `bool`.
        rows_per_shard: a multiple of `ROWS_PER_CHUNK`.
        axes: names of the axes, `row` first.
    """

    n_rows: int
    row_shape: tuple[int, ...]
    dtype: str
    rows_per_shard: int
    axes: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row."""
        return prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def chunk_bytes(self) -> int:
        """Stored bytes of one inner chunk."""
        return ROWS_PER_CHUNK * self.row_bytes

    def n_chunks(self, n_rows: int) -> int:
        """How many inner chunks `n_rows` rows fill, the last one perhaps in part."""
        return -(-n_rows // ROWS_PER_CHUNK)

    def shard_bytes(self, n_rows: int) -> int:
        """Size of a shard object that holds `n_rows` rows."""
        return self.n_chunks(n_rows) * self.chunk_bytes + self.index_bytes

    @property
    def index_bytes(self) -> int:
        """Size of the index at the end of every shard."""
        return self.n_chunks(self.rows_per_shard) * _INDEX_ENTRY_BYTES + _CHECKSUM_BYTES

    def metadata(self) -> dict[str, Any]:
        """The array's `zarr.json`."""
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [ROWS_PER_CHUNK, *self.row_shape],
                "codecs": [bytes_codec(self.dtype)],
                "index_codecs": [bytes_codec("uint64"), {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        return array_metadata(
            shape=(self.n_rows, *self.row_shape),
            chunk_shape=(self.rows_per_shard, *self.row_shape),
            dtype=self.dtype,
            codecs=[sharding],
            axes=self.axes,
        )


def encode_shard(layout: ArrayLayout, rows: np.ndarray[Any, Any]) -> list[Buffer]:
    """The bytes of a shard, in parts that copy no row.

    Args:
        layout: of the array.
        rows: the shard's rows, C contiguous, [rows, *row_shape]; fewer than `rows_per_shard` only in the last shard.

    Returns:
        Body, padding of the last chunk where it is not full, and index.

    Raises:
        ShardError: wrong shape or dtype, or too many rows.
    """
    if rows.shape[1:] != layout.row_shape or rows.dtype != np.dtype(layout.dtype):
        raise ShardError(
            f"rows of shape {rows.shape[1:]} and dtype {rows.dtype} do not fit an array of rows {layout.row_shape} and "
            f"dtype {layout.dtype}; write what the feature set declares."
        )
    if not 0 < len(rows) <= layout.rows_per_shard:
        raise ShardError(f"{len(rows)} rows do not make a shard of {layout.rows_per_shard}; see shards_of().")
    present = layout.n_chunks(len(rows))
    padding_bytes = present * layout.chunk_bytes - len(rows) * layout.row_bytes
    body = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    return [body, bytes(padding_bytes), encode_index(layout, present)]


@lru_cache(maxsize=2)
def encode_index(layout: ArrayLayout, present: int) -> bytes:
    """The index of a shard whose first `present` chunks are there, one after another from byte 0."""
    entries = np.full((layout.n_chunks(layout.rows_per_shard), 2), _ABSENT, dtype="<u8")
    entries[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(layout.chunk_bytes)
    entries[:present, 1] = layout.chunk_bytes
    index = entries.tobytes()
    return index + crc32c([index]).to_bytes(_CHECKSUM_BYTES, "little")
