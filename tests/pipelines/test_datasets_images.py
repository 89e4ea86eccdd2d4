"""`images:PATH` and what all adapters share: order, digests, tiles, fates, links."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from feature_store.errors import ManifestError
from feature_store.manifest import check_manifest, view_id, views_digest
from pipelines.datasets import Dataset, DatasetOptions, open_dataset
from pipelines.image_files import MAX_IMAGE_BYTES
from pipelines.stat_key import stat_key
from pipelines.views import cut_view, decode_image

RANDOM = np.random.default_rng(1)


def save_image(path: Path, width: int = 20, height: int = 12) -> np.ndarray[Any, Any]:
    pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def opened(path: Path, **options: Any) -> Dataset:
    dataset = open_dataset(f"images:{path}", options=DatasetOptions(**options))
    check_manifest(dataset.table)
    return dataset


def column(dataset: Dataset, name: str) -> list[Any]:
    values: list[Any] = dataset.table[name].to_pylist()
    return values


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_class_folders_become_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("zebra/1.png", "ant/2.png", "ant/1.JPG", "Bee/deep/1.png"):
        save_image(tmp_path / name)
    dataset = opened(tmp_path, name="zoo")
    assert dataset.spec.name == "zoo"
    assert dataset.spec.classes == ("Bee", "ant", "zebra")
    assert column(dataset, "uri") == ["Bee/deep/1.png", "ant/1.JPG", "ant/2.png", "zebra/1.png"]
    assert column(dataset, "label") == [0, 1, 1, 2]
    assert column(dataset, "split") == [None] * 4


def test_split_folders_share_one_numbering(tmp_path: Path) -> None:
    for name in ("Training/b/1.png", "Training/c/1.png", "test/a/1.png", "valid/c/1.png"):
        save_image(tmp_path / name)
    dataset = opened(tmp_path)
    assert dataset.spec.classes == ("a", "b", "c")
    expected = {"Training/b/1.png": ("train", 1), "Training/c/1.png": ("train", 2)}
    expected |= {"test/a/1.png": ("test", 0), "valid/c/1.png": ("val", 2)}
    found = zip(column(dataset, "split"), column(dataset, "label"), strict=True)
    assert dict(zip(column(dataset, "uri"), found, strict=True)) == expected


def test_split_folders_of_bare_images_have_no_labels(tmp_path: Path) -> None:
    save_image(tmp_path / "train/1.png")
    save_image(tmp_path / "test/1.png")
    dataset = opened(tmp_path)
    assert column(dataset, "split") == ["test", "train"]
    assert column(dataset, "label") == [None, None]
    assert dataset.spec.classes == ()


def test_one_folder_of_images_has_neither_split_nor_label(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not read")
    dataset = opened(tmp_path)
    assert (column(dataset, "uri"), column(dataset, "split"), column(dataset, "label")) == (["1.png"], [None], [None])


def test_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("train", "plane", "ship"):
        save_image(tmp_path / name / "1.png")
    assert opened(tmp_path).spec.classes == ("plane", "ship", "train")


def test_stated_classes_decide_the_numbers(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_image(tmp_path / name / "1.png")
    dataset = opened(tmp_path, classes=("dog", "cow", "cat"))
    assert column(dataset, "label") == [2, 0]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "no image under"),
        (["top.png", "cat/1.png"], {}, "image 'top.png' lies beside folders of images"),
        (["train/cat/1.png", "extra/1.png"], {}, r"folders \['extra'\] stand beside the splits"),
        (["train/cat/1.png", "train/1.png"], {}, "'train/1.png' lies directly in a split"),
        (["cat/1.png"], {"classes": ("dog",)}, "class folder 'cat' is not among the stated classes"),
        (["cat/1.png"], {"name": "a b"}, "dataset name 'a b': use 1 to 64 letters"),
    ],
)
def test_unclear_layouts_are_refused(tmp_path: Path, files: list[str], options: dict[str, Any], message: str) -> None:
    for name in files:
        save_image(tmp_path / name)
    with pytest.raises(ManifestError, match=message):
        opened(tmp_path, **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("imags:x", "'imags:x' is not known; write images:PATH, segmentation:PATH, manifest:FILE or demo"),
        ("images:", "is not known; write images:PATH"),
        ("", "is not known; write images:PATH"),
        ("images:/no/such/folder", "does not exist. Give the folder that holds the images"),
        ("images:a\0b", "holds no NUL"),
        ("segmentation:/no/such/folder", "does not exist. Give the folder"),
        ("manifest:/no/such/file", "there is no such file"),
    ],
)
def test_unknown_sources_are_refused_with_the_way_out(source: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        open_dataset(source)


def test_bare_folder_is_met_with_the_likely_meaning(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="Did you mean images:"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile=0: it must be at least 1"),
        ({"limit_per_split": -1}, "limit_per_split=-1: it must be at least 1"),
        ({"tile_fit": "stretch"}, "'refuse', 'pad'"),
        ({"content_key": "md5"}, "'sha256'"),
        ({"void": 70000}, "values from 0 to 65535"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    # Where annotations are checked while tests run, jaxtyping is the first to refuse a word that is not in the list.
    with pytest.raises((ManifestError, TypeCheckError), match=message):
        DatasetOptions(**options)


# --- order, keys, digests --------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_the_bytes_of_the_uri_then_by_tile(tmp_path: Path) -> None:
    for name in ("b.png", "B.png", "é.png", "a-1.png", "a.png"):
        save_image(tmp_path / name, 20, 20)
    rows = opened(tmp_path, tile=10).table.to_pylist()
    keys = [(row["uri"].encode(), *(row["tile"][axis] for axis in ("x", "y", "width", "height"))) for row in rows]
    assert keys == sorted(keys)
    assert len(keys) == 5 * 4


def test_content_key_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    row = opened(tmp_path).table.to_pylist()[0]
    assert row["image_sha256"] == hashlib.sha256((tmp_path / "1.png").read_bytes()).hexdigest()
    assert row["view_id"] == view_id(row["image_sha256"], None, None)


def test_stat_key_names_size_and_time_of_change(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    os.utime(tmp_path / "1.png", ns=(5, 123_456_789))
    size_bytes = (tmp_path / "1.png").stat().st_size
    assert column(opened(tmp_path, content_key="stat"), "image_sha256") == [stat_key(tmp_path, size_bytes, 123456789)]


def test_views_digest_depends_on_content_and_on_neither_root_nor_file_order(tmp_path: Path) -> None:
    names = ["c/1.png", "a/1.png", "b/2.png", "b/1.png"]
    for name in names:
        save_image(tmp_path / "one" / name)
    for name in reversed(names):
        (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "one" / name, tmp_path / "two" / name)
    first, second = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert first.table.equals(second.table)
    assert views_digest(first.table) == views_digest(second.table)
    save_image(tmp_path / "two" / "b/1.png")
    assert views_digest(opened(tmp_path / "two").table) != views_digest(first.table)


def test_progress_counts_every_image_once(tmp_path: Path) -> None:
    for index in range(5):
        save_image(tmp_path / f"{index}.png")
    seen: list[tuple[int, int]] = []
    open_dataset(f"images:{tmp_path}", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 5) for done in range(1, 6)]


def test_limit_takes_labels_in_turn(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "c/1"):
            save_image(tmp_path / split / f"{name}.png")
    dataset = opened(tmp_path, limit_per_split=4)
    kept = ["a/1.png", "a/2.png", "b/1.png", "c/1.png"]
    assert column(dataset, "uri") == [f"{split}/{name}" for split in ("test", "train") for name in kept]
    assert dataset.spec.classes == ("a", "b", "c")


# --- tiles -----------------------------------------------------------------------------------------------------------


def tile_pixels(dataset: Dataset) -> list[np.ndarray[Any, Any]]:
    tiles = []
    for row in dataset.table.to_pylist():
        image = decode_image((dataset.root / row["uri"]).read_bytes(), row["uri"])
        tiles.append(np.asarray(cut_view(image, row["tile"], row["transform"])))
    return tiles


def test_tiles_partition_the_image(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "1.png", 30, 20)
    dataset = opened(tmp_path, tile=10)
    # Row order is by x, then y.
    expected = [pixels[y : y + 10, x : x + 10] for x in (0, 10, 20) for y in (0, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(tile_pixels(dataset), expected, strict=True))
    assert len(set(column(dataset, "view_id"))) == 6


def test_image_that_tiles_do_not_divide_is_refused_with_three_ways_out(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", 96, 64)
    save_image(tmp_path / "2.png", 64, 32)
    message = r"'1.png' is 96 x 64, which tiles of 40 do not divide \(2 of 2 images\)"
    with pytest.raises(ManifestError, match=message) as caught:
        opened(tmp_path, tile=40)
    # 32 is the greatest common divisor of 96, 64, 64 and 32.
    for way in ("--tile-fit pad", "--tile-fit resize", "another tile, such as 32"):
        assert way in str(caught.value)


def test_padded_tiles_are_black_at_the_right_and_bottom(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "1.png", 25, 12)
    tiles = tile_pixels(opened(tmp_path, tile=10, tile_fit="pad"))
    padded = np.zeros((20, 30, 3), np.uint8)
    padded[:12, :25] = pixels
    expected = [padded[y : y + 10, x : x + 10] for x in (0, 10, 20) for y in (0, 10)]
    assert all(np.array_equal(a, b) for a, b in zip(tiles, expected, strict=True))


@pytest.mark.parametrize(
    ("size", "target"), [((24, 12), (20, 10)), ((25, 15), (30, 20)), ((3, 26), (10, 30)), ((20, 14), (20, 10))]
)
def test_resized_tiles_cut_the_nearest_multiple(tmp_path: Path, size: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = save_image(tmp_path / "1.png", *size)
    dataset = opened(tmp_path, tile=10, tile_fit="resize")
    resized = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC))
    expected = [resized[y : y + 10, x : x + 10] for x in range(0, target[0], 10) for y in range(0, target[1], 10)]
    assert all(np.array_equal(a, b) for a, b in zip(tile_pixels(dataset), expected, strict=True))
    assert dataset.table["transform"].to_pylist()[0]["name"] == "resize"


def test_image_that_divides_is_not_transformed_by_tile_fit_resize(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png", 20, 10)
    assert column(opened(tmp_path, tile=10, tile_fit="resize"), "transform") == [None, None]


def test_absurd_number_of_tiles_is_refused(tmp_path: Path) -> None:
    Image.new("1", (1000, 1000)).save(tmp_path / "1.png")
    with pytest.raises(ManifestError, match="would give 1000000 tiles of 1; at most 65536"):
        opened(tmp_path, tile=1)


# --- fates and links -------------------------------------------------------------------------------------------------


def test_unreadable_images_keep_one_row_each(tmp_path: Path) -> None:
    save_image(tmp_path / "good.png", 20, 10)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:20])
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "vast.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    dataset = opened(tmp_path, tile=10)
    tiles = {row["uri"]: row["tile"] for row in dataset.table.to_pylist() if not row["uri"].startswith("good")}
    assert tiles == dict.fromkeys(
        ["cut.png", "empty.png", "gone.png", "loop.png", "page.jpg", "pipe.png", "vast.png"], None
    )
    assert dataset.table.num_rows == 2 + 7
    keys = dict(zip(column(dataset, "uri"), column(dataset, "image_sha256"), strict=True))
    assert keys["empty.png"] == hashlib.sha256(b"").hexdigest()
    assert (keys["gone.png"], keys["vast.png"]) == ("missing", "too_large")


def test_dataset_of_missing_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(ManifestError, match=r"none of the 1 images is there; the first is 'gone\.png'"):
        opened(tmp_path)


@pytest.mark.parametrize("link", ["cat/1.png", "cat"])
def test_links_out_of_the_root_are_refused(tmp_path: Path, link: str) -> None:
    save_image(tmp_path / "elsewhere/1.png")
    save_image(tmp_path / "root/dog/1.png")
    (tmp_path / "root" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "root" / link).symlink_to(tmp_path / "elsewhere" / ("1.png" if link.endswith("png") else ""))
    with pytest.raises(ManifestError, match=f"link '{link}' leads out of"):
        opened(tmp_path / "root")


def test_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "cat/1.png")
    (tmp_path / "cat/again").symlink_to("..")
    with pytest.raises(ManifestError, match="link 'cat/again' leads back to a folder above it"):
        opened(tmp_path)


def test_links_inside_the_root_are_followed(tmp_path: Path) -> None:
    save_image(tmp_path / "cat/1.png")
    (tmp_path / "tiger").symlink_to("cat")
    (tmp_path / "cat/2.png").symlink_to("1.png")
    assert column(opened(tmp_path), "uri") == ["cat/1.png", "cat/2.png", "tiger/1.png", "tiger/2.png"]


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    shutil.copyfile(tmp_path / "1.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(ManifestError, match=r"b'\\xff\.png' is not UTF-8; rename the file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "not an object"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"classes": "cat"}', r"\['classes'\] are not of the right form"),
        ('{"void": true, "name": 3}', r"\['name', 'void'\] are not of the right form"),
        ('{"classes": ["cat"], "colours": [[0, 0, 256]]}', r"\['colours'\] are not of the right form"),
        ('{"classes": ["cat", "dog"], "void": 1}', "void value 1 is also class 'dog'.*\"offset\": 1"),
        ('{"classes": ["cat", "dog"], "colours": [[0, 0, 0]]}', "1 colours for 2 classes"),
        ('{"license": "' + "x" * 5000 + '"}', r"\['license'\] are not of the right form"),
    ],
)
def test_broken_description_is_refused(tmp_path: Path, content: str, message: str) -> None:
    save_image(tmp_path / "cat/1.png")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ManifestError, match=message):
        opened(tmp_path)


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes", "train", "test"), [("aid", 15, 20, 10), ("cifar10", 10, 40, 20)])
def test_real_class_folders(test_data: Path, name: str, classes: int, train: int, test: int) -> None:
    dataset = opened(test_data / name)
    assert dataset.spec.name == name
    assert dataset.spec.n_classes == classes
    rows = dataset.table.to_pylist()
    for label, class_name in enumerate(dataset.spec.classes):
        for split, count in (("train", train), ("test", test)):
            files = {f"{split}/{class_name}/{path.name}" for path in (test_data / name / split / class_name).iterdir()}
            assert len(files) == count
            assert {row["uri"] for row in rows if (row["split"], row["label"]) == (split, label)} == files


@pytest.mark.data
def test_real_flat_folder_of_many_sizes(test_data: Path) -> None:
    dataset = opened(test_data / "imagenet_sample")
    assert dataset.table.num_rows == 100
    for row in dataset.table.to_pylist()[:20]:
        path = test_data / "imagenet_sample" / row["uri"]
        with Image.open(path) as image:
            assert np.array_equal(
                np.asarray(decode_image(path.read_bytes(), row["uri"])), np.asarray(image.convert("RGB"))
            )


def test_a_segmentation_folder_is_told_from_class_folders(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    (tmp_path / "dataset.json").write_text('{"classes": ["sky", "road"]}')
    with pytest.raises(
        ManifestError, match=r"'train' has masks beside it, in 'trainannot'.*read them as segmentation:"
    ):
        open_dataset(f"images:{tmp_path}")
