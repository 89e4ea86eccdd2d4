"""Datasets that grew: rows keep their numbers, whole shards are linked, and the bytes are those of computing it all."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store import FeatureSet, Shard, open_store
from pipelines.backbones import BackboneRequest, resolve_backbone
from pipelines.cost import estimate_cost
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.extract import extract_shard
from pipelines.failures import ShardFailure
from pipelines.meter import Meter
from pipelines.plan import ExtractionPlan, ExtractionSettings
from pipelines.run import Outcome, Prepared, prepare_extraction, run_extraction

SameTrees = Callable[[Path, Path], bool]
Prepare = Callable[..., Prepared]


def here(plan: ExtractionPlan, shards: Sequence[Shard], progress: Path, workers: int) -> list[ShardFailure]:
    """An engine without processes: one shard after another."""
    meter = Meter(progress)
    for shard in shards:
        extract_shard(plan, shard, meter=meter)
    return []


@pytest.fixture
def request_of_null() -> BackboneRequest:
    return resolve_backbone("null", image_size=32)


@pytest.fixture
def images(pictures: Path, tmp_path: Path) -> Path:
    """20 pictures, ten in each of two class folders: even/000 to even/018, odd/001 to odd/019."""
    folder = tmp_path / "images"
    for place in sorted(pictures.glob("*/0[01]*.png")):
        (folder / place.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(place, folder / place.parent.name)
    return folder


@pytest.fixture
def add(images: Path, pictures: Path) -> Callable[[int, str], None]:
    """Adds a picture under a name of its own."""

    def copy(number: int, uri: str) -> None:
        shutil.copy(pictures / ("even", "odd")[number % 2] / f"{number:03d}.png", images / uri)

    return copy


@pytest.fixture
def prepare_night(images: Path, request_of_null: BackboneRequest, tmp_path: Path) -> Prepare:
    def prepare(*, store: str = "store", content_key: Any = "sha256", **changes: Any) -> Prepared:
        settings = ExtractionSettings(**{"rows_per_shard": 8, "batch_size": 4, **changes})
        dataset = open_dataset(f"images:{images}", options=DatasetOptions(content_key=content_key))
        return prepare_extraction(dataset, request_of_null, settings, store=str(tmp_path / store))

    return prepare


def extracted(prepared: Prepared) -> Outcome:
    outcome = run_extraction(prepared, here)
    assert outcome.failures == ()
    return outcome


def from_nothing(prepared: Prepared) -> Outcome:
    return extracted(replace(prepared, plan=replace(prepared.plan, sources=())))


def opened(tmp_path: Path, outcome: Outcome, store: str = "store") -> FeatureSet:
    return open_store(str(tmp_path / store)).features(outcome.feature_set)


def folder_of(tmp_path: Path, outcome: Outcome, store: str = "store") -> Path:
    return tmp_path / store / "features" / outcome.feature_set


def objects_of(folder: Path) -> dict[str, int]:
    """The inode of every object of tokens, by its path in the feature set."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("c/*/**/*") if path.is_file()
    } | {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.glob("tokens.zarr/valid/c/*")}


def linked_shards(first: Path, second: Path) -> set[int]:
    """The shards of which every object is one file in both."""
    one, two = objects_of(first), objects_of(second)
    shared: dict[int, list[bool]] = {}
    for path, inode in two.items():
        shard = int(path.partition("/c/")[2].partition("/")[0])
        shared.setdefault(shard, []).append(one.get(path) == inode)
    return {shard for shard, same in shared.items() if all(same)}


def test_rows_of_the_predecessor_stay_and_new_ones_follow_in_uri_order(
    prepare_night: Prepare, images: Path, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = extracted(prepare_night())
    before = opened(tmp_path, first)
    add(50, "odd/zz.png")
    add(51, "even/aa.png")
    add(52, "even/000a.png")
    (images / "odd" / "001.png").rename(images / "even" / "moved.png")
    prepared = prepare_night()
    grown = opened(tmp_path, extracted(prepared))
    uris, old = grown.column("uri"), before.column("uri")
    place = old.index("odd/001.png")
    assert uris[: len(old)] == [*old[:place], "even/moved.png", *old[place + 1 :]]
    assert uris[len(old) :] == ["even/000a.png", "even/aa.png", "odd/zz.png"]
    # The label is that of the new place, the row and its tokens are the old ones.
    assert (before.column("label")[place], grown.column("label")[place]) == (1, 0)
    np.testing.assert_array_equal(grown.read(rows=range(20)), before.read())
    lineage = grown.spec.identity.grown_from
    assert lineage is not None
    assert (lineage.predecessor, lineage.generation) == (before.spec.identity.views_digest, 1)
    assert lineage.in_uri_order == prepare_night(store="other").plan.spec.identity.views_digest
    assert grown.spec.rows_per_shard == before.spec.rows_per_shard
    assert prepared.grown is not None
    assert (prepared.grown.kept, prepared.grown.new, prepared.grown.removed) == (20, 3, 0)


def test_a_fresh_dataset_has_no_growth_in_its_identity_and_order_uri_gives_one(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = opened(tmp_path, extracted(prepare_night()))
    assert "grown_from" not in first.spec.identity.to_json()
    add(50, "even/000a.png")
    fresh = opened(tmp_path, extracted(prepare_night(order="uri")))
    assert "grown_from" not in fresh.spec.identity.to_json()
    assert fresh.column("uri") == sorted(fresh.column("uri"))
    anew = prepare_night(store="another")
    assert anew.name == fresh.name
    # The newest is what tonight's grows out of, and it is this very dataset.
    assert prepare_night().missing == ()


def test_a_night_links_full_shards_and_equals_one_computed_from_nothing(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path, same_trees: SameTrees
) -> None:
    first = extracted(prepare_night())
    shutil.copytree(tmp_path / "store", tmp_path / "anew")
    add(50, "even/000a.png")
    prepared = prepare_night()
    cost = estimate_cost(prepared)
    assert (cost.rows, cost.reused, cost.linked) == (1, 20, 16)
    grown = extracted(prepared)
    assert (grown.rows, grown.reused, grown.committed) == (21, 20, 3)
    assert linked_shards(folder_of(tmp_path, first), folder_of(tmp_path, grown)) == {0, 1}
    anew = from_nothing(prepare_night(store="anew"))
    assert anew.reused == 0
    assert same_trees(folder_of(tmp_path, grown), folder_of(tmp_path, anew, "anew"))


def test_seven_nights_write_the_new_rows_and_the_last_shard_of_each(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path, same_trees: SameTrees
) -> None:
    outcomes = [extracted(prepare_night())]
    for night in range(1, 7):
        if night == 6:
            shutil.copytree(tmp_path / "store", tmp_path / "anew")
        add(2 * night + 20, f"even/{night}.png")
        outcomes.append(extracted(prepare_night()))
    files = list((tmp_path / "store" / "features").glob("*/*/tokens.zarr/*/patches/c/*/0/0"))
    apparent = sum(place.stat().st_size for place in files)
    real = sum({place.stat().st_ino: place.stat().st_size for place in files}.values())
    # Shards of 8 rows: night 0 has 3, and nights 1 to 4 write the third anew; nights 5 and 6 the fourth, of 1 and 2
    # rows, which take a chunk of 8. So 3 + 4 + 2 shards are on the disk, and 5 x 3 + 2 x 4 by name.
    assert apparent == 23 * files[0].stat().st_size
    assert real == 9 * files[0].stat().st_size
    newest = open_store(str(tmp_path / "store")).features()
    assert newest.name == outcomes[-1].feature_set
    assert newest.spec.identity.grown_from is not None
    assert newest.spec.identity.grown_from.generation == 6
    anew = from_nothing(prepare_night(store="anew"))
    assert same_trees(folder_of(tmp_path, outcomes[-1]), folder_of(tmp_path, anew, "anew"))


def test_a_removed_view_leaves_an_invalid_row_that_counts_nowhere(
    prepare_night: Prepare, images: Path, add: Callable[[int, str], None], tmp_path: Path, same_trees: SameTrees
) -> None:
    first = extracted(prepare_night())
    shutil.copytree(tmp_path / "store", tmp_path / "anew")
    gone = opened(tmp_path, first).column("uri").index("odd/001.png")
    (images / "odd" / "001.png").unlink()
    prepared = prepare_night()
    assert (estimate_cost(prepared).rows, estimate_cost(prepared).reused) == (0, 19)
    outcome = extracted(prepared)
    assert outcome.invalid == {"removed": 1}
    grown = opened(tmp_path, outcome)
    assert [(entry.row, entry.reason) for entry in grown.invalid_rows] == [(gone, "removed")]
    assert not grown.read(rows=[gone]).any()
    assert (grown.column("split")[gone], grown.column("label")[gone]) == (None, None)
    assert grown.column("image_sha256")[gone].startswith("removed:")
    # Its shard and no other is written: without the tokens of what was removed.
    assert linked_shards(folder_of(tmp_path, first), folder_of(tmp_path, outcome)) == {0, 1, 2} - {gone // 8}
    anew = from_nothing(prepare_night(store="anew"))
    assert same_trees(folder_of(tmp_path, outcome), folder_of(tmp_path, anew, "anew"))
    # From now on that shard is linked as well, removed row and all.
    add(50, "even/x.png")
    third = extracted(prepare_night())
    assert linked_shards(folder_of(tmp_path, outcome), folder_of(tmp_path, third)) == {0, 1}
    assert third.invalid == {"removed": 1}


def test_a_removed_view_that_comes_back_gets_its_row_back(
    prepare_night: Prepare, images: Path, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = opened(tmp_path, extracted(prepare_night()))
    (images / "odd" / "001.png").unlink()
    extracted(prepare_night())
    add(1, "even/back.png")
    prepared = prepare_night()
    assert prepared.grown is not None
    assert (prepared.grown.kept, prepared.grown.new, prepared.grown.removed) == (20, 0, 0)
    third = opened(tmp_path, extracted(prepared))
    row = first.column("uri").index("odd/001.png")
    assert (third.column("uri")[row], third.column("label")[row], third.spec.n_rows) == ("even/back.png", 0, 20)
    np.testing.assert_array_equal(third.read(), first.read())
    assert third.invalid_rows == ()


def test_a_file_with_other_content_is_another_view(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = opened(tmp_path, extracted(prepare_night()))
    add(51, "odd/001.png")
    outcome = extracted(prepare_night())
    grown = opened(tmp_path, outcome)
    row = first.column("uri").index("odd/001.png")
    assert (outcome.invalid, grown.spec.n_rows) == ({"removed": 1}, 21)
    assert [grown.column(name)[row] for name in ("uri", "valid", "label")] == ["odd/001.png", False, None]
    assert [grown.column(name)[20] for name in ("uri", "valid", "label")] == ["odd/001.png", True, 1]
    assert (grown.read(rows=[20]) != first.read(rows=[row])).any()


def test_equal_pictures_at_several_places_keep_their_own_rows(
    prepare_night: Prepare, images: Path, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    add(0, "even/copy-a.png")
    add(0, "even/copy-b.png")
    first = opened(tmp_path, extracted(prepare_night()))
    (images / "even" / "copy-a.png").unlink()
    (images / "even" / "000.png").rename(images / "odd" / "zzz.png")
    add(0, "even/copy-c.png")
    add(0, "odd/copy-d.png")
    grown = opened(tmp_path, extracted(prepare_night()))
    old, new = first.column("uri"), grown.column("uri")
    rows = {uri: old.index(uri) for uri in ("even/000.png", "even/copy-a.png", "even/copy-b.png")}
    # The one that stayed keeps its row; the others take what is free, in order, and the last is new.
    assert new[rows["even/copy-b.png"]] == "even/copy-b.png"
    assert new[rows["even/000.png"]] == "even/copy-c.png"
    assert new[rows["even/copy-a.png"]] == "odd/copy-d.png"
    assert new[22:] == ["odd/zzz.png"]
    assert sorted(new) == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))


def test_moving_one_photo_between_class_folders_writes_no_token(
    prepare_night: Prepare, images: Path, tmp_path: Path
) -> None:
    first = extracted(prepare_night())
    (images / "odd" / "001.png").rename(images / "even" / "moved.png")
    second = extracted(prepare_night())
    assert first.feature_set != second.feature_set
    assert linked_shards(folder_of(tmp_path, first), folder_of(tmp_path, second)) == {0, 1, 2}


def test_an_interrupted_night_goes_on_also_when_its_predecessor_was_removed(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path, same_trees: SameTrees
) -> None:
    first = extracted(prepare_night())
    for number in range(40, 50):
        add(number, f"even/{number}.png")
    shutil.copytree(tmp_path / "store", tmp_path / "anew")
    whole = extracted(prepare_night(store="anew"))

    def half(plan: ExtractionPlan, shards: Sequence[Shard], progress: Path, workers: int) -> list[ShardFailure]:
        return here(plan, [shards[0], shards[3]], progress, workers)

    prepared = prepare_night()
    assert run_extraction(prepared, half).committed == 2
    again = prepare_night()
    assert (again.name, [shard.index for shard in again.missing]) == (prepared.name, [1, 2])
    shutil.rmtree(folder_of(tmp_path, first))
    last = prepare_night()
    assert (last.name, len(last.missing)) == (prepared.name, 2)
    grown = extracted(last)
    assert same_trees(folder_of(tmp_path, grown), folder_of(tmp_path, whole, "anew"))


def test_an_unfinished_set_of_another_content_is_nobodys_predecessor(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = extracted(prepare_night())
    add(50, "even/x.png")
    run_extraction(prepare_night(), lambda *_: [])
    add(52, "even/w.png")
    prepared = prepare_night()
    assert prepared.grown is not None
    assert prepared.grown.predecessor == first.feature_set


def test_the_set_stands_alone_when_its_predecessor_goes(
    prepare_night: Prepare, add: Callable[[int, str], None], tmp_path: Path
) -> None:
    first = extracted(prepare_night())
    add(50, "even/x.png")
    grown = opened(tmp_path, extracted(prepare_night()))
    before = grown.read()
    shutil.rmtree(folder_of(tmp_path, first))
    np.testing.assert_array_equal(open_store(str(tmp_path / "store")).features().read(), before)


def test_a_dataset_of_which_less_than_half_is_left_or_whose_shards_got_too_small_is_fresh(
    prepare_night: Prepare, images: Path, pictures: Path, tmp_path: Path
) -> None:
    extracted(prepare_night(rows_per_shard=None, batch_size=8))
    for place in [*images.glob("even/*.png"), images / "odd" / "001.png"]:
        place.unlink()
    prepared = prepare_night(rows_per_shard=None, batch_size=8)
    assert prepared.grown is not None
    assert prepared.grown.predecessor is None
    shutil.rmtree(images)
    # Copies under many names: a fresh dataset of 1,040 rows has shards of 64 rows, and the first had shards of 8.
    for number in range(52):
        (images / str(number)).mkdir(parents=True)
        for place in sorted(pictures.glob("*/0[01]*.png")):
            os.link(place, images / str(number) / place.name)
    assert prepare_night(rows_per_shard=None, batch_size=8).grown.predecessor is None  # type: ignore[union-attr]
    assert prepare_night(batch_size=8).grown.predecessor is not None  # type: ignore[union-attr]


def test_another_recipe_array_or_shard_size_is_no_predecessor(prepare_night: Prepare) -> None:
    extracted(prepare_night())
    for change in ({"batch_size": 8}, {"rows_per_shard": 16}, {"storage_dtype": "float32"}, {"layers": (1, "last")}):
        grown = prepare_night(**change).grown
        assert grown is not None
        assert grown.predecessor is None, change
