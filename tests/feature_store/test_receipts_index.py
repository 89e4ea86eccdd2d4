"""receipts_index: one file that says what the receipts say, or none."""

import json
from pathlib import Path
from typing import Any

import pytest

from feature_store import (
    CorruptError,
    FeatureSet,
    FeatureStore,
    finish_feature_set,
    open_store,
    shards_of,
    write_shard,
)
from feature_store.layout import receipt, receipts_index
from feature_store.objects import LocalRoot
from feature_store.receipts_index import contradiction, read_index, write_index
from feature_store.records import record_bytes
from feature_store.writer import committed_receipts
from tests.feature_store.samples import files_of, fill_store, shard_tokens

_INVALID = (0, 7, 20)


class _CountingRoot(LocalRoot):
    """Remembers which objects were read or looked at."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.touched: list[str] = []

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        self.touched.append(path)
        return super().read(path, max_bytes=max_bytes)

    def size_bytes(self, path: str) -> int | None:
        self.touched.append(path)
        return super().size_bytes(path)


@pytest.fixture
def found(tmp_path: Path) -> FeatureSet:
    return fill_store(str(tmp_path / "store"), invalid=_INVALID)


def _path(found: FeatureSet) -> Path:
    return Path(found.root.url, receipts_index(found.folder))


def _changed(found: FeatureSet, **changes: Any) -> None:
    """Write another index with a right digest."""
    record = {**json.loads(_path(found).read_bytes()), **changes}
    del record["record_digest"]
    _path(found).write_bytes(record_bytes(record))


def test_the_index_says_what_the_receipts_say(store_url: str) -> None:
    found = fill_store(store_url, invalid=_INVALID)
    truth = committed_receipts(found.root, found.folder, found.spec)
    assert len(truth) == 3
    assert read_index(found.root, found.folder, found.spec) == truth
    assert contradiction(found.root, found.folder, found.spec, truth) is None
    assert [entry.row for entry in found.invalid_rows] == list(_INVALID)


def test_opening_a_finished_feature_set_reads_no_receipt_and_looks_at_no_shard(found: FeatureSet) -> None:
    root = _CountingRoot(Path(found.root.url))
    opened = FeatureStore(root).features()
    assert opened.complete
    assert opened.valid.sum() == 21 - len(_INVALID)
    assert {path.split("/")[-1] for path in root.touched} == {"feature_set.json", "receipts.json"}


def test_two_fillings_have_equal_indexes(found: FeatureSet, tmp_path: Path) -> None:
    fill_store(str(tmp_path / "again"), invalid=_INVALID)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "store")


def test_writing_a_shard_drops_the_index_and_finishing_writes_the_same_again(found: FeatureSet) -> None:
    content = _path(found).read_bytes()
    shard = found.shards[2]
    write_shard(found.root, found.folder, found.spec, shard, shard_tokens(found.spec, shard))
    assert not _path(found).exists()
    assert len(finish_feature_set(found.root, found.folder, found.spec)) == 3
    # Row 20 was invalid in the first writing, and is not in this one.
    assert _path(found).read_bytes() != content
    assert [entry.row for entry in open_store(found.root.url).features().invalid_rows] == [0, 7]


def test_an_unfinished_feature_set_has_no_index(found: FeatureSet) -> None:
    truth = committed_receipts(found.root, found.folder, found.spec)
    _path(found).unlink()
    Path(found.root.url, receipt(found.folder, found.shards[1])).unlink()
    assert sorted(finish_feature_set(found.root, found.folder, found.spec)) == [0, 2]
    assert not _path(found).exists()
    assert write_index(found.root, found.folder, found.spec, truth)


def test_a_receipt_that_is_gone_is_missed_in_spite_of_the_index(found: FeatureSet) -> None:
    Path(found.root.url, receipt(found.folder, found.shards[1])).unlink()
    assert [shard.index for shard in open_store(found.root.url).features().missing] == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_set": "0" * 64},
        {"n_rows": 22},
        {"rows_per_shard": 16},
        {"crc32c": {}},
        {"crc32c": 3},
        {"invalid": [[7, "x"], [7, "x"]]},
        {"invalid": [[21, "x"]]},
        {"invalid": [[-1, "x"]]},
        {"invalid": [[True, "x"]]},
        {"invalid": [[1]]},
        {"invalid": {"a": 1}},
    ],
    ids=str,
)
def test_an_index_of_another_shape_is_passed_over(found: FeatureSet, changes: dict[str, Any]) -> None:
    truth = committed_receipts(found.root, found.folder, found.spec)
    _changed(found, **changes)
    assert read_index(found.root, found.folder, found.spec) is None
    assert open_store(found.root.url).features().receipts == truth
    assert isinstance(contradiction(found.root, found.folder, found.spec, truth), CorruptError)


@pytest.mark.parametrize("digits", ["zz" * 12, "00 " * 8, "0" * 23])
def test_checksums_that_are_no_numbers_are_passed_over(found: FeatureSet, digits: str) -> None:
    checksums = json.loads(_path(found).read_bytes())["crc32c"]
    assert all(len(text) == 8 * len(found.shards) for text in checksums.values())
    _changed(found, crc32c={**checksums, next(iter(checksums)): digits})
    assert read_index(found.root, found.folder, found.spec) is None


def test_every_byte_of_the_index_counts(found: FeatureSet) -> None:
    content = _path(found).read_bytes()
    truth = committed_receipts(found.root, found.folder, found.spec)
    for place in range(len(content)):
        _path(found).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert read_index(found.root, found.folder, found.spec) in (None, truth)
        _path(found).write_bytes(content[:place])
        assert read_index(found.root, found.folder, found.spec) in (None, truth)


def test_an_index_that_differs_from_a_receipt_is_named(found: FeatureSet) -> None:
    truth = committed_receipts(found.root, found.folder, found.spec)
    _changed(found, invalid=[[0, "truncated"], [7, "truncated"], [20, "corrupt"]])
    problem = contradiction(found.root, found.folder, found.spec, truth)
    assert problem is not None
    assert str(problem).endswith(
        "something else than 1 receipts, the first of shard 2. Remove it: the same `vitrine extract` writes it again "
        "from the receipts."
    )


def test_shards_are_cut_once(found: FeatureSet) -> None:
    assert shards_of(21, 8) is shards_of(21, 8)
