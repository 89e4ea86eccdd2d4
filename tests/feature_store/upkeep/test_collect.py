"""gc and rm: only what nobody needs goes, and a removal may be killed anywhere."""

import re
from pathlib import Path

import pytest

from feature_store import FeatureStore, StoreError, UnknownNameError, create_feature_set, create_store
from feature_store.objects import ObjectRoot
from feature_store.results import write_result
from feature_store.roots import open_root
from feature_store.upkeep import collect_garbage, find_removable, remove, verify_store, without_writers
from tests.feature_store.samples import files_of, register, write_missing
from tests.feature_store.upkeep.stores import DiesError, DyingRoot, make_whole


def paths(root: ObjectRoot) -> set[str]:
    return {path for path, _ in root.walk("")}


def garbage(root: ObjectRoot, **options: bool) -> dict[str, str]:
    return {each.path: each.reason for each in collect_garbage(root, nobody_writes=True, **options).garbage}


def test_a_store_in_use_has_no_garbage_and_a_collection_changes_nothing(store_url: str) -> None:
    root = make_whole(store_url)
    before = paths(root)
    report = collect_garbage(root, remove=True, aside=True, nobody_writes=True)
    assert (report.garbage, report.partials_swept, report.held_back) == ((), 0, "")
    assert paths(root) == before
    assert verify_store(root, deep=True).sound


def test_annotations_that_others_replaced_go_when_no_result_used_them(store_url: str) -> None:
    root = make_whole(store_url)
    used = FeatureStore(root).features().dataset
    between = register(root, 21, label_of_first=1)
    register(root, 21, label_of_first=2)
    assert garbage(root) == {between.folder: "annotations that others replaced, and no result used"}
    assert between.folder in {path.rpartition("/")[0] for path in paths(root)}, "it was dry"
    collect_garbage(root, remove=True, nobody_writes=True)
    assert not any(path.startswith(between.folder) for path in paths(root))
    assert any(path.startswith(used.folder) for path in paths(root)), "a result needs it"
    assert verify_store(root, deep=True).sound


def test_results_go_with_their_feature_set(store_url: str) -> None:
    root = make_whole(store_url)
    write_result(root, "knn", {"feature_set": "f" * 64}, {"miou": 0.1})
    write_result(root, "notes", {"about": "nothing"}, {"miou": 0.1})
    (path,) = garbage(root)
    assert path.startswith("results/knn/")
    (features,) = find_removable(root, ["tiny"])
    remove(root, features)
    assert set(garbage(root)) == {found for found in paths(root) if found.startswith("results/knn/")}


def test_results_stay_while_a_feature_set_cannot_be_read(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path))
    (record,) = tmp_path.glob("features/*/*/feature_set.json")
    record.write_bytes(b"{}")
    assert garbage(root) == {}


def test_objects_that_a_complete_feature_set_does_not_have_go(store_url: str) -> None:
    root = make_whole(store_url)
    found = FeatureStore(root).features()
    orphan = f"{found.folder}/tokens.zarr/layer_1/patches/c/9/0/0"
    root.put(orphan, [b"x"])
    assert set(garbage(root)) == {orphan}
    root.remove(f"{found.folder}/receipts/000001.json")
    assert garbage(root) == {}, "a feature set that lacks shards is left alone"


def test_partial_files_of_the_dead_go_and_what_was_moved_aside_only_when_asked(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path))
    before = paths(root)
    (tmp_path / "datasets" / "tiny" / ".x.0.partial").write_bytes(b"torn")
    root.put("aside/1/selections/x.json", [b"x"])
    assert collect_garbage(root).partials_swept == 1
    assert collect_garbage(root, remove=True).partials_swept == 1
    assert paths(root) == before | {"aside/1/selections/x.json"}
    assert garbage(root, aside=True, remove=True) == {"aside/1": "moved aside by an earlier repair"}
    assert paths(root) == before
    assert not (tmp_path / "aside").exists()


def test_beside_a_writer_annotations_are_left_alone(tmp_path: Path) -> None:
    """A registration in progress looks just like garbage: its pointer is written last."""
    writer = create_store(str(tmp_path))
    writer.put("datasets/tiny/aaaaaaaa-bbbbbbbb/manifest.parquet", [b"half"])
    report = collect_garbage(open_root(str(tmp_path)), remove=True)
    assert report.garbage == ()
    assert report.held_back.startswith("a process of this machine is writing")
    with (
        pytest.raises(StoreError, match=r"is writing to .*; wait until it is done, or stop it, and remove again"),
        without_writers(open_root(str(tmp_path)), "remove"),
    ):
        pass
    del writer
    (gone,) = collect_garbage(open_root(str(tmp_path)), remove=True).garbage
    assert (gone.path, gone.reason) == ("datasets/tiny/aaaaaaaa-bbbbbbbb", "a registration that was cut off")
    assert set(files_of(tmp_path)) == {"vitrine.json"}


def test_behind_a_url_annotations_go_only_when_somebody_knows_that_nobody_writes() -> None:
    root = create_store("memory://vitrine-gc-alone")
    root.put("datasets/tiny/aaaaaaaa-bbbbbbbb/manifest.parquet", [b"half"])
    report = collect_garbage(root)
    assert (report.garbage, "say --nobody-writes" in report.held_back) == ((), True)
    assert len(collect_garbage(root, remove=True, nobody_writes=True).garbage) == 1
    assert [path for path, _ in root.walk("")] == ["vitrine.json"]
    root.remove("vitrine.json")


def test_names_find_what_they_name(store_url: str) -> None:
    root = make_whole(store_url)
    names = FeatureStore(root).names()
    found = find_removable(root, [*names, f"features/{names[0]}", "selections/no1", "results/knn"])
    assert [each.kind for each in found] == ["feature set", "selection", "results"]
    folder = f"features/{names[0]}"
    assert found[0].n_bytes == sum(size for path, size in root.walk("") if path.startswith(f"{folder}/"))
    for name in ("another", "selections/x", "results/linear", "datasets/x", "results/knn/zz"):
        with pytest.raises(UnknownNameError):
            find_removable(root, [name])
    for name in ("selections/../x", "results/..", "datasets/../features"):
        with pytest.raises(StoreError, match="not a plain name"):
            find_removable(root, [name])


def test_a_dataset_in_use_is_not_removed(store_url: str) -> None:
    root = make_whole(store_url)
    (name,) = FeatureStore(root).names()
    with pytest.raises(StoreError, match=rf"is in use: its labels and masks are those of {re.escape(name)}"):
        find_removable(root, ["datasets/tiny"])
    for each in (name, "datasets/tiny", "selections/no1", "results/knn"):
        for found in find_removable(root, [each]):
            remove(root, found)
    (run,) = root.list("runs")
    assert paths(root) == {f"runs/{run}/run.json", "vitrine.json"}
    assert verify_store(root).sound


@pytest.mark.parametrize("finisher", ["rm", "gc"])
def test_a_removal_killed_anywhere_is_explained_and_finished(tmp_path: Path, finisher: str) -> None:
    whole = tmp_path / "whole"
    name = FeatureStore(make_whole(str(whole))).features().name
    content = files_of(whole)
    changes = 0
    finished = False
    while not finished:
        store = tmp_path / f"{changes}"
        for path, data in content.items():
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            (store / path).write_bytes(data)
        try:
            dying = DyingRoot(store, changes)
            remove(dying, find_removable(dying, [name])[0])
            finished = True
        except DiesError:
            root = open_root(str(store))
            report = verify_store(root)
            assert report.sound, report.problems
            assert [note.kind for note in report.notes] == ["removal"] or changes == 0
            if finisher == "gc":
                collect_garbage(root, remove=True)
            else:
                remove(root, find_removable(root, [name])[0])
        if changes or finisher == "rm":
            assert not list(store.glob("features/*")), "nothing of it is left"
        changes += 1 if finisher == "gc" else 4
    assert changes > 10


def test_what_was_being_removed_may_be_made_again(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path / "store"))
    before = files_of(tmp_path / "store" / "features")
    features = FeatureStore(root).features()
    dying = DyingRoot(tmp_path / "store", 8)
    with pytest.raises(DiesError):
        remove(dying, find_removable(dying, ["tiny"])[0])
    create_feature_set(root, "tiny", features.spec)
    write_missing(root, features.folder, features.spec, invalid=[2])
    assert files_of(tmp_path / "store" / "features") == before
    assert verify_store(root, deep=True).sound
