"""repair: what fails moves aside under its own path, what follows from the rest is written anew, nothing is lost."""

import os
import random
from pathlib import Path

import pytest

from feature_store import FeatureStore, StoreError, create_store
from feature_store.records import write_record
from feature_store.roots import open_root
from feature_store.runs import id_for_run
from feature_store.upkeep import repair_store, verify_store
from tests.feature_store.samples import copy_store, files_of, register, write_missing
from tests.feature_store.upkeep.stores import make_whole


def test_a_sound_store_is_left_as_it_is(store_url: str) -> None:
    root = make_whole(store_url)
    before = list(root.walk(""))
    report = repair_store(root)
    assert (report.found, report.moved, report.remade, report.aside, report.done) == ((), (), (), None, True)
    assert list(root.walk("")) == before


def test_a_damaged_shard_moves_aside_with_its_receipt_and_is_computed_again(store_url: str) -> None:
    root = make_whole(store_url)
    features = FeatureStore(root).features()
    before = {path: root.read(path) for path, _ in root.walk("features")}
    damaged = f"{features.folder}/tokens.zarr/layer_2/cls/c/1/0"
    root.put(damaged, [b"\1" * len(before[damaged])])
    report = repair_store(root)
    moved = [f"{features.folder}/receipts.json", f"{features.folder}/receipts/000001.json", damaged]
    assert list(report.moved) == [path for path in moved if path in before]
    assert root.read(f"{report.aside}/{damaged}") == b"\1" * len(before[damaged])
    assert report.left == ()
    (unfinished,) = report.unfinished
    assert (unfinished.feature_set, unfinished.shards) == (features.name, (1,))
    write_missing(root, features.folder, features.spec, invalid=[2])
    assert {path: root.read(path) for path, _ in root.walk("features")} == before
    assert verify_store(root, deep=True).sound


def test_metadata_that_follows_from_the_rest_is_written_anew(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path))
    spec = FeatureStore(root).features().spec
    folder = FeatureStore(root).features().folder
    run_id = id_for_run({"feature_set": folder})
    write_record(root, f"runs/{run_id}/plan.json", {"folder": folder, "spec": spec.to_json()})
    before = files_of(tmp_path)
    remade = [
        path
        for path in before
        if path.endswith(("zarr.json", "vitrine.json", "feature_set.json")) and not path.startswith("datasets")
    ]
    remade += [path for path in before if path.startswith("datasets") and path.count("/") == 2]
    for change in (lambda path: path.write_bytes(b"{}"), Path.unlink):
        for path in remade:
            change(tmp_path / path)
        report = repair_store(root)
        assert report.done, report.left
        assert sorted(report.remade) == sorted(remade)
        assert {path: data for path, data in files_of(tmp_path).items() if not path.startswith("aside")} == before


def test_nothing_is_ever_deleted_and_what_is_left_is_named(tmp_path: Path) -> None:
    chance = random.Random(3)
    root = make_whole(str(tmp_path))
    for path, data in files_of(tmp_path).items():
        (tmp_path / path).write_bytes(chance.randbytes(len(data)))
        damaged = (tmp_path / path).read_bytes()
        report = repair_store(root)
        assert damaged == root.read(f"{report.aside}/{path}")
        assert not (report.left and any(problem.kind != "missing" for problem in report.left)), report.left
        for moved in report.moved:
            (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{report.aside}/{moved}").rename(tmp_path / moved)
        (tmp_path / path).write_bytes(data)
        assert verify_store(root, deep=True).sound


def test_of_two_sets_of_annotations_none_is_put_in_force_by_guess(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path))
    register(root, 21, label_of_first=1)
    (pointer,) = tmp_path.glob("datasets/tiny/*.json")
    pointer.unlink()
    report = repair_store(root)
    assert report.remade == ()
    assert [problem.kind for problem in report.left] == ["missing"]
    assert "run the same `vitrine extract` again" in report.left[0].text


def test_beside_a_writer_nothing_is_moved(tmp_path: Path) -> None:
    writer = create_store(str(tmp_path))
    with pytest.raises(StoreError, match="wait until it is done, or stop it, and repair again"):
        repair_store(open_root(str(tmp_path)))
    assert writer.exists("vitrine.json")


@pytest.mark.parametrize("target", ["/etc/passwd", "/nowhere", "..", "loop", "pipe"])
def test_links_and_pipes_anywhere_are_named_and_moved_aside(tmp_path: Path, target: str) -> None:
    place = tmp_path / "store"
    root = make_whole(str(place))
    folder = FeatureStore(root).features().folder
    before = files_of(place)
    added = ["ln", "aside", "features/ln", f"{folder}/ln", f"{folder}/receipts/ln", f"{folder}/tokens.zarr/layer_1/ln"]
    added += ["datasets/ln", f"datasets/{root.list('datasets')[0]}/ln.json", "runs/ln", "results/ln", "selections/ln"]
    for path in added:
        _put_stray(place / path, target)
    assert len(FeatureStore(root).names()) == 1
    assert {(each.path, each.kind) for each in verify_store(root, deep=True).problems} == {
        (path, "stray") for path in added
    }
    report = repair_store(root)
    assert report.done
    assert set(report.moved) - {f"{folder}/receipts.json"} == set(added)
    assert {path for path, _ in root.strays("")} == {f"{report.aside}/{path}" for path in added}
    assert verify_store(root, deep=True).sound
    assert {path: data for path, data in files_of(place).items() if not path.startswith("aside/")} == before


def test_a_link_in_the_place_of_a_file_or_folder_is_moved_and_nothing_stops_at_it(tmp_path: Path) -> None:
    root = make_whole(str(tmp_path / "whole"))
    features = FeatureStore(root).features()
    dataset = features.dataset.folder
    inside = ("", "feature_set.json", "receipts", "receipts/000000.json", "tokens.zarr/layer_1", "receipts.json")
    paths = ["vitrine.json", "features", "datasets", "runs", "selections", f"{dataset}/dataset.json"]
    paths += [f"{features.folder}/{name}".rstrip("/") for name in inside]
    for number, path in enumerate(paths):
        place = copy_store(tmp_path / "whole", tmp_path / str(number))
        (place / path).rename(tmp_path / f"{number}.away")
        (place / path).symlink_to(tmp_path / f"{number}.away")
        root = open_root(str(place))
        assert path in {each.path for each in verify_store(root).problems if each.kind == "stray"}
        assert path in repair_store(root, deep=False).moved
        assert list(root.strays("features")) == []


def _put_stray(place: Path, target: str) -> None:
    if target == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(place if target == "loop" else target)
