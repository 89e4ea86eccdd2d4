"""writer: whole shards only, safe to repeat, and no two identities in one place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from feature_store import (
    CorruptError,
    IdentityMismatchError,
    InvalidRow,
    Shard,
    ShardError,
    StoreError,
    StoreNotFoundError,
    create_feature_set,
    create_store,
    finish_feature_set,
    open_store,
    shards_of,
    write_shard,
)
from feature_store.durable_files import PARTIAL_SUFFIX
from feature_store.objects import ObjectRoot, crc32c
from feature_store.records import parse_record, record_bytes
from feature_store.writer import committed_receipts, read_spec
from tests.feature_store.samples import all_tokens, files_of, make_spec, shard_tokens, write_missing


def _empty_set(url: str, **arguments: Any) -> tuple[ObjectRoot, str]:
    root = create_store(url)
    return root, create_feature_set(root, "tiny", make_spec(**arguments))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_plain_zarr_python_opens_the_whole_group(tmp_path: Path, dtype: str) -> None:
    spec = make_spec(kinds=("patches", "cls", "registers"), dtype=dtype)
    root = create_store(str(tmp_path / "s"))
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec, invalid=[0, 20])
    group: Any = zarr.open_group(tmp_path / "s" / folder / "tokens.zarr", mode="r")
    for layer in (1, 2):
        for kind in spec.identity.token_kinds:
            np.testing.assert_array_equal(group[f"layer_{layer}/{kind}"][...], all_tokens(spec, layer, kind, [0, 20]))
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(group["valid"][...])), [0, 20])
    assert sorted(name for name, _ in group.members(max_depth=None)) == sorted(
        ["valid", "layer_1", "layer_2", *(f"layer_{i}/{kind}" for i in (1, 2) for kind in spec.identity.token_kinds)]
    )


def test_a_receipt_states_every_object_as_it_stands(store_url: str) -> None:
    root, folder = _empty_set(store_url)
    spec = read_spec(root, folder)
    write_missing(root, folder, spec, invalid=[9])
    receipts = committed_receipts(root, folder, spec)
    assert [(r.start, r.stop) for r in receipts.values()] == [(0, 8), (8, 16), (16, 21)]
    assert [entry for receipt in receipts.values() for entry in receipt.invalid] == [
        InvalidRow(row=9, reason="truncated")
    ]
    for receipt in receipts.values():
        for stored in receipt.objects:
            content = root.read(f"{folder}/{stored.path}")
            assert (len(content), crc32c([content])) == (stored.size_bytes, stored.crc32c)


def test_a_shard_written_twice_is_the_same_shard(tmp_path: Path) -> None:
    root, folder = _empty_set(str(tmp_path / "s"))
    spec = read_spec(root, folder)
    write_missing(root, folder, spec)
    before = files_of(tmp_path)
    for shard in reversed(shards_of(spec.n_rows, spec.rows_per_shard)):
        write_shard(root, folder, spec, shard, shard_tokens(spec, shard))
    create_feature_set(root, "tiny", spec)
    finish_feature_set(root, folder, spec)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(("start", "stop", "index"), [(0, 7, 0), (4, 12, 0), (8, 16, 0), (16, 24, 2), (0, 8, 5)])
def test_rows_that_are_not_one_whole_shard_are_refused(tmp_path: Path, start: int, stop: int, index: int) -> None:
    root, folder = _empty_set(str(tmp_path / "s"))
    spec = read_spec(root, folder)
    shard = Shard(index=index, start=start, stop=stop)
    with pytest.raises(ShardError, match=rf"^rows {start}:{stop} are not shard {index} of 21 .* Write whole shards"):
        write_shard(root, folder, spec, shard, shard_tokens(spec, shard))


def test_wrong_arrays_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    root, folder = _empty_set(str(tmp_path / "s"))
    spec = read_spec(root, folder)
    before = files_of(tmp_path)
    shard = shards_of(21, 8)[1]
    good = dict(shard_tokens(spec, shard))
    short = {**good, (2, "cls"): good[2, "cls"][:-1]}
    wide = {**good, (2, "cls"): good[2, "cls"].astype(np.float32)}
    some = {name: rows for name, rows in good.items() if name != (1, "cls")}
    cases: list[tuple[Any, list[int], str]] = [
        (some, [], r"arrays \[.*\] given, \[.*\(1, 'cls'\).*\] declared; write all of them"),
        ({**good, (3, "cls"): good[2, "cls"]}, [], "given, .* declared; write all of them"),
        (short, [], "7 rows of cls of layer 2 for shard 1, which has 8; write the whole shard"),
        (wide, [], "do not fit an array of rows"),
        (good, [7], r"invalid rows \[7\] of shard 1: name rows of 8\.\.15, each once, ascending"),
        (good, [16], r"invalid rows \[16\] of shard 1"),
        (good, [10, 9], r"invalid rows \[10, 9\] of shard 1"),
        (good, [9, 9], r"invalid rows \[9, 9\] of shard 1"),
        (good, [9], "invalid rows of shard 1 have patches of layer 1 that are not zero; .* Set them to zero"),
    ]
    for tokens, invalid, message in cases:
        with pytest.raises(ShardError, match=message):
            write_shard(root, folder, spec, shard, tokens, [InvalidRow(row=row, reason="x") for row in invalid])
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("damage", ["missing", "short", "another shard's", "no receipt", "garbage", "folder"])
def test_a_shard_whose_receipt_or_objects_are_damaged_is_computed_again(tmp_path: Path, damage: str) -> None:
    root, folder = _empty_set(str(tmp_path / "s"))
    spec = read_spec(root, folder)
    write_missing(root, folder, spec)
    whole = files_of(tmp_path)
    place = tmp_path / "s" / folder
    victim, receipt = place / "tokens.zarr/layer_2/cls/c/1/0", place / "receipts/000001.json"
    if damage == "missing":
        victim.unlink()
    elif damage == "short":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "another shard's":
        receipt.write_bytes((place / "receipts/000000.json").read_bytes())
    elif damage == "no receipt":
        receipt.unlink()
    elif damage == "garbage":
        receipt.write_bytes(b"{")
    else:
        victim.unlink()
        victim.mkdir()
    assert sorted(committed_receipts(root, folder, spec)) == [0, 2]
    if damage == "folder":
        victim.rmdir()
    write_missing(root, folder, spec)
    assert files_of(tmp_path) == whole


def test_a_damaged_zarr_json_is_made_good_by_the_next_run(tmp_path: Path) -> None:
    root, folder = _empty_set(str(tmp_path / "s"))
    spec = read_spec(root, folder)
    whole = files_of(tmp_path)
    for path in (tmp_path / "s" / folder).rglob("zarr.json"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"3", b"2"))  # of the same size
    next((tmp_path / "s" / folder).rglob("cls/zarr.json")).unlink()
    create_feature_set(root, "tiny", spec)
    assert files_of(tmp_path) == whole


def test_another_shape_in_the_same_place_is_refused_and_changes_nothing(store_url: str) -> None:
    root, folder = _empty_set(store_url)
    with pytest.raises(IdentityMismatchError, match=r"batch_size: stored 4, this run 16\)\. Use another --store"):
        create_feature_set(root, "tiny", make_spec(batch_size=16))
    assert read_spec(root, folder).batch_size == 4
    assert create_feature_set(root, "tiny", make_spec()) == folder


def test_other_identities_stand_beside_each_other(store_url: str) -> None:
    root, folder = _empty_set(store_url)
    others = {
        create_feature_set(root, "tiny", spec)
        for spec in (make_spec(weights="c" * 64), make_spec(layers=(1,)), make_spec(dtype="float32"))
    }
    assert len(others | {folder}) == 4


def test_a_record_that_could_not_be_read_again_is_not_written(store_url: str) -> None:
    root = create_store(store_url)
    with pytest.raises(CorruptError, match=r"'layers' is \[2, 1\], and must be block numbers in ascending order"):
        create_feature_set(root, "tiny", make_spec(layers=(2, 1)))
    assert root.list("") == ["vitrine.json"]


def test_a_store_is_made_once_and_opened_again(store_url: str) -> None:
    create_store(store_url)
    content = create_store(store_url).read("vitrine.json")
    assert parse_record(content, name="x") == {"schema": 1, "written_by": "vitrine"}
    assert open_store(store_url).names() == []


def test_a_store_that_another_run_makes_in_between_is_joined(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for a store and the look at what else is there."""
    looks: list[str] = []
    exists = ObjectRoot.exists

    def late(root: ObjectRoot, path: str) -> bool:
        there = exists(root, path)
        if not looks:
            looks.append(path)
            create_feature_set(create_store(store_url), "tiny", make_spec())
        return there

    monkeypatch.setattr(ObjectRoot, "exists", late)
    root = create_store(store_url)
    assert looks == ["vitrine.json"]
    assert root.list("") == ["features", "vitrine.json"]


def test_where_there_is_no_store_none_is_opened(store_url: str) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^no store at .*: it has no vitrine\.json\. `vitrine extract"):
        open_store(store_url)


def test_a_place_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(StoreError, match=r"holds 'cat\.png' and no vitrine\.json, so it is not a store; choose a new"):
        create_store(str(tmp_path / "photos"))
    with pytest.raises(StoreError, match="is a file, and a store is a folder; choose another --store"):
        create_store(str(tmp_path / "photos" / "cat.png"))
    with pytest.raises(StoreError, match=r"no store can be made at .*; choose a folder that you may write"):
        create_store(str(tmp_path / "photos" / "cat.png" / "store"))
    assert files_of(tmp_path) == {"photos/cat.png": b""}


def test_what_a_run_killed_at_its_very_start_left_is_swept_and_a_volumes_own_folder_accepted(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / f".vitrine.json.0{PARTIAL_SUFFIX}").write_bytes(b"{")
    (tmp_path / "datasets").mkdir(mode=0o700)
    (tmp_path / "datasets").rmdir()
    create_store(str(tmp_path))
    assert set(files_of(tmp_path)) == {"vitrine.json"}
    for folder in ("datasets/a", "results/knn", "selections", "runs/1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f".x{PARTIAL_SUFFIX}").write_bytes(b"{")
    create_store(str(tmp_path))
    assert set(files_of(tmp_path)) == {"vitrine.json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record_bytes({"schema": 2}), "has store schema 2, and this Vitrine reads 1. Use the Vitrine that wrote it"),
        (record_bytes({"schema": True}), "'schema' is True, and must be a whole number"),
        (record_bytes({}), "'schema' is missing"),
        (b'{"schema": 1}', "is not what its 'record_digest' says"),
        (b"[]", "not an object"),
    ],
)
def test_a_store_of_another_schema_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vitrine.json").write_bytes(content)
    for act in (open_store, create_store):
        with pytest.raises(CorruptError, match=message):
            act(str(tmp_path))
