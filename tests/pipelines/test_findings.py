"""Whatever is not taken from a dataset's folder is counted and named, and no class is renumbered in silence."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_store.errors import ManifestError
from pipelines.datasets import Dataset, DatasetOptions, Finding, classes_without_pixels, open_dataset


def picture(path: Path, seed: int = 0, image_format: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *str(path).encode()]).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format or {".avif": "AVIF"}.get(path.suffix, "PNG"))
    path.write_bytes(buffer.getvalue())


def touched(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def images(folder: Path, **options: object) -> Dataset:
    return open_dataset(f"images:{folder}", options=DatasetOptions(**options))  # type: ignore[arg-type]


def of_kind(dataset: Dataset, kind: str) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {found.what: (found.count, found.names) for found in dataset.findings if found.kind == kind}


def test_a_class_of_avif_is_read_and_no_class_is_renumbered(tmp_path: Path) -> None:
    for name in ("ant", "cat", "dog"):
        picture(tmp_path / name / ("1.avif" if name == "ant" else "1.png"))
    dataset = images(tmp_path)
    assert dataset.spec.classes == ("ant", "cat", "dog")
    assert dataset.table["label"].to_pylist() == [0, 1, 2]
    assert dataset.findings == ()


def test_a_class_none_of_whose_files_can_be_read_keeps_its_number_and_is_named(tmp_path: Path) -> None:
    touched(tmp_path / "ant/1.HEIC")
    touched(tmp_path / "ant/2.jp2")
    (tmp_path / "bee").mkdir()
    picture(tmp_path / "cat/1.png")
    dataset = images(tmp_path)
    assert dataset.spec.classes == ("ant", "bee", "cat")
    assert dataset.table["label"].to_pylist() == [2]
    assert of_kind(dataset, "passed_over") == {
        "files ending in .heic": (1, ("ant/1.HEIC",)),
        "files ending in .jp2": (1, ("ant/2.jp2",)),
    }
    assert of_kind(dataset, "class_without_images") == {"classes without an image that is read": (2, ("ant", "bee"))}


def test_a_class_of_one_split_that_cannot_be_read_keeps_its_number(tmp_path: Path) -> None:
    touched(tmp_path / "train/ant/1.heic")
    picture(tmp_path / "train/bee/1.png")
    picture(tmp_path / "test/cat/1.png")
    (tmp_path / "notes").mkdir()
    dataset = images(tmp_path)
    assert dataset.spec.classes == ("ant", "bee", "cat")


def test_folders_without_images_that_are_no_stated_class_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat/1.png")
    touched(tmp_path / "docs/readme.txt")
    dataset = images(tmp_path, classes=("cat", "dog"))
    assert of_kind(dataset, "passed_over")["folders without an image that are no stated class"] == (1, ("docs",))
    assert of_kind(dataset, "class_without_images")["classes without an image that is read"] == (1, ("dog",))


def test_each_thing_that_people_have_in_their_folders_has_one_fate_that_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "cat/1.JPG", image_format="JPEG")
    picture(tmp_path / "cat/deep/er/2.png")
    picture(tmp_path / "cat/wrong_ending.jpg")  # a PNG, told by its first bytes
    touched(tmp_path / "cat/empty.png", b"")
    touched(tmp_path / "cat/page.jpg", b"<html>404</html>")
    touched(tmp_path / "cat/photo.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    touched(tmp_path / "cat/.DS_Store")
    touched(tmp_path / "cat/._1.JPG")
    touched(tmp_path / "cat/Thumbs.db")
    touched(tmp_path / "__MACOSX/cat/1.png")
    touched(tmp_path / "photos.zip")
    touched(tmp_path / "LICENSE")
    touched(tmp_path / "dataset.json", b"{}")
    (tmp_path / "cat/gone.png").symlink_to("nowhere.png")
    dataset = images(tmp_path)
    assert dataset.spec.classes == ("cat",)
    assert dataset.table.num_rows == 7
    assert of_kind(dataset, "passed_over") == {
        "hidden files and folders, and those of systems": (
            4,
            ("__MACOSX", "cat/.DS_Store", "cat/._1.JPG", "cat/Thumbs.db"),
        ),
        "files ending in .zip": (1, ("photos.zip",)),
        "files without an ending": (1, ("LICENSE",)),
    }
    assert of_kind(dataset, "unreadable") == {
        "images recorded as empty": (1, ("cat/empty.png",)),
        "images recorded as missing": (1, ("cat/gone.png",)),
        "images recorded as not_an_image": (1, ("cat/page.jpg",)),
        "images recorded as unsupported": (1, ("cat/photo.jpg",)),
    }
    details = {found.what: found.detail for found in dataset.findings}
    assert details["images recorded as unsupported"].startswith("a HEIC file; read are JPEG")


def test_images_with_the_bytes_of_another_are_told_and_where_they_leak_into_another_split(tmp_path: Path) -> None:
    for place in ("train/cat/a.png", "train/cat/b.png", "test/cat/c.png"):
        picture(tmp_path / "original.png")
        touched(tmp_path / place, (tmp_path / "original.png").read_bytes())
    (tmp_path / "original.png").unlink()
    picture(tmp_path / "train/cat/d.png")
    touched(tmp_path / "train/cat/empty1.png", b"")
    touched(tmp_path / "train/cat/empty2.png", b"")
    (found,) = [one for one in images(tmp_path, tile=4).findings if one.kind == "copies"]
    assert (found.count, found.names) == (2, ("train/cat/a.png", "train/cat/b.png"))
    assert found.detail == "'train/cat/a.png' is 'test/cat/c.png'; 1 of them in another split than the one before"


def test_a_folder_without_images_is_refused_with_what_is_there(tmp_path: Path) -> None:
    touched(tmp_path / "a/1.heic")
    touched(tmp_path / "a/2.heic")
    touched(tmp_path / "a.zip")
    with pytest.raises(
        ManifestError, match=r"no image under .*, but files ending in \.heic: 2; files ending in \.zip: 1\."
    ):
        images(tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda folder: folder / "a.png", r"is a file, not a folder\. Give the folder that holds the images"),
        (lambda folder: folder / "photos.zip", r"is an archive\. Unpack it, and give the folder"),
        (lambda folder: folder / "*.png", r"does not exist\. A pattern is not read: give the folder"),
    ],
)
def test_what_is_no_folder_is_refused_with_the_way_out(
    tmp_path: Path, place: Callable[[Path], Path], message: str
) -> None:
    picture(tmp_path / "a.png")
    touched(tmp_path / "photos.zip")
    with pytest.raises(ManifestError, match=message):
        images(place(tmp_path))


def test_a_name_with_a_backslash_is_read_as_it_is(tmp_path: Path) -> None:
    picture(tmp_path / "cat/cat\\1.png")
    picture(tmp_path / "cat/2.png")
    assert images(tmp_path).table["uri"].to_pylist() == ["cat/2.png", "cat/cat\\1.png"]


def test_control_characters_stay_in_the_manifest_and_are_escaped_in_messages(tmp_path: Path) -> None:
    name = "a\x1b[31m\nb.png"
    touched(tmp_path / "cat" / name, b"")
    picture(tmp_path / "cat/1.png")
    dataset = images(tmp_path)
    assert dataset.table["uri"].to_pylist() == ["cat/1.png", f"cat/{name}"]
    with pytest.raises(ManifestError, match=r"image 'cat/1\.png' is 12 x 8") as caught:
        images(tmp_path, tile=5)
    picture(tmp_path / "cat" / name)
    (tmp_path / "cat/1.png").unlink()
    with pytest.raises(ManifestError, match=r"image 'cat/a\\x1b\[31m\\nb\.png' is 12 x 8") as caught:
        images(tmp_path, tile=5)
    assert str(caught.value).isprintable()


def test_segmentation_tells_what_lies_outside_its_splits_and_masks_of_no_image(tmp_path: Path) -> None:
    picture(tmp_path / "train/1.png")
    picture(tmp_path / "extra/2.png")
    for name in ("1", "9"):
        mask = np.zeros((8, 12), np.uint8)
        (tmp_path / "trainannot").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"trainannot/{name}.png")
    touched(tmp_path / "train/1.json")
    options = DatasetOptions(classes=("sky", "road"))
    dataset = open_dataset(f"segmentation:{tmp_path}", options=options)
    assert of_kind(dataset, "passed_over") == {
        "files ending in .json": (1, ("train/1.json",)),
        "images outside the folders of the splits": (1, ("extra/2.png",)),
        "masks of no image": (1, ("trainannot/9.png",)),
    }


def test_a_class_that_no_pixel_has_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "train/1.png")
    (tmp_path / "trainannot").mkdir()
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(tmp_path / "trainannot/1.png")
    options = DatasetOptions(classes=("sky", "road"), void=255)
    dataset = open_dataset(f"segmentation:{tmp_path}", options=options)
    seen: set[int] = set()
    assert len(list(dataset.iter_masks(seen))) == 1
    assert seen == {255}
    assert classes_without_pixels(dataset.spec, seen) == (
        Finding(
            kind="class_without_pixels", what="classes that no pixel of the masks has", count=2, names=("road", "sky")
        ),
    )
    assert classes_without_pixels(dataset.spec, {0, 1, 255}) == ()
