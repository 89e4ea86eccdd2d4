"""shards: which rows belong together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import Shard, ShardError, missing_shards, shards_of, suggest_rows_per_shard
from feature_store.shards import ROWS_PER_CHUNK

_ROWS = st.integers(1, 5000)
_ROWS_PER_SHARD = st.integers(1, 40).map(lambda chunks: chunks * ROWS_PER_CHUNK)


@given(_ROWS, _ROWS_PER_SHARD)
def test_shards_cover_every_row_once_in_order_and_all_but_the_last_are_full(n_rows: int, rows_per_shard: int) -> None:
    shards = shards_of(n_rows, rows_per_shard)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(n_rows))
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert {shard.n_rows for shard in shards[:-1]} <= {rows_per_shard}
    assert shards[-1].n_rows <= rows_per_shard
    assert [shard.name for shard in shards] == sorted(shard.name for shard in shards)


@given(_ROWS, _ROWS_PER_SHARD, st.sets(st.integers(0, 700)))
def test_missing_shards_are_those_not_committed(n_rows: int, rows_per_shard: int, committed: set[int]) -> None:
    shards = shards_of(n_rows, rows_per_shard)
    missing = missing_shards(shards, committed)
    assert {shard.index for shard in missing} == {shard.index for shard in shards} - committed
    assert list(missing) == sorted(missing)


@given(_ROWS, st.integers(1, 10**8), st.integers(1, 300))
def test_a_suggested_shard_is_whole_chunks_and_whole_batches(n_rows: int, bytes_per_row: int, batch: int) -> None:
    rows = suggest_rows_per_shard(n_rows, bytes_per_row, multiple_of=batch)
    assert rows > 0
    assert rows % ROWS_PER_CHUNK == 0
    assert rows % batch == 0
    smallest = next(unit for unit in range(batch, 9 * batch, batch) if unit % ROWS_PER_CHUNK == 0)
    assert rows == smallest or rows * bytes_per_row <= 64 << 20


@pytest.mark.parametrize("n_rows", [0, -3])
def test_no_rows_make_no_shards(n_rows: int) -> None:
    with pytest.raises(ShardError, match=f"^{n_rows} rows cannot be cut into shards"):
        shards_of(n_rows, 8)


@pytest.mark.parametrize("rows_per_shard", [0, -8, 4, 12])
def test_a_shard_is_a_multiple_of_a_chunk(rows_per_shard: int) -> None:
    with pytest.raises(ShardError, match=f"^{rows_per_shard} rows per shard: must be a positive multiple of 8"):
        shards_of(100, rows_per_shard)


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 3), (-1, 3)])
def test_a_shard_holds_at_least_one_row(start: int, stop: int) -> None:
    with pytest.raises(ShardError, match=f"^shard 0 has rows {start}:{stop}"):
        Shard(index=0, start=start, stop=stop)
