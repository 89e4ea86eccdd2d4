"""reader: reading by map, by zarr-python and in blocks gives the rows that were written."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import (
    CorruptError,
    FeatureSet,
    FeatureStore,
    IncompleteError,
    StoreError,
    StoreNotFoundError,
    TokenKind,
    UnknownNameError,
    create_feature_set,
    create_store,
    open_store,
    write_shard,
)
from feature_store.arrays import token_layout
from feature_store.layout import token_array
from feature_store.objects import crc32c
from feature_store.roots import open_root
from feature_store.token_reader import TokenReader
from tests.feature_store.samples import (
    all_tokens,
    files_of,
    fill_store,
    make_spec,
    register,
    shard_tokens,
    write_missing,
)

_N_ROWS = 45
_INVALID = (0, 8, 9, 22, 23, 44)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A complete feature set on a disk; nobody changes it."""
    store = tmp_path_factory.mktemp("reader") / "store"
    return fill_store(str(store), n_rows=_N_ROWS, rows_per_shard=16, layers=(1, 2), invalid=_INVALID)


def _in_zarr(features: FeatureSet, layer: int, kind: TokenKind) -> Any:
    return zarr.open_array(Path(features.root.url) / token_array(features.folder, layer, kind), mode="r")


def _partial_set(url: str, committed: tuple[int, ...], invalid: tuple[int, ...] = ()) -> FeatureSet:
    """A feature set of which only some shards are committed; nothing else is in the store."""
    root = create_store(url)
    spec = make_spec()
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec, invalid)
    fresh = open_store(url).features()
    for shard in fresh.shards:
        if shard.index not in committed:
            Path(url, folder, "receipts", f"{shard.name}.json").unlink()
    return open_store(url).features()


_SLICES = st.builds(
    slice, *[st.none() | st.integers(-_N_ROWS - 3, _N_ROWS + 3)] * 2, st.none() | st.sampled_from([1, 2, 3, 7])
)


@settings(max_examples=60)
@given(rows=_SLICES, layer=st.sampled_from([1, 2]), kind=st.sampled_from(["patches", "cls"]))
def test_a_slice_by_map_equals_zarr_python(features: FeatureSet, rows: slice, layer: int, kind: TokenKind) -> None:
    found = features.read(layer, kind, rows)
    np.testing.assert_array_equal(found, np.asarray(_in_zarr(features, layer, kind)[...])[rows])
    np.testing.assert_array_equal(found, all_tokens(features.spec, layer, kind, _INVALID)[rows])


@settings(max_examples=60)
@given(rows=st.lists(st.integers(0, _N_ROWS - 1), max_size=60), kind=st.sampled_from(["patches", "cls"]))
def test_a_gather_keeps_the_order_asked_for(features: FeatureSet, rows: list[int], kind: TokenKind) -> None:
    expected = np.asarray(_in_zarr(features, 2, kind).oindex[rows]) if rows else None
    found = features.read("last", kind, rows)
    assert found.dtype == np.float16
    if expected is not None:
        np.testing.assert_array_equal(found, expected)
    else:
        assert found.shape == (0, *features.spec.row_shape(kind))


def test_what_is_read_is_a_new_array(features: FeatureSet) -> None:
    found = features.read(1, "cls", slice(0, 8))
    found[:] = 7
    np.testing.assert_array_equal(
        features.read(1, "cls", slice(0, 8)), all_tokens(features.spec, 1, "cls", _INVALID)[:8]
    )


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([-1], IndexError, r"rows -1\.\.-1 asked of .*, which has 0\.\.44; none counts from the end"),
        ([3, _N_ROWS], IndexError, r"rows 3\.\.45 asked of .*, which has 0\.\.44"),
        ([0.5], TypeError, r"rows of shape \(1,\) and dtype float64: give a list of row numbers"),
        ([True, False], TypeError, r"dtype bool: give a list of row numbers; np\.flatnonzero makes one of a mask"),
        ([[1, 2]], TypeError, r"rows of shape \(1, 2\) and"),
        (["a"], TypeError, "give a list of row numbers"),
    ],
)
def test_what_are_no_rows_is_refused(features: FeatureSet, rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        features.read(1, "cls", np.asarray(rows))
    with pytest.raises(error, match=message):
        features.iter_blocks(1, "cls", rows=np.asarray(rows))


@pytest.mark.parametrize("layer", ["3", 0, -1, "first", "\u00b2"])
def test_a_layer_that_is_not_stored_is_refused(features: FeatureSet, layer: Any) -> None:
    with pytest.raises(StoreError, match=r"^layer .* is not in .*; it has 1, 2\."):
        features.layer_number(layer)
    assert [features.layer_number(name) for name in ("last", 2, "1")] == [2, 2, 1]


def test_a_token_kind_that_is_not_stored_is_refused(features: FeatureSet) -> None:
    with pytest.raises(StoreError, match="has no 'registers' tokens, only patches, cls; `vitrine extract --tokens reg"):
        features.read(1, "registers")


def _joined(
    blocks: Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], row_shape: tuple[int, ...]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    parts = list(blocks)
    rows = np.concatenate([np.empty(0, np.int64), *(numbers for numbers, _ in parts)])
    return rows, np.concatenate([np.empty((0, *row_shape), np.float16), *(values for _, values in parts)])


@settings(max_examples=60)
@given(
    block_bytes=st.integers(1, 2000),
    wanted=st.none() | st.sets(st.integers(0, _N_ROWS - 1)),
    kind=st.sampled_from(["patches", "cls"]),
)
def test_blocks_hold_every_valid_row_once_whatever_their_size(
    features: FeatureSet, block_bytes: int, wanted: set[int] | None, kind: TokenKind
) -> None:
    asked = range(_N_ROWS) if wanted is None else sorted(wanted)
    expected = [row for row in asked if row not in _INVALID]
    given_rows = None if wanted is None else np.array(sorted(wanted), dtype=np.int64)
    row_bytes = token_layout(features.spec, kind).row_bytes
    blocks = list(features.iter_blocks(2, kind, rows=given_rows, block_bytes=block_bytes))
    assert all(0 < len(rows) <= max(1, block_bytes // row_bytes) for rows, _ in blocks)
    rows, values = _joined(iter(blocks), features.spec.row_shape(kind))
    assert rows.tolist() == expected
    np.testing.assert_array_equal(values, all_tokens(features.spec, 2, kind)[expected])


def test_a_block_of_consecutive_rows_is_a_view_of_the_file_that_cannot_be_written(features: FeatureSet) -> None:
    rows, block = next(iter(features.iter_blocks(1, "patches", rows=np.arange(10, 16))))
    assert rows.tolist() == list(range(10, 16))
    assert not block.flags.owndata
    assert not block.flags.writeable


def test_scattered_rows_come_in_whole_blocks_not_one_by_one(features: FeatureSet) -> None:
    every_other = np.arange(1, _N_ROWS, 2)
    blocks = list(features.iter_blocks(1, "cls", rows=every_other))
    assert len(blocks) == len(features.shards)


@pytest.mark.parametrize("rows", [[3, 2], [3, 3]])
def test_rows_of_blocks_ascend(features: FeatureSet, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="must ascend, each once; sort them, or use read"):
        features.iter_blocks(1, "cls", rows=np.array(rows))


@pytest.mark.parametrize("invalid", [(0,), (10,), (20,), (7, 8), tuple(range(8)), tuple(range(21))])
def test_invalid_rows_keep_their_place_and_are_left_out_of_blocks(store_url: str, invalid: tuple[int, ...]) -> None:
    root = create_store(store_url)
    spec = make_spec(layers=(1,))
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec, invalid)
    found = open_store(store_url).features()
    assert [entry.row for entry in found.invalid_rows] == list(invalid)
    assert np.flatnonzero(~found.valid).tolist() == list(invalid)
    np.testing.assert_array_equal(found.read(1, "patches"), all_tokens(spec, 1, "patches", invalid))
    rows, values = _joined(found.iter_blocks(1, "patches", block_bytes=60), (4, 3))
    expected = [row for row in range(21) if row not in invalid]
    assert rows.tolist() == found.rows_of_split(None).tolist() == expected
    np.testing.assert_array_equal(values, all_tokens(spec, 1, "patches")[expected])


def test_everything_can_be_asked_of_an_object_store(store_url: str) -> None:
    found = fill_store(store_url, invalid=[3], layers=(1, 2))
    assert found.complete
    assert found.stored_bytes == 21 * 2 * (4 * 3 + 3) * 2 + 21
    for kind in ("patches", "cls"):
        expected = all_tokens(found.spec, 2, kind, [3])
        np.testing.assert_array_equal(found.read(2, kind), expected)
        np.testing.assert_array_equal(found.read(2, kind, [20, 0, 8, 8]), expected[[20, 0, 8, 8]])
        rows = np.array([0, 3, 4, 6, 15, 16, 20])
        kept, values = _joined(found.iter_blocks(2, kind, rows=rows, block_bytes=60), found.spec.row_shape(kind))
        assert kept.tolist() == [0, 4, 6, 15, 16, 20]
        np.testing.assert_array_equal(values, expected[kept])
    assert found.column("label")[:4] == [0, 1, 2, 0]
    assert found.rows_of_split("test").tolist() == list(range(14, 21))
    assert found.masks.any_mask


def test_opening_reads_no_receipt_until_one_is_asked_for(tmp_path: Path) -> None:
    fill_store(str(tmp_path / "s"))
    found = open_store(str(tmp_path / "s")).features()
    for path in (tmp_path / "s" / found.folder / "receipts").iterdir():
        path.unlink()
    assert found.spec.n_rows == 21
    assert found.receipts == {}


def test_missing_shards_are_refused_and_never_passed_over(tmp_path: Path) -> None:
    found = _partial_set(str(tmp_path / "s"), committed=(0, 2), invalid=(1,))
    assert [shard.index for shard in found.missing] == [1]
    assert not found.complete
    message = r"^rows of shard 1 of .* are not committed; run the same `vitrine extract` again"
    with pytest.raises(IncompleteError, match=r"has 2 of 3 shards; run the same `vitrine extract` again .* --partial"):
        found.require_complete()
    for rows in (None, slice(7, 9), [15]):
        with pytest.raises(IncompleteError, match=message):
            found.read(1, "cls", rows)
    with pytest.raises(IncompleteError, match=message):
        found.iter_blocks(1, "cls")
    with pytest.raises(IncompleteError, match=message):
        found.iter_blocks(1, "cls", rows=np.array([0, 8]))
    np.testing.assert_array_equal(
        found.read(1, "cls", [20, 1, 0]), all_tokens(found.spec, 1, "cls", invalid=[1])[[20, 1, 0]]
    )


def test_a_partial_reader_answers_from_what_is_there(tmp_path: Path) -> None:
    _partial_set(str(tmp_path / "s"), committed=(0, 2), invalid=(1,))
    found = open_store(str(tmp_path / "s")).features(partial=True)
    found.require_complete()
    rows, values = _joined(found.iter_blocks(1, "cls"), (3,))
    assert rows.tolist() == found.rows_of_split(None).tolist() == [0, *range(2, 8), *range(16, 21)]
    np.testing.assert_array_equal(values, all_tokens(found.spec, 1, "cls")[rows])
    with pytest.raises(IncompleteError, match="shard 1"):
        found.read(1, "cls")


@pytest.mark.parametrize("zeros", [slice(0, 8), slice(8, 16), slice(0, 16), slice(16, 24), slice(0, 45), slice(44, 45)])
def test_a_shard_that_zarr_python_rewrote_without_its_empty_chunks_reads_the_same(tmp_path: Path, zeros: slice) -> None:
    """Absent chunks shift what follows, so such a shard must not be mapped."""
    root = create_store(str(tmp_path / "s"))
    spec = make_spec(n_rows=45, rows_per_shard=16, layers=(1,), kinds=("patches",))
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec)
    values = all_tokens(spec, 1, "patches")
    values[zeros] = 0
    path = token_array(folder, 1, "patches")
    array = zarr.open_array(tmp_path / "s" / path, mode="r+", config={"write_empty_chunks": False})
    array[...] = values
    reader = TokenReader(root, path, token_layout(spec, "patches"))
    present = [f.exists() for f in (tmp_path / "s" / path / "c" / str(i) / "0/0" for i in range(3))]
    # Zarr removes a shard that is all zeros; its receipt says that it is there, so it does not count as committed.
    rows = np.flatnonzero(np.repeat(present, 16)[:45])
    np.testing.assert_array_equal(reader.gather(rows), values[rows])
    np.testing.assert_array_equal(reader.gather(rows[::-3]), values[rows[::-3]])
    for max_rows, step in itertools.product((3, 100), (1, 2)):
        numbers, blocks = _joined(reader.blocks(rows[::step], max_rows), spec.row_shape("patches"))
        np.testing.assert_array_equal(numbers, rows[::step])
        np.testing.assert_array_equal(blocks, values[rows[::step]])
    if not all(present):
        with pytest.raises(CorruptError, match="is missing, though its receipt says it is there"):
            reader.gather(np.arange(45))


def test_a_shard_whose_chunks_stand_in_another_order_reads_the_same(tmp_path: Path) -> None:
    """Legal Zarr of the same size: the second chunk first. Only the index tells."""
    root = create_store(str(tmp_path / "s"))
    spec = make_spec(n_rows=16, rows_per_shard=16, layers=(1,), kinds=("cls",))
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec)
    path = tmp_path / "s" / token_array(folder, 1, "cls") / "c/0/0"
    content = path.read_bytes()
    chunk_bytes = 8 * 3 * 2
    index = np.array([[chunk_bytes, chunk_bytes], [0, chunk_bytes]], "<u8").tobytes()
    checksum = crc32c([index]).to_bytes(4, "little")
    path.write_bytes(content[chunk_bytes : 2 * chunk_bytes] + content[:chunk_bytes] + index + checksum)
    reader = TokenReader(root, token_array(folder, 1, "cls"), token_layout(spec, "cls"))
    for rows in (np.arange(16), np.array([9, 0, 15])):
        np.testing.assert_array_equal(reader.gather(rows), all_tokens(spec, 1, "cls")[rows])
    with pytest.raises(CorruptError, match=r"c/0/0 is not what its receipt says \(checksum\)"):
        open_store(str(tmp_path / "s")).features().read(1, "cls")


def test_a_shard_that_nobody_can_read_is_corrupt(tmp_path: Path) -> None:
    found = fill_store(str(tmp_path / "s"))
    path = tmp_path / "s" / token_array(found.folder, 1, "cls") / "c/1/0"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    reader = TokenReader(found.root, token_array(found.folder, 1, "cls"), token_layout(found.spec, "cls"))
    with pytest.raises(CorruptError, match=r"shard 1 of .* is neither Vitrine's nor one that zarr-python can read"):
        reader.gather(np.arange(21))


def test_feature_sets_are_found_by_their_names_and_by_nothing_else(tmp_path: Path) -> None:
    root = create_store(str(tmp_path / "s"))
    specs = [
        ("tiny", make_spec()),
        ("tiny", make_spec(weights="c" * 64)),
        ("tiny", make_spec(model="vit_other")),
        ("camvid", make_spec(views="d" * 64, model="vit_tiny")),
    ]
    folders = [create_feature_set(root, dataset, spec).removeprefix("features/") for dataset, spec in specs]
    store = open_store(str(tmp_path / "s"))
    assert store.names() == sorted(folders)
    first, second, other, camvid = folders
    digests = [spec.identity.digest for _, spec in specs]
    unique = {
        first: first,
        second.rpartition("/")[2]: second,
        "vit_other": other,
        "tiny/vit_other": other,
        "tiny-aaaaaaaa/vit_other": other,
        "camvid": camvid,
        "camvid/vit_tiny": camvid,
        "camvid-dddddddd/vit_tiny": camvid,
        digests[0][:4]: first,
        digests[1][:8]: second,
        digests[2]: other,
        f"camvid/{digests[3][:10]}": camvid,
    }
    assert {name: store.features(name).name for name in unique} == unique
    for name in ("vit_tiny", "tiny/vit_tiny", "tiny", None):
        with pytest.raises(StoreError, match=r"^\d feature sets fit; name one with --features: .*tiny"):
            store.features(name)
    for name in ("vit", "cam", "camvid/vit_other", digests[0][:3], "", "/", "../..", digests[0][1:]):
        with pytest.raises(UnknownNameError, match=r"^no feature set fits .* \(there: camvid.*`vitrine extract` makes"):
            store.features(name)


def test_an_empty_store_says_that_it_is_empty(store_url: str) -> None:
    create_store(store_url)
    with pytest.raises(
        StoreNotFoundError, match=r"^no feature set in .* \(there: none yet\)\. `vitrine extract` makes"
    ):
        open_store(store_url).features()


def test_one_column_of_the_manifest_is_read(features: FeatureSet) -> None:
    assert features.column("uri") == [f"images/{row:03d}.png" for row in range(_N_ROWS)]
    with pytest.raises(StoreError, match=r"there are no columns \['lable'\], only row, valid, class_name, view_id, "):
        features.column("lable")
    train = [row for row in range(30) if row not in _INVALID]
    assert features.rows_of_split("train").tolist() == train
    with pytest.raises(
        UnknownNameError, match=r"^split 'tset' is not in .* \(did you mean 'test'\?\); splits there: test"
    ):
        features.rows_of_split("tset")


def test_a_reader_sees_what_another_process_committed_since(tmp_path: Path) -> None:
    found = _partial_set(str(tmp_path / "s"), committed=(0,))
    root = open_root(str(tmp_path / "s"))
    shard = found.missing[0]
    write_shard(root, found.folder, found.spec, shard, shard_tokens(found.spec, shard))
    assert len(found.receipts) == 1
    assert len(open_store(str(tmp_path / "s")).features().receipts) == 2


def test_reading_changes_nothing(tmp_path: Path) -> None:
    found = fill_store(str(tmp_path / "s"))
    before = files_of(tmp_path)
    found.read(1, "patches")
    list(found.iter_blocks(1, "cls"))
    assert found.valid.all()
    assert files_of(tmp_path) == before


def test_a_feature_set_that_was_just_begun_is_incomplete_and_not_damaged(tmp_path: Path) -> None:
    """Its record comes first, so whoever reads beside the run may find it without arrays."""
    root = create_store(str(tmp_path / "store"))
    dataset = register(root, 21)
    folder = create_feature_set(root, dataset.spec.name, make_spec(views=dataset.views_digest))
    shutil.rmtree(tmp_path / "store" / folder / "tokens.zarr")
    features = FeatureStore(root).features()
    with pytest.raises(IncompleteError, match=r"rows of shard 0 of .* are not committed"):
        features.iter_blocks()
    with pytest.raises(IncompleteError, match=r"rows of shard 0 of .* are not committed"):
        features.read(rows=[3])
    partial = FeatureStore(root).features(partial=True)
    assert list(partial.iter_blocks()) == []
    assert not partial.valid.any()
    with pytest.raises(StoreError, match="layer 9 is not in"):
        partial.iter_blocks(9)
