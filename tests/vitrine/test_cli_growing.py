"""`vitrine extract` on a dataset that changed: what it says, and what it leaves alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from feature_store.records import RECORD_DIGEST, record_bytes
from tests.feature_store.samples import files_of

from .conftest import Run


@pytest.fixture
def grown(tmp_path: Path, tiny_images: Path, tiny_store: Path, tiny_model: str, tiny_weights: Path) -> tuple[Any, ...]:
    """The command that extracts `tiny_images` with two more into a copy of their store, and one that lost an image."""
    images, store = tmp_path / "images", tmp_path / "store"
    shutil.copytree(tiny_images, images)
    shutil.copytree(tiny_store, store)
    for name in ("train/000.png", "test/99.png"):
        Image.new("RGB", (64, 48), (len(name), 80, 200)).save(images / name)
        place = images / name.replace("/", "annot/")
        Image.new("L", (64, 48), 1).save(place)
    (images / "test" / "03.jpg").unlink()
    (images / "testannot" / "03.png").unlink()
    return ("extract", f"segmentation:{images}", "--model", tiny_model, "--weights", tiny_weights, "--store", store)


def test_extract_says_how_many_rows_it_reuses(vitrine: Run, grown: tuple[Any, ...]) -> None:
    before = files_of(Path(grown[-1]))
    dry = vitrine(*grown, "--dry-run", "--json").json
    assert files_of(Path(grown[-1])) == before
    assert (dry["rows"], dry["reused"]) == (2, 23)
    assert [source["rows"] for source in dry["sources"]] == [23]
    ran = vitrine(*grown)
    assert ran.code == 0, ran.err
    assert "2 rows in" in ran.out
    assert f"23 rows, copied from {dry['sources'][0]['name']}" in ran.out
    assert "23 rows reused" in ran.out
    again = vitrine(*grown)
    assert again.code == 0
    assert "done already, nothing to compute" in again.out


def test_extract_gives_the_reused_rows_as_json(vitrine: Run, grown: tuple[Any, ...]) -> None:
    ran = vitrine(*grown, "--json")
    assert ran.code == 0, ran.err
    # 25 images, and the place of the one that was removed, which is no failure.
    assert (ran.json["rows"], ran.json["reused"], ran.json["invalid"]) == (26, 23, {"removed": 1})
    assert ran.json["exit_code"] == 0
    again = vitrine(*grown, "--json").json
    assert (again["already_done"], again["reused"]) == (True, 0)


def test_extract_says_which_rows_another_environment_keeps_from_reuse(vitrine: Run, grown: tuple[Any, ...]) -> None:
    for place in Path(grown[-1]).glob("runs/*/run.json"):
        record = json.loads(place.read_text())
        del record[RECORD_DIGEST]
        record["environment"]["torch"] = "1.0"
        place.write_bytes(record_bytes(record))
    dry = vitrine(*grown, "--dry-run")
    assert "25 rows in" in dry.out
    assert "torch: begun with '1.0', now" in dry.out
    assert "--allow-mixed-environment copies them" in dry.out
    ran = vitrine(*grown, "--allow-mixed-environment", "--json")
    assert ran.json["reused"] == 23
    shown = vitrine("show", grown[-1], "--features", ran.json["feature_set"], "--json").json
    assert shown["mixed_environment"] is True


def test_the_script_of_night_one_works_on_night_two_and_says_which_state_it_means(
    vitrine: Run, grown: tuple[Any, ...]
) -> None:
    store = grown[-1]
    (first,) = (each["name"] for each in vitrine("ls", store, "--json").json["feature_sets"])
    dataset = first.partition("-")[0]
    assert vitrine("variance", store, "--features", dataset, "--json").err == ""
    second = vitrine(*grown, "--json").json["feature_set"]
    assert second != first
    for command in (("variance", store), ("variance", store, "--features", dataset), ("show", store)):
        ran = vitrine(*command, "--json")
        assert ran.code == 0, ran.err
        assert second in (ran.json.get("features"), ran.json.get("name"))
        line = f"vitrine: {second} is meant, the newest complete of 2 states of one dataset and recipe; "
        assert ran.err == f"{line}--features {first} takes another.\n"
    older = vitrine("variance", store, "--features", f"{dataset}@{first[-8:]}", "--json")
    assert (older.json["features"], older.err) == (first, "")
    assert vitrine("rm", store, dataset).code == 2


def test_relabelling_says_that_nothing_is_computed(vitrine: Run, grown: tuple[Any, ...]) -> None:
    assert vitrine(*grown).code == 0
    images = Path(str(grown[1]).removeprefix("segmentation:"))
    Image.new("L", (64, 48), 2).save(images / "testannot" / "99.png")
    again = vitrine(*grown)
    assert again.code == 0
    assert "done already, nothing to compute" in again.out


def test_rm_and_gc_count_a_shared_file_once_and_name_what_stays_only_where_something_does(
    vitrine: Run, tmp_path: Path
) -> None:
    images, store = tmp_path / "images", tmp_path / "store"
    for number in range(16):
        place = images / "ab"[number % 2] / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, 80, 200)).save(place)
    options = ("--model", "null", "--image-size", "32", "--rows-per-shard", "8", "--batch-size", "4")
    extract = ("extract", f"images:{images}", *options, "--store", store)
    assert vitrine(*extract).code == 0
    Image.new("RGB", (32, 32), (99, 80, 200)).save(images / "b" / "99.png")
    assert vitrine(*extract).code == 0
    places = [place for place in (store / "features").rglob("*") if place.is_file()]
    on_disk = sum({place.stat().st_ino: place.stat().st_size for place in places}.values())
    first, second = (each["name"] for each in vitrine("ls", store, "--json").json["feature_sets"])
    both = vitrine("rm", store, first, second, "--json").json
    assert both["n_bytes"] == both["freed_bytes"] == on_disk < sum(each["bytes"] for each in both["found"])
    said = vitrine("rm", store, first, second).out
    assert " in all\n" in said
    assert "stays" not in said
    assert "the rest is shared with what stays" in vitrine("rm", store, first).out
    (store / "aside").mkdir()
    (store / "features").rename(store / "aside" / "1")
    aside = vitrine("gc", store, "--aside", "--json").json
    assert aside["n_bytes"] == aside["freed_bytes"] >= on_disk
    assert "stays" not in vitrine("gc", store, "--aside").out


def test_removed_rows_count_nowhere_unless_they_are_asked_for(vitrine: Run, grown: tuple[Any, ...]) -> None:
    store = grown[-1]
    name = vitrine(*grown, "--json").json["feature_set"]
    of_it = ("query", store, "--features", name)
    live = vitrine(*of_it, "--where", "true", "--json").json
    assert live["n_rows"] == 25
    assert not any(row["uri"] == "test/03.jpg" for row in live["rows"])
    assert vitrine(*of_it, "--json").json == live
    assert vitrine(*of_it, "--where", "split IS NULL", "--json").json["n_rows"] == 0
    asked = vitrine(*of_it, "--where", "split IS NULL", "--removed", "--json").json
    assert [row["uri"] for row in asked["rows"]] == ["test/03.jpg"]
    assert vitrine(*of_it, "--removed", "--json").json["n_rows"] == 26
    assert "25 of 25 + 1 removed rows" in vitrine(*of_it).out
    (listed,) = (each for each in vitrine("ls", store, "--json").json["feature_sets"] if each["name"] == name)
    assert (listed["rows"], listed["removed"]) == (26, 1)
    assert "25 + 1 removed" in vitrine("ls", store).out
    assert "25 + 1 removed, 0 of them invalid" in vitrine("show", store, "--features", name).out
    assert vitrine("show", store, "--features", name, "--json").json["removed"] == 1
