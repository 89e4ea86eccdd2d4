"""The demo scenes: exact, repeatable, and without a source pixel that train and test share."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_store.errors import ManifestError
from pipelines.datasets import DatasetOptions, open_dataset, write_demo_scenes
from pipelines.datasets.demo_photographs import CLASSES, SPLITS, Box, Photographs, Split, read_photographs
from pipelines.datasets.demo_scenes import SIDE_PX, compose_scene

SCENES = 6


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return read_photographs()


def without(photographs: Photographs, split: Split) -> Photographs:
    """The photographs with every region of a split painted over."""
    painted = {name: pixels.copy() for name, pixels in photographs.items()}
    for scene_class in CLASSES:
        for box in scene_class.boxes(split):
            painted[scene_class.photograph][box.y : box.y + box.height, box.x : box.x + box.width] = (255, 0, 255)
    return painted


def overlap(a: Box, b: Box) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


def test_no_source_pixel_is_in_both_splits() -> None:
    for one, other in product(CLASSES, CLASSES):
        if one.photograph == other.photograph:
            assert not any(overlap(a, b) for a, b in product(one.train, other.test))


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_scenes_use_their_own_regions_only(photographs: Photographs, split: Split, other: Split) -> None:
    painted, blank = without(photographs, other), without(photographs, split)
    for index in range(SCENES):
        scene = compose_scene(photographs, split=split, index=index)
        assert np.array_equal(compose_scene(painted, split=split, index=index).pixels, scene.pixels)
        assert not np.array_equal(compose_scene(blank, split=split, index=index).pixels, scene.pixels)


def test_mask_says_which_photograph_a_pixel_came_from(photographs: Photographs) -> None:
    # One photograph is red, all others blue: jitter and shadow change how light a pixel is, never which colour leads.
    red, blue = np.array([200, 0, 0], np.uint8), np.array([0, 0, 200], np.uint8)
    for chosen in photographs:
        flat = {
            name: np.broadcast_to(red if name == chosen else blue, pixels.shape) for name, pixels in photographs.items()
        }
        of_chosen = [index for index, scene_class in enumerate(CLASSES) if scene_class.photograph == chosen]
        for index in range(4):
            scene = compose_scene(flat, split="train", index=index)
            assert np.array_equal(scene.pixels[..., 0] > scene.pixels[..., 2], np.isin(scene.mask, of_chosen))


def test_scene_is_a_function_of_its_arguments(photographs: Photographs) -> None:
    first = compose_scene(photographs, split="train", index=1, seed=5)
    again = compose_scene(photographs, split="train", index=1, seed=5)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.mask, again.mask)
    others = (
        compose_scene(photographs, split="test", index=1, seed=5),
        compose_scene(photographs, split="train", index=2, seed=5),
        compose_scene(photographs, split="train", index=1, seed=6),
    )
    assert not any(np.array_equal(other.mask, first.mask) for other in others)


def test_every_class_is_common_in_both_splits(photographs: Photographs) -> None:
    for split in SPLITS:
        counts = np.zeros(len(CLASSES))
        for index in range(24):
            mask = compose_scene(photographs, split=split, index=index).mask
            assert mask.shape == (SIDE_PX, SIDE_PX)
            counts += np.bincount(mask.ravel(), minlength=len(CLASSES))
        assert (counts / counts.sum()).min() > 0.02


def test_written_scenes_are_a_segmentation_folder(tmp_path: Path, photographs: Photographs) -> None:
    write_demo_scenes(tmp_path, seed=3, train_scenes=2, test_scenes=1)
    dataset = open_dataset(f"segmentation:{tmp_path}")
    rows = dataset.table.to_pylist()
    assert [row["uri"] for row in rows] == ["test/scene_000.png", "train/scene_000.png", "train/scene_001.png"]
    for row, mask in zip(rows, dataset.iter_masks(), strict=True):
        scene = compose_scene(photographs, split=row["split"], index=int(row["uri"][-5]), seed=3)
        with Image.open(tmp_path / row["uri"]) as image:
            assert np.array_equal(np.asarray(image), scene.pixels)
        assert mask is not None
        assert np.array_equal(mask, scene.mask)
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["classes"] == [scene_class.name for scene_class in CLASSES]
    assert len(dataset.spec.colours) == dataset.spec.n_classes
    assert dataset.spec.license
    assert dataset.spec.source


def test_demo_is_written_once_and_read_again(tmp_path: Path) -> None:
    dataset = open_dataset("demo", options=DatasetOptions(cache=tmp_path, limit_per_split=2))
    assert (dataset.spec.name, dataset.spec.n_classes, dataset.spec.void) == ("demo", len(CLASSES), 255)
    assert len(list((dataset.root / "train").iterdir())) == 48
    assert len(list((dataset.root / "test").iterdir())) == 24
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = open_dataset("demo", options=DatasetOptions(cache=tmp_path, tile=112))
    assert again.table.num_rows == 72 * 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    assert [path.name for path in tmp_path.iterdir()] == [dataset.root.name]


def test_unusable_cache_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ManifestError, match="set XDG_CACHE_HOME to a folder that you may write"):
        open_dataset("demo", options=DatasetOptions(cache=tmp_path / "file"))


def test_demo_goes_to_the_folder_that_the_user_names_for_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vitrine").write_bytes(b"")
    with pytest.raises(ManifestError, match=f"cannot be written to {tmp_path}/vitrine/demo-scenes-"):
        open_dataset("demo")


def test_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="none may be negative"):
        write_demo_scenes(tmp_path, seed=-1)
