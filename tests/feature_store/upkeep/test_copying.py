"""cp: what arrives is what was stated, whatever was in between, and a copy that was killed goes on."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from feature_store import (
    FeatureStore,
    IdentityMismatchError,
    StoreError,
    create_feature_set,
    create_store,
    write_selection,
)
from feature_store.durable_files import Buffer
from feature_store.objects import LocalRoot, ObjectRoot
from feature_store.roots import open_root
from feature_store.upkeep import compare_feature_sets, copy_store, verify_store
from tests.feature_store.samples import files_of, fill_store, make_selection, make_spec, register
from tests.feature_store.upkeep.stores import DiesError, DyingRoot, make_whole

_COPIED = ("datasets", "features", "selections", "vitrine.json")


def content(root: ObjectRoot) -> dict[str, bytes]:
    return {path: root.read(path) for path, _ in root.walk("") if path.startswith(_COPIED)}


def test_a_copy_is_the_same_to_the_last_byte_and_again_copies_nothing(store_url: str, tmp_path: Path) -> None:
    source, target = make_whole(store_url), create_store(str(tmp_path / "copy"))
    report = copy_store(source, target)
    assert content(target) == content(source)
    assert (report.shards_copied, report.shards_standing, report.shards_failed, report.failures) == (3, 0, 0, ())
    assert report.selections == ("no1",)
    assert verify_store(target, deep=True).sound
    again = copy_store(source, target)
    assert (again.shards_copied, again.shards_standing, again.objects_copied) == (0, 3, 0)
    there_and_back = create_store(f"{store_url}-back")
    copy_store(target, there_and_back)
    assert content(there_and_back) == content(source)
    for path, _ in list(there_and_back.walk("")):
        there_and_back.remove(path)


def test_a_copy_killed_before_any_change_goes_on(tmp_path: Path) -> None:
    source = make_whole(str(tmp_path / "source"))
    changes, done = 0, False
    while not done:
        place = tmp_path / f"copy{changes}"
        create_store(str(place))
        try:
            copy_store(source, DyingRoot(place, changes))
            done = True
        except DiesError:
            target = open_root(str(place))
            assert verify_store(target).sound
            copy_store(source, target)
        assert {name: data for name, data in files_of(place).items() if name.startswith(_COPIED)} == content(source)
        changes += 7
    assert changes > 30


def test_a_damaged_shard_is_reported_and_the_others_are_copied(tmp_path: Path) -> None:
    source, target = make_whole(str(tmp_path / "source")), create_store(str(tmp_path / "copy"))
    features = FeatureStore(source).features()
    damaged = f"{features.folder}/tokens.zarr/layer_1/cls/c/1/0"
    source.put(damaged, [b"\0" * len(source.read(damaged))])
    report = copy_store(source, target)
    assert (report.shards_copied, report.shards_failed) == (2, 1)
    assert report.failures[0].startswith(damaged)
    assert sorted(FeatureStore(target).features(partial=True).receipts) == [0, 2]
    assert verify_store(target, deep=True).sound


class LyingRoot(LocalRoot):
    """A storage that keeps other bytes than it was given."""

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        super().put(path, [data[:-1] + bytes([data[-1] ^ 1])] if "layer_1/cls/c/2" in path else [data])


def test_what_stands_in_the_target_is_read_again(tmp_path: Path) -> None:
    source = make_whole(str(tmp_path / "source"))
    create_store(str(tmp_path / "copy"))
    report = copy_store(source, LyingRoot(tmp_path / "copy"))
    assert (report.shards_copied, report.shards_failed) == (2, 1)
    assert "other bytes stand there" in report.failures[0]


def test_only_what_was_named_is_copied_with_the_selections_of_its_weights(tmp_path: Path) -> None:
    source, target = make_whole(str(tmp_path / "source")), create_store(str(tmp_path / "copy"))
    first = FeatureStore(source).features()
    create_feature_set(
        source, "tiny", make_spec(views=first.spec.identity.views_digest, weights="c" * 64, model="other")
    )
    write_selection(source, make_selection("of_other", weights_sha256="c" * 64))
    report = copy_store(source, target, features=["vit_tiny"])
    assert (report.feature_sets, report.selections) == ((first.name,), ("no1",))
    assert compare_feature_sets(first, FeatureStore(target).features()).equal
    report = copy_store(source, target)
    assert (report.shards_missing, report.selections) == (3, ("no1", "of_other"))


def test_what_the_target_has_in_force_stays_and_another_shape_is_refused(tmp_path: Path) -> None:
    source, target = make_whole(str(tmp_path / "source")), create_store(str(tmp_path / "copy"))
    theirs = register(target, 21, label_of_first=2)
    write_selection(target, make_selection(features=(0, 1)))
    notes = copy_store(source, target).notes
    assert ["names other annotations" in notes[0], "keeps its own selection 'no1'" in notes[1]] == [True, True]
    assert FeatureStore(target).features().dataset == theirs
    other = fill_store(str(tmp_path / "other"), layers=(1, 2), rows_per_shard=16)
    with pytest.raises(IdentityMismatchError, match=r"rows_per_shard: stored 8, this run 16"):
        copy_store(other.root, target)


def test_a_store_is_not_copied_onto_itself(tmp_path: Path) -> None:
    make_whole(str(tmp_path / "store"))
    (tmp_path / "same").symlink_to("store")
    before = files_of(tmp_path / "store")
    for target in (tmp_path / "store", tmp_path / "same"):
        with pytest.raises(StoreError, match="is both the store to copy from and the one to copy to; name another"):
            copy_store(open_root(str(tmp_path / "store")), open_root(str(target)))
    assert files_of(tmp_path / "store") == before
