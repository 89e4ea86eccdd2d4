"""Pure arithmetic of shards: which rows belong together, and which are missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

from feature_store.errors import ShardError

ROWS_PER_CHUNK = 8


@dataclass(frozen=True, kw_only=True, order=True, slots=True)
class Shard:
    """A run of consecutive rows that one worker computes and commits as a whole.

    Attributes:
        index: the position among the shards of the feature set, from 0.
        start, stop: the rows, half open.
    """

    index: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ShardError(f"shard {self.index} has rows {self.start}:{self.stop}; a shard holds at least one row.")

    @property
    def n_rows(self) -> int:
        """How many rows the shard holds."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """The stem of the receipt's file name; sorts as the index does."""
        return f"{self.index:06d}"


@lru_cache(maxsize=4)
def shards_of(n_rows: int, rows_per_shard: int) -> tuple[Shard, ...]:
    """Cut rows 0..n_rows into shards; only the last may be shorter.

    Raises:
        ShardError: no rows, or `rows_per_shard` is not a positive multiple of a chunk's rows.
    """
    if n_rows < 1:
        raise ShardError(f"{n_rows} rows cannot be cut into shards; a feature set has at least one row.")
    if rows_per_shard < ROWS_PER_CHUNK or rows_per_shard % ROWS_PER_CHUNK:
        raise ShardError(
            f"{rows_per_shard} rows per shard: must be a positive multiple of {ROWS_PER_CHUNK}, the rows of a chunk."
        )
    starts = range(0, n_rows, rows_per_shard)
    return tuple(
        Shard(index=index, start=start, stop=min(start + rows_per_shard, n_rows)) for index, start in enumerate(starts)
    )


def missing_shards(all_shards: Iterable[Shard], committed: Iterable[int]) -> tuple[Shard, ...]:
    """The shards whose index is not among the committed ones, in order."""
    done = frozenset(committed)
    return tuple(shard for shard in all_shards if shard.index not in done)


def suggest_rows_per_shard(
    n_rows: int, bytes_per_row: int, *, multiple_of: int = 1, target_bytes: int = 64 << 20, least_shards: int = 16
) -> int:
    """Rows per shard: large enough to write well, small enough that a killed run loses little.

    Args:
        n_rows: rows of the feature set.
        bytes_per_row: stored bytes of one row over all arrays.
        multiple_of: the batch size, so that no batch but the last is padded.
        target_bytes: no shard is larger, unless one batch is.
        least_shards: a small set is cut into about so many, so that workers share it and a resume loses little.
    """
    unit = lcm(ROWS_PER_CHUNK, multiple_of)
    by_size = target_bytes // max(1, bytes_per_row)
    by_count = -(-n_rows // least_shards)
    return max(1, min(by_size, by_count) // unit) * unit
