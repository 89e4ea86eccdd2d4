"""`images:PATH` takes no masks for images of a class, in the layouts that people have, and believes stated classes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_store.errors import ManifestError
from pipelines.datasets import DatasetOptions, open_dataset

RANDOM = np.random.default_rng(0)


def write(path: Path, mode: str = "RGB", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 5, (8, 12) if mode != "RGB" else (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(bytes(range(48)))
    image.save(path, **options)


def refused(root: Path) -> str:
    with pytest.raises(ManifestError, match="mask") as caught:
        open_dataset(f"images:{root}")
    return str(caught.value)


def test_cityscapes_is_no_dataset_of_two_classes(tmp_path: Path) -> None:
    write(tmp_path / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png")
    write(tmp_path / "gtFine/train/ulm/ulm_0_gtFine_color.png")
    write(tmp_path / "gtFine/train/ulm/ulm_0_gtFine_instanceIds.png", "L")
    write(tmp_path / "gtFine/train/ulm/ulm_0_gtFine_labelIds.png", "L")
    assert "folder 'gtFine' holds masks and no images of a class" in refused(tmp_path)


def test_ade20k_is_no_dataset_of_two_classes(tmp_path: Path) -> None:
    write(tmp_path / "images/training/a.jpg")
    write(tmp_path / "annotations/training/a.png", "L")
    assert "folder 'annotations' holds masks" in refused(tmp_path)


def test_voc_is_no_dataset_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "SegmentationClass/a.png", "P")
    (tmp_path / "Annotations").mkdir()
    message = refused(tmp_path)
    assert "folder 'SegmentationClass' holds masks" in message
    assert "If 'SegmentationClass' is a class, name it in --classes" in message


def test_masks_in_colour_or_jpeg_are_told_by_the_names_of_their_images(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path / f"train/images/{index}.jpg")
        write(tmp_path / f"train/masks/{index}_mask.jpg")
    assert "folder 'train/masks' holds masks" in refused(tmp_path)


def test_masks_beside_their_images_are_told_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "benign/a (1).png")
    write(tmp_path / "benign/a (1)_mask.png", "L")
    assert "'benign/a (1)_mask.png' is a mask by its name, of 'benign/a (1).png'" in refused(tmp_path)


def test_camvids_layout_is_told_with_the_adapter_that_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "train/a.png")
    write(tmp_path / "trainannot/a.png", "L")
    assert f"in 'trainannot', so these are no class folders; read them as segmentation:{tmp_path}" in refused(tmp_path)


def test_classes_that_are_called_like_masks_are_read(tmp_path: Path) -> None:
    write(tmp_path / "masks/1.jpg")  # people who wear masks
    write(tmp_path / "no_masks/2.jpg")
    assert open_dataset(f"images:{tmp_path}").spec.classes == ("masks", "no_masks")


def test_stated_classes_are_believed(tmp_path: Path) -> None:
    write(tmp_path / "labels/1.png", "L")
    write(tmp_path / "notes/1.png", "L")
    assert "folder 'labels' holds masks" in refused(tmp_path)
    options = DatasetOptions(classes=("labels", "notes"))
    assert open_dataset(f"images:{tmp_path}", options=options).table["label"].to_pylist() == [0, 1]


def test_gray_images_in_folders_of_other_names_are_images(tmp_path: Path) -> None:
    for digit in range(3):
        write(tmp_path / f"{digit}/1.png", "L")
    assert open_dataset(f"images:{tmp_path}").table.num_rows == 3
