import filecmp
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from feature_store import open_store
from pipelines.backbones.checkpoint import read_state
from tests.feature_store.samples import files_of

from .conftest import Run


def test_the_same_command_again_computes_nothing(
    vitrine: Run, tiny_store: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    again = vitrine(
        *("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", tiny_store, "--json"),
    )
    assert again.code == 0
    assert again.json["already_done"] is True


def test_an_input_that_is_not_square_is_extracted_and_classified_by_its_masks(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    store = tmp_path / "store"
    for model in (("null",), (tiny_model, "--weights", tiny_weights)):
        command = ("extract", f"segmentation:{tiny_images}", "--image-size", "32x64", "--store", store)
        assert vitrine(*command, "--model", *model).code == 0
        features = open_store(str(store)).features(model[0])
        assert features.spec.grid == (2, 4)
        assert features.spec.identity.preprocessing["image_size"] == [32, 64]
        assert features.read("last", "patches").shape == (24, 8, features.spec.n_features)
        asked = vitrine("knn", store, "--features", model[0], "--json")
        assert 0 < asked.json["miou"] <= 1
        # One token a row, and a mask with the input's proportions or not: each patch has a place in it.
        assert vitrine("query", store, "--features", model[0], "--nearest", "0:7", "-k", "1").code == 0


def test_a_crop_in_the_images_own_proportions_cuts_nothing_off(vitrine: Run, tmp_path: Path, tiny_images: Path) -> None:
    # The images are 48 high and 64 wide, so that fitting them to this input changes no pixel.
    command = ("extract", f"segmentation:{tiny_images}", "--model", "null")
    asked = []
    for fit, size in (("crop", "48x64"), ("squash", "48x64"), ("crop", "64")):
        store = tmp_path / f"{fit}-{size}"
        assert vitrine(*command, "--image-size", size, "--fit", fit, "--store", store).code == 0
        asked.append(vitrine("knn", store, "--json"))
    cropped, squashed, cut = asked
    assert cropped.json["miou"] == squashed.json["miou"] > 0
    assert "was extracted with a centre crop, so patches do not cover their masks" in cut.err


def test_attention_is_stored_on_request_and_asked_for_like_tokens(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    store = tmp_path / "store"
    command = ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights)
    ran = vitrine(*command, "--image-size", "64", "--tokens", "patches,attention", "--store", store)
    assert ran.code == 0, ran.err
    features = open_store(str(store)).features()
    stored = features.read("last", "attention")
    assert stored.shape == (24, features.spec.n_heads, 16)
    assert vitrine("verify", store, "--deep").code == 0
    place = tmp_path / "attention.npy"
    assert vitrine("query", store, "--tokens", "attention", "-o", place).code == 0
    assert np.array_equal(np.load(place), stored)
    # It has no features: what works on features leaves it out, and says so when it is named.
    compressed = vitrine("compress", store, "--storage", "int8", "--json")
    assert compressed.code == 0, compressed.err
    assert open_store(str(store)).features(f"{tiny_model}-int8").spec.identity.token_kinds == ("patches",)
    for words in (("variance", store), ("compress", store, "--storage", "int8")):
        refused = vitrine(*words, "--features", tiny_model, "--tokens", "attention")
        assert refused.code == 2
        assert "patches, cls, registers." in refused.err


def test_windows_slide_over_a_large_input(vitrine: Run, tmp_path: Path, tiny_images: Path) -> None:
    command = ("extract", f"segmentation:{tiny_images}", "--model", "null", "--store", tmp_path / "store")
    ran = vitrine(*command, "--image-size", "64x128", "--window", "64", "--stride", "32")
    assert ran.code == 0, ran.err
    assert "grid 4 x 8, in windows of 64 x 64 every 32 x 32" in " ".join(ran.out.split())
    assert open_store(str(tmp_path / "store")).features().spec.grid == (4, 8)
    for options, message in (
        (("--window", "64"), "--window 64 slides over an input whose size is not given"),
        (("--image-size", "64", "--stride", "32"), "--stride 32 goes from window to window, and there is none"),
        (("--image-size", "64", "--window", "32,32"), "--window '32,32': write the side"),
    ):
        refused = vitrine(*command, *options)
        assert refused.code == 2
        assert message in refused.err


@pytest.mark.parametrize("size", ["224x", "x", "0", "12x-3", "224,448", "1e3", "99999"])
def test_a_size_that_is_none_is_wrong_usage(vitrine: Run, tmp_path: Path, tiny_images: Path, size: str) -> None:
    ran = vitrine(
        *("extract", f"segmentation:{tiny_images}", "--model", "null", "--image-size", size, "--store", tmp_path)
    )
    assert ran.code == 2
    assert f"--image-size '{size}': write the side of a square or HEIGHTxWIDTH" in ran.err


def test_dry_run_says_the_cost_and_writes_nothing(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    ran = vitrine(
        *("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", tmp_path / "store", "--dry-run", "--json"),
    )
    assert ran.code == 0, ran.err
    cost = ran.json
    # 24 views of 100 patches and a class token, 64 float16 features, and one byte that says the row is valid.
    assert (cost["rows"], cost["stored_bytes"]) == (24, 24 * (101 * 64 * 2 + 1))
    assert (cost["seconds"], cost["calibrated"]) == (None, False)
    assert cost["worker_bytes"] > 0
    assert not (tmp_path / "store").exists()


def test_a_dry_run_loads_no_weights_and_calibrate_does(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    # Whoever loads these numbers refuses them; names and shapes are in order.
    broken = {name: torch.full_like(value, torch.nan) for name, value in read_state(tiny_weights).items()}
    save_file(broken, tmp_path / "broken.safetensors")
    command = ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--store", tmp_path / "store")
    dry = vitrine(*command, "--weights", tmp_path / "broken.safetensors", "--dry-run")
    assert dry.code == 0, dry.err
    assert "--calibrate loads the model and times one batch" in dry.out
    measured = vitrine(*command, "--weights", tmp_path / "broken.safetensors", "--dry-run", "--calibrate")
    assert (measured.code, "not finite" in measured.err) == (2, True)
    measured = vitrine(*command, "--weights", tiny_weights, "--dry-run", "--calibrate", "--json")
    assert measured.json["seconds"] > 0
    alone = vitrine(*command, "--weights", tiny_weights, "--calibrate")
    assert (alone.code, "--calibrate goes with --dry-run" in alone.err) == (2, True)


def test_dry_run_of_what_was_begun_changes_nothing(
    vitrine: Run, tmp_path: Path, tiny_store: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    images, store = tmp_path / "images", tmp_path / "store"
    shutil.copytree(tiny_images, images)
    shutil.copytree(tiny_store, store)
    next(store.glob("features/*/*/receipts/000001.json")).unlink()
    next(store.glob("features/*/*/receipts.json")).unlink()
    for path in (images / "testannot").glob("*.png"):
        with Image.open(path) as mask:
            relabelled = Image.new(mask.mode, mask.size, 1)
        relabelled.save(path)
    before = files_of(store)
    command = ("extract", f"segmentation:{images}", "--model", tiny_model, "--weights", tiny_weights, "--store", store)
    dry = vitrine(*command, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert dry.json["shards"] == 1
    assert files_of(store) == before
    ran = vitrine(*command, "--json").json
    assert (ran["feature_set"], ran["committed"]) == (dry.json["feature_set"], 1)


def test_dry_run_refuses_the_folder_of_something_else(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    command = ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights)
    ran = vitrine(*command, "--store", tmp_path, "--dry-run")
    assert ran.code == 1
    assert "not a store" in ran.err


def test_invalid_images_keep_their_rows_and_exit_3(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny_images, images)
    whole = (images / "train" / "00.png").read_bytes()
    (images / "train" / "00.png").write_bytes(whole[: len(whole) // 2])
    ran = vitrine(
        *("extract", f"segmentation:{images}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", tmp_path / "store", "--json"),
    )
    assert ran.code == 3
    assert ran.json["invalid"] == {"truncated": 1}
    features = open_store(str(tmp_path / "store")).features()
    row = features.column("uri").index("train/00.png")
    assert [entry.row for entry in features.invalid_rows] == [row]
    assert not features.read(rows=[row]).any()
    shown = vitrine("show", tmp_path / "store")
    assert "train/00.png" in shown.out
    assert "truncated" in shown.out


def test_relabelling_recomputes_no_feature_and_changes_the_answer(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    images, store = tmp_path / "images", tmp_path / "store"
    shutil.copytree(tiny_images, images)
    command = ("extract", f"segmentation:{images}", "--model", tiny_model, "--weights", tiny_weights, "--store", store)
    assert vitrine(*command).code == 0
    before = vitrine("knn", store, "--json").json
    for path in (images / "testannot").glob("*.png"):
        with Image.open(path) as mask:
            relabelled = Image.new(mask.mode, mask.size, 1)
        relabelled.save(path)
    again = vitrine(*command, "--json")
    assert again.json["already_done"] is True
    after = vitrine("knn", store, "--json").json
    assert after["cached"] is False
    assert after["miou"] != before["miou"]


def test_two_workers_write_the_bytes_of_one(
    vitrine: Run, tmp_path: Path, tiny_store: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    ran = vitrine(
        *("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", tmp_path / "store", "--workers", 2, "--json"),
    )
    assert ran.code == 0, ran.err
    assert_same_tree(tiny_store / "features", tmp_path / "store" / "features")


def assert_same_tree(left: Path, right: Path) -> None:
    names = sorted(path.relative_to(left) for path in left.rglob("*"))
    assert names == sorted(path.relative_to(right) for path in right.rglob("*"))
    files = [str(name) for name in names if (left / name).is_file()]
    assert filecmp.cmpfiles(left, right, files, shallow=False)[1:] == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "images:/nowhere", "--model", "demo"], "/nowhere"),
        (["extract", "frobnicate", "--model", "demo"], "images:PATH"),
        (["extract", "{images}", "--model", "vit_frob"], "'vit_frob' is not known"),
        (["extract", "{images}", "--model", "{model}", "--weights", "/nowhere.pth"], "cannot be read"),
        (
            ["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--tokens", "registers"],
            "has no register tokens",
        ),
        (["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--layers", "7"], "blocks 1..6"),
        (["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--tile", "50"], "50"),
        (["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--compute", "int4"], "float32"),
        (["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--image-size", "161"], "multiple"),
        (["extract", "{images}", "--model", "{model}", "--weights", "{weights}", "--device", "tpu"], "auto, cpu"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_2(
    vitrine: Run,
    tmp_path: Path,
    tiny_images: Path,
    tiny_model: str,
    tiny_weights: Path,
    arguments: list[str],
    message: str,
) -> None:
    places = {"images": f"segmentation:{tiny_images}", "model": tiny_model, "weights": str(tiny_weights)}
    ran = vitrine(*(argument.format(**places) for argument in arguments), "--store", tmp_path / "store")
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""


def test_a_folder_that_is_not_a_store_is_left_alone(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    ran = vitrine(
        *("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", tmp_path),
    )
    assert ran.code == 1
    assert "not a store" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]
