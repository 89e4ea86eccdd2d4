"""Feature sets that share files: what damage, repair, removal and collection do to the other names of a file."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_store import FeatureSetSpec, StoredDataset, open_store, read_manifest
from feature_store.intact import object_crc32c
from feature_store.objects import ObjectRoot
from feature_store.receipts import Receipt
from feature_store.receipts_index import read_index
from feature_store.roots import open_root
from feature_store.runs import RunHistory
from feature_store.upkeep import (
    collect_garbage,
    find_removable,
    remove,
    repair_store,
    room_taken,
    verify_store,
)
from pipelines.plan import ExtractionPlan
from pipelines.run import prepare_rerun, run_extraction
from tests.pipelines.nights import Nights, here, run


@pytest.fixture
def nights(tmp_path: Path, pictures: Path) -> Nights:
    return Nights(tmp_path, pictures)


def damage(place: Path) -> None:
    """Flip a bit in place, as a failing disk does, so that every name of the file shows it."""
    with place.open("r+b") as file:
        file.seek(20)
        octet = file.read(1)
        file.seek(20)
        file.write(bytes([octet[0] ^ 1]))


def shard_of(store: str, name: str, shard: int) -> Path:
    (place,) = (Path(store) / "features" / name).glob(f"tokens.zarr/layer_*/patches/c/{shard}/0/0")
    return place


def test_verify_reads_a_file_of_two_names_once_and_names_both_when_it_is_damaged(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    second = nights.extract().feature_set
    damage(shard_of(nights.store, first, 0))
    read: list[str] = []

    def counted(root: ObjectRoot, path: str) -> int:
        read.append(path)
        return object_crc32c(root, path)

    monkeypatch.setattr("feature_store.upkeep.inspection.object_crc32c", counted)
    report = verify_store(open_root(nights.store), deep=True)
    paths = [f"features/{name}" for name in (first, second)]
    problems = {each.path: each.text for each in report.problems}
    assert len(problems) == 2
    assert {path.partition("/tokens")[0] for path in problems} == set(paths)
    assert sum("It is the same file as" in text for text in problems.values()) == 1
    # Two shards of three arrays (patches, cls, valid) are shared, and read once; the third is its own in each.
    tokens = [path for path in read if "/tokens.zarr/" in path]
    assert len(tokens) == len({Path(nights.store, path).stat().st_ino for path in tokens})


def test_repair_mends_both_and_the_bytes_are_those_of_before(nights: Nights) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    second = nights.extract().feature_set
    store = open_store(nights.store)
    before = {name: store.features(name).read() for name in (first, second)}
    plans = {name: nights_plan(nights, name) for name in (first, second)}
    damage(shard_of(nights.store, second, 1))
    report = repair_store(open_root(nights.store))
    assert {each.feature_set: each.shards for each in report.unfinished} == {first: (1,), second: (1,)}
    for name in (first, second):
        run(prepare_rerun(plans[name], store=nights.store))
    assert verify_store(open_root(nights.store), deep=True).sound
    for name, tokens in before.items():
        np.testing.assert_array_equal(store.features(name).read(), tokens)
    # The second was linked to the first again.
    assert shard_of(nights.store, first, 1).samefile(shard_of(nights.store, second, 1))


def nights_plan(nights: Nights, name: str) -> ExtractionPlan:
    record = RunHistory(open_root(nights.store)).plan(f"features/{name}")
    assert record is not None
    return ExtractionPlan.from_json(json.dumps(record))


def test_a_removal_says_what_it_really_frees(nights: Nights) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    second = nights.extract().feature_set
    root = open_root(nights.store)
    one, both = find_removable(root, [first]), find_removable(root, [first, second])
    shared = sum(
        place.stat().st_size
        for place in (Path(nights.store) / "features" / first).rglob("*")
        if place.stat().st_nlink > 1 and place.is_file()
    )
    assert shared > 0
    in_both = one[0].n_bytes + both[1].n_bytes - shared
    assert asdict(room_taken(root, one)) == {"n_bytes": one[0].n_bytes, "freed_bytes": one[0].n_bytes - shared}
    assert asdict(room_taken(root, both)) == {"n_bytes": in_both, "freed_bytes": in_both}
    before = open_store(nights.store).features(second).read()
    remove(root, one[0])
    np.testing.assert_array_equal(open_store(nights.store).features().read(), before)
    assert room_taken(root, find_removable(root, [second])).freed_bytes == both[1].n_bytes


def test_gc_superseded_leaves_the_newest_night_alone_and_is_dry_by_default(nights: Nights) -> None:
    names = [nights.extract().feature_set]
    for night in range(1, 4):
        nights.add(2 * night + 40, f"even/{night}.png")
        if night == 2:
            (nights.images / "odd" / "001.png").unlink()
        names.append(nights.extract().feature_set)
    root = open_root(nights.store)
    assert collect_garbage(root).garbage == ()
    dry = collect_garbage(root, superseded=True)
    assert open_store(nights.store).names() == sorted(names)
    gone = [each for each in dry.garbage if each.path.startswith("features/")]
    assert {each.path for each in gone} == {f"features/{name}" for name in names[:-1]}
    assert all(each.reason.startswith(f"the newer {names[-1]} holds it") for each in gone)
    assert sum("but for 1 row whose view was removed" in each.reason for each in gone) == 2
    assert 0 < dry.freed_bytes < dry.n_bytes
    disk = real_bytes(nights.store)
    collected = collect_garbage(root, superseded=True, remove=True)
    assert open_store(nights.store).names() == [names[-1]]
    assert disk - real_bytes(nights.store) == collected.freed_bytes == dry.freed_bytes
    assert verify_store(root, deep=True).sound
    assert len(list((Path(nights.store) / "datasets").glob("*/*/dataset.json"))) == 1
    # The job goes on from what is left.
    nights.add(50, "even/z.png")
    assert nights.extract().reused == 22


def real_bytes(store: str) -> int:
    status = [place.stat() for place in Path(store).rglob("*") if place.is_file()]
    return sum({each.st_ino: each.st_size for each in status}.values())


def test_gc_superseded_keeps_what_nothing_newer_holds(nights: Nights) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    unfinished = nights.prepare()
    run_extraction(unfinished, lambda plan, shards, folder, workers: here(plan, shards[:1], folder, workers))
    root = open_root(nights.store)
    assert unfinished.name in open_store(nights.store).names()
    # What is newer is not complete.
    assert collect_garbage(root, superseded=True).garbage == ()
    shutil.rmtree(nights.images / "even")
    (nights.images / "odd" / "001.png").unlink()
    fresh = open_store(nights.store).features(nights.extract().feature_set)
    # Less than half was left, so this is a dataset of its own, which knows nothing of what it lacks.
    assert fresh.spec.identity.grown_from is None
    garbage = {each.path for each in collect_garbage(root, superseded=True).garbage}
    assert not garbage & {f"features/{name}" for name in (first, unfinished.name)}


def test_planning_reads_one_manifest_however_many_nights_there_are(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    for night in range(4):
        nights.add(40 + night, f"even/{night}.png")
        last = nights.extract().feature_set
    nights.add(50, "even/x.png")
    read: list[str] = []

    def counted(root: ObjectRoot, dataset: StoredDataset, columns: list[str]) -> pa.Table:
        read.append(dataset.folder)
        return read_manifest(root, dataset, columns)

    for module in ("growing", "reuse"):
        monkeypatch.setattr(f"pipelines.{module}.read_manifest", counted)
    assert nights.prepare().sources[0].name == last
    # Once for the order of rows, once for what each row is; of the three nights before it, nothing.
    assert read == [open_store(nights.store).features(last).dataset.folder] * 2


def test_planning_reads_the_receipts_of_the_last_night_alone(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    for night in range(3):
        nights.add(40 + night, f"even/{night}.png")
        last = nights.extract().feature_set
    nights.add(50, "even/x.png")
    read: set[str] = set()

    def counted(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt] | None:
        read.add(folder)
        return read_index(root, folder, spec)

    monkeypatch.setattr("feature_store.reader.read_index", counted)
    assert nights.prepare().sources[0].name == last
    assert read == {f"features/{last}"}
