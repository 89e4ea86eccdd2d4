"""What `vitrine extract` says of a dataset before it starts, and what it records."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.image_files import MAX_IMAGE_PIXELS
from tests.vitrine.conftest import Run
from vitrine.extract_command import extract


def folder_of_classes(root: Path) -> Path:
    for index, name in enumerate(("ant", "cat")):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "1.png")
    (root / "bee").mkdir()
    for index in range(5):
        (root / "bee" / f"{index}\x1b[31m.heic").write_bytes(b"x")
    return root


def test_what_is_passed_over_is_told_before_the_start_in_json_and_in_the_run(vitrine: Run, tmp_path: Path) -> None:
    pictures, store = folder_of_classes(tmp_path / "pictures"), tmp_path / "store"
    command = ("extract", f"images:{pictures}", "--model", "null", "--store", store)
    for ran in (vitrine(*command, "--dry-run"), vitrine(*command), vitrine(*command)):
        assert ran.code == 0, ran.err
        assert "files ending in .heic: 5 ('bee/0\\x1b[31m.heic', " in " ".join(ran.out.split())
        assert "classes without an image that is read: 1 ('bee')" in " ".join(ran.out.split())
        assert "\x1b" not in ran.out
    (record,) = [json.loads(path.read_text()) for path in (store / "runs").glob("*/run.json")]
    for found in (record["findings"], vitrine(*command, "--json").json["findings"]):
        assert [one["kind"] for one in found] == ["passed_over", "class_without_images"]
        assert (found[0]["count"], found[0]["names"][4]) == (5, "bee/4\x1b[31m.heic")
        assert found[1]["names"] == ["bee"]


def test_folders_that_are_links_are_read_where_the_user_named_their_root(vitrine: Run, tmp_path: Path) -> None:
    imagenet = folder_of_classes(tmp_path / "imagenet")
    (tmp_path / "hundred").mkdir()
    for name in ("ant", "cat"):
        (tmp_path / "hundred" / name).symlink_to(imagenet / name)
    command = ("extract", f"images:{tmp_path / 'hundred'}", "--model", "null", "--store", tmp_path / "store")
    refused = vitrine(*command)
    assert refused.code == 2
    assert f"--follow-links '{imagenet}'" in refused.err
    elsewhere = vitrine(*command, "--follow-links", tmp_path / "hundred")
    assert "leads out of" in elsewhere.err
    ran = vitrine(*command, "--follow-links", imagenet, "--json")
    assert (ran.code, ran.json["rows"], ran.json["invalid"]) == (0, 2, {})
    (tmp_path / "copied").mkdir()
    for name in ("ant", "cat"):
        shutil.copytree(imagenet / name, tmp_path / "copied" / name)
    copied = vitrine(
        *("extract", f"images:{tmp_path / 'copied'}", "--model", "null", "--store", tmp_path / "store"),
        *("--name", "hundred", "--json"),
    )
    assert copied.json["feature_set"] == ran.json["feature_set"]  # where the files are is no part of what they are


def test_the_limit_of_pixels_is_an_option_and_never_one_name_for_two_contents(vitrine: Run, tmp_path: Path) -> None:
    pictures = folder_of_classes(tmp_path / "pictures")
    Image.new("RGB", (64, 48), (9, 99, 200)).save(pictures / "cat" / "large.png")
    command = ("extract", f"images:{pictures}", "--model", "null", "--store", tmp_path / "store", "--json")
    whole = vitrine(*command)
    limited = vitrine(*command, "--max-pixels", "3071")
    assert (whole.code, limited.code) == (0, 3)
    assert limited.json["invalid"] == {"too_large": 1}
    (unreadable,) = [found for found in limited.json["findings"] if found["kind"] == "unreadable"]
    assert unreadable["detail"] == "64 x 48; at most 3071 pixels are read, see --max-pixels"
    assert whole.json["feature_set"] != limited.json["feature_set"]
    assert vitrine(*command, "--max-pixels", "0").code == 2
    assert inspect.signature(extract).parameters["max_pixels"].default == MAX_IMAGE_PIXELS


def roads_of(root: Path, values: list[int], description: str) -> Path:
    """Four images with masks in blocks; `values` are what their files have for void, grass and road."""
    random = np.random.default_rng(0)
    for split, index in (("train", 0), ("train", 1), ("test", 2), ("test", 3)):
        numbers = np.repeat(np.repeat(random.integers(0, 3, (4, 4)), 16, axis=0), 16, axis=1)
        image, mask = np.stack([numbers * 100] * 3, axis=2).astype(np.uint8), np.array(values, np.uint8)[numbers]
        for folder, pixels in ((split, image), (f"{split}annot", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")
    (root / "dataset.json").write_text(description)
    return root


def test_masks_that_count_from_1_are_evaluated_by_their_class_numbers(vitrine: Run, tmp_path: Path) -> None:
    from_1 = roads_of(
        tmp_path / "a", [0, 1, 2], '{"name": "roads", "classes": ["grass", "road"], "offset": 1, "void": 0}'
    )
    from_0 = roads_of(tmp_path / "b", [255, 0, 1], '{"name": "roads"}')
    options = {from_1: (), from_0: ("--classes", "grass, road", "--void", "255")}
    answers = []
    for folder, store in ((from_1, tmp_path / "store1"), (from_0, tmp_path / "store0")):
        command = ("extract", f"segmentation:{folder}", "--model", "null", "--store", store, "--json")
        assert vitrine(*command, *options[folder]).code == 0
        answers.append(vitrine("knn", store, "--json").json)
    for key in ("feature_set", "annotations", "digest", "class_iou", "n_train"):
        assert answers[0][key] == answers[1][key], key
    assert set(answers[0]["class_iou"]) == {"grass", "road"}
    (run,) = (tmp_path / "store1" / "runs").glob("*/run.json")
    named = {"0": "void", "1": "grass", "2": "road"}
    assert json.loads(run.read_text())["mask_values"] == {"values": named, "colours": []}
