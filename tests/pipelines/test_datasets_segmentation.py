"""`segmentation:PATH`: pairing, masks as they stand in their files, and what is refused."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_store.errors import ManifestError
from feature_store.manifest import annotations_digest, mask_digest
from pipelines.datasets import Dataset, DatasetOptions, open_dataset
from pipelines.datasets.masks import cut_mask, read_mask

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(2)
DESCRIPTION = '{"name": "toy", "classes": ["sky", "road", "car"], "void": 7, "license": "CC0", "more": [1]}'


def build(
    root: Path, size: tuple[int, int] = (20, 10), names: tuple[str, ...] = ("train/a", "train/b", "test/c")
) -> None:
    """Images with masks of the values 0, 1, 2 and 7, and their description."""
    for name in names:
        split, stem = name.split("/", 1)
        write(root / split / f"{stem}.png", RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        write(root / f"{split}annot" / f"{stem}.png", RANDOM.choice(np.array([0, 1, 2, 7], np.uint8), size[::-1]))
    (root / "dataset.json").write_text(DESCRIPTION)


def write(path: Path, values: Array, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset(f"segmentation:{root}", options=DatasetOptions(**options))


def stored(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


# --- pairing ---------------------------------------------------------------------------------------------------------


def test_masks_are_paired_by_stem_and_split(tmp_path: Path) -> None:
    build(tmp_path, names=("train/a", "train/deep/b", "Testing/c", "extra/d"))
    write(tmp_path / "val/e.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "docs/figure.png", np.zeros((4, 4, 3), np.uint8))
    dataset = opened(tmp_path)
    rows = {row["uri"]: (row["split"], row["mask_uri"]) for row in dataset.table.to_pylist()}
    assert rows == {
        "Testing/c.png": ("test", "Testingannot/c.png"),
        "extra/d.png": ("extra", "extraannot/d.png"),
        "train/a.png": ("train", "trainannot/a.png"),
        "train/deep/b.png": ("train", "trainannot/deep/b.png"),
        "val/e.png": ("val", None),
    }
    assert [mask is None for mask in dataset.iter_masks()] == [False, False, False, False, True]


def test_description_is_read(tmp_path: Path) -> None:
    build(tmp_path)
    spec = opened(tmp_path).spec
    assert (spec.name, spec.classes, spec.void, spec.license) == ("toy", ("sky", "road", "car"), 7, "CC0")


def test_options_come_before_the_description(tmp_path: Path) -> None:
    build(tmp_path)
    spec = opened(tmp_path, name="mine", classes=("a", "b", "c", "d"), void=9).spec
    assert (spec.name, spec.classes, spec.void) == ("mine", ("a", "b", "c", "d"), 9)


def test_folder_without_masks_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train/a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ManifestError, match=r"holds no folder with a folder of masks beside it.*found are \['train'\]"):
        opened(tmp_path)


def test_nameless_classes_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ManifestError, match="does not say what its mask values mean"):
        opened(tmp_path)
    assert opened(tmp_path, classes=("x", "y", "z"), void=7).spec.n_classes == 3


def test_image_without_a_mask_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "trainannot/b.png").unlink()
    with pytest.raises(ManifestError, match=r"image 'train/b\.png' has no mask 'trainannot/b\.png'"):
        opened(tmp_path)


def test_two_masks_of_one_stem_are_refused(tmp_path: Path) -> None:
    build(tmp_path)
    write(tmp_path / "trainannot/b.tif", np.zeros((10, 20), np.uint8))
    with pytest.raises(ManifestError, match="have the same stem; remove the wrong one"):
        opened(tmp_path)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    build(tmp_path, names=("train/a",))
    (tmp_path / "train/a.png").unlink()
    with pytest.raises(ManifestError, match=r"no image in \['train'\]"):
        opened(tmp_path)


# --- values ----------------------------------------------------------------------------------------------------------


def test_masks_are_slices_of_the_files(tmp_path: Path) -> None:
    build(tmp_path)
    dataset = opened(tmp_path, tile=10)
    for row, mask in zip(dataset.table.to_pylist(), dataset.iter_masks(), strict=True):
        x, y = row["tile"]["x"], row["tile"]["y"]
        assert mask is not None
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, stored(tmp_path / row["mask_uri"])[y : y + 10, x : x + 10])


def test_changing_one_mask_leaves_the_next_alone(tmp_path: Path) -> None:
    build(tmp_path, names=("train/a",))
    dataset = opened(tmp_path, tile=10)
    masks = []
    for mask in dataset.iter_masks():
        assert mask is not None
        masks.append(mask.copy())
        mask[:] = 7
    assert all(np.array_equal(a, b) for a, b in zip(masks, dataset.iter_masks(), strict=True) if b is not None)


def test_padded_mask_is_void_outside(tmp_path: Path) -> None:
    build(tmp_path, size=(15, 10), names=("train/a",))
    masks = list(opened(tmp_path, tile=10, tile_fit="pad").iter_masks())
    expected = np.full((10, 20), 7, np.uint8)
    expected[:, :15] = stored(tmp_path / "trainannot/a.png")
    assert masks[1] is not None
    assert np.array_equal(masks[1], expected[:, 10:])


def test_padding_without_a_void_value_is_refused(tmp_path: Path) -> None:
    build(tmp_path, size=(15, 10), names=("train/a",))
    (tmp_path / "dataset.json").write_text('{"classes": ["a", "b", "c", "d", "e", "f", "g", "h"]}')
    with pytest.raises(ManifestError, match=r"its mask has no class for what lies outside\. State a void value"):
        opened(tmp_path, tile=10, tile_fit="pad")


@pytest.mark.parametrize("size", [(24, 12), (17, 9), (3, 40)])
def test_resized_mask_takes_the_pixel_under_each_centre(tmp_path: Path, size: tuple[int, int]) -> None:
    build(tmp_path, size=size, names=("train/a",))
    dataset = opened(tmp_path, tile=10, tile_fit="resize")
    target = [max(10, (side + 5) // 10 * 10) for side in size]
    # The centre of target pixel i, in source pixels: (i + 1/2) * source / target, exactly.
    columns, rows = (
        [int(Fraction(2 * i + 1, 2) * source / wanted) for i in range(wanted)]
        for source, wanted in zip(size, target, strict=True)
    )
    resized = stored(tmp_path / "trainannot/a.png")[np.ix_(rows, columns)]
    for row, mask in zip(dataset.table.to_pylist(), dataset.iter_masks(), strict=True):
        x, y = row["tile"]["x"], row["tile"]["y"]
        assert mask is not None
        assert np.array_equal(mask, resized[y : y + 10, x : x + 10])


def test_tile_wholly_outside_is_void() -> None:
    tile = {"x": -20, "y": 30, "width": 4, "height": 4}
    assert np.array_equal(cut_mask(np.zeros((10, 10), np.uint8), tile, None, void=300), np.full((4, 4), 300))


def test_palette_mask_keeps_its_indices(tmp_path: Path) -> None:
    indices = RANDOM.integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]))
    for name in ("mask.png", "mask.tif"):
        image.save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path, name), indices)


def test_one_bit_mask_holds_0_and_1(tmp_path: Path) -> None:
    bits = RANDOM.random((6, 9)) > 0.5
    write(tmp_path / "mask.png", bits)
    mask = read_mask(tmp_path, "mask.png")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, bits)


@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_sixteen_bit_mask_keeps_its_values(tmp_path: Path, name: str) -> None:
    values = RANDOM.integers(0, 65536, (6, 9), dtype=np.uint16)
    write(tmp_path / name, values)
    mask = read_mask(tmp_path, name)
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, values)


@pytest.mark.parametrize("bits", [2, 4])
def test_two_and_four_bit_gray_keep_their_values(tmp_path: Path, bits: int) -> None:
    # Two rows of four pixels 0, 1, 2, 3, packed by hand: Pillow stretches them to 0..255 when it opens the file.
    row = b"\0" + (bytes([0b00011011]) if bits == 2 else bytes([0x01, 0x23]))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 2)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert stored(tmp_path / "mask.png").max() == 3 * (85 if bits == 2 else 17)
    assert read_mask(tmp_path, "mask.png").tolist() == [[0, 1, 2, 3]] * 2


def test_value_that_means_nothing_is_refused(tmp_path: Path) -> None:
    build(tmp_path, names=("train/a", "train/b"))
    write(tmp_path / "trainannot/b.png", np.full((10, 20), 3, np.uint8))
    message = (
        r"'trainannot/b\.png' holds values 3, of which 3 mean nothing: classes are numbered 0 to 2 and void is 7.* "
        r"""such as \{"values": \{"3": "sky"\}\}.*"offset": 1.*--void 3"""
    )
    with pytest.raises(ManifestError, match=message):
        list(opened(tmp_path).iter_masks())


def test_colours_are_not_a_mask(tmp_path: Path) -> None:
    build(tmp_path)
    write(tmp_path / "trainannot/b.png", np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(ManifestError, match=r"mask 'trainannot/b\.png' holds RGB colours.* as 'colours'"):
        opened(tmp_path)


def test_lossy_mask_in_disguise_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    write(tmp_path / "trainannot/b.png", np.zeros((10, 20), np.uint8), format="JPEG")
    with pytest.raises(ManifestError, match=r"mask 'trainannot/b\.png' is a JPEG file, which may not keep its values"):
        opened(tmp_path)


def test_truncated_mask_is_refused_by_name(tmp_path: Path) -> None:
    build(tmp_path)
    data = (tmp_path / "trainannot/b.png").read_bytes()
    (tmp_path / "trainannot/b.png").write_bytes(data[:-40])
    with pytest.raises(ManifestError, match=r"mask 'trainannot/b\.png' cannot be read: truncated"):
        list(opened(tmp_path).iter_masks())


def test_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    write(tmp_path / "trainannot/b.png", np.zeros((10, 19), np.uint8))
    with pytest.raises(ManifestError, match=r"' is 19 x 10, but its image 'train/b\.png' is 20 x 10\. A mask has"):
        opened(tmp_path)


def test_mask_that_ignores_the_orientation_of_its_image_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "train/b.png", np.zeros((10, 20, 3), np.uint8), exif=exif)
    with pytest.raises(
        ManifestError, match=r"is 20 x 10, but its image .* is 10 x 20 with its EXIF orientation applied"
    ):
        opened(tmp_path)


def test_unreadable_image_keeps_its_row_and_loses_its_mask(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "train/b.png").write_bytes(b"")
    dataset = opened(tmp_path, tile=10)
    rows = [row for row in dataset.table.to_pylist() if row["uri"] == "train/b.png"]
    assert [(row["tile"], row["mask_uri"], row["split"]) for row in rows] == [(None, None, "train")]
    assert sum(mask is None for mask in dataset.iter_masks()) == 1


def test_annotations_digest_follows_the_masks_and_not_the_root(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        dataset = opened(root, tile=10)
        masks = [None if mask is None else mask_digest(mask) for mask in dataset.iter_masks()]
        return annotations_digest(dataset.table, masks, dataset.spec)

    build(tmp_path / "one")
    first = digest(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert digest(tmp_path / "two") == first
    mask = stored(tmp_path / "two/trainannot/a.png").copy()
    mask[0, 0] = 2 if mask[0, 0] != 2 else 1
    write(tmp_path / "two/trainannot/a.png", mask)
    assert digest(tmp_path / "two") != first


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_camvid_becomes_twelve_tiles_an_image(test_data: Path) -> None:
    dataset = opened(test_data / "camvid", tile=120)
    assert (dataset.spec.name, dataset.spec.n_classes, dataset.spec.void) == ("camvid", 11, 11)
    splits = dataset.table["split"].to_pylist()
    assert (splits.count("train"), splits.count("test")) == (72 * 12, 30 * 12)
    held: dict[str, Array] = {}
    for row, mask in zip(dataset.table.to_pylist(), dataset.iter_masks(), strict=True):
        if row["mask_uri"] not in held:
            held = {row["mask_uri"]: stored(test_data / "camvid" / row["mask_uri"])}
        x, y = row["tile"]["x"], row["tile"]["y"]
        assert mask is not None
        assert np.array_equal(mask, held[row["mask_uri"]][y : y + 120, x : x + 120])
