"""What mask files mean: offsets, mapped values, several voids and colours, against arrays mapped by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_store.datasets import describe_dataset
from feature_store.errors import ManifestError
from pipelines.datasets import Dataset, DatasetOptions, open_dataset

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(3)


def dataset_of(root: Path, masks: Array | list[Array], description: dict[str, Any] | None, **options: Any) -> Dataset:
    """A segmentation folder with these masks; images are alike in every such folder."""
    for index, mask in enumerate(masks):
        image = np.random.default_rng(index).integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
        for folder, values in (("train", image), ("trainannot", mask)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / folder / f"{index}.png")
    if description is not None:
        (root / "dataset.json").write_text(json.dumps({"name": "toy", **description}))
    return open_dataset(f"segmentation:{root}", options=DatasetOptions(**options))


def masks_of(dataset: Dataset) -> list[Any]:
    return [None if mask is None else mask.tolist() for mask in dataset.iter_masks()]


def digest_of(dataset: Dataset) -> str:
    return describe_dataset(dataset.spec, dataset.table, dataset.iter_masks()).annotations_digest


ADE = [RANDOM.integers(0, 5, (6, 8), dtype=np.uint8)]
NAMES = ["wall", "sky", "tree", "road"]


@pytest.mark.parametrize(
    "description",
    [
        {"classes": NAMES, "offset": 1, "void": 0},
        {"classes": NAMES, "values": {"0": "void", "1": "wall", "2": "sky", "3": "tree", "4": "road"}},
        {"values": {"4": "road", "3": "tree", "0": None, "2": "sky", "1": "wall"}},
    ],
)
def test_classes_counted_from_1_with_void_0_become_numbers_from_0(tmp_path: Path, description: dict[str, Any]) -> None:
    dataset = dataset_of(tmp_path, ADE, description)
    assert dataset.spec.classes == tuple(NAMES)
    assert dataset.spec.void == 255
    expected = np.where(ADE[0] == 0, 255, ADE[0] - 1)
    assert masks_of(dataset) == [expected.tolist()]


def test_equal_content_has_one_digest_however_the_files_say_it(tmp_path: Path) -> None:
    zero_based = [np.where(ADE[0] == 0, 255, ADE[0] - 1).astype(np.uint8)]
    colours = RANDOM.integers(1, 256, (4, 3), dtype=np.uint8)
    painted = [np.where((ADE[0] == 0)[..., None], 0, colours[ADE[0].astype(int) - 1]).astype(np.uint8)]
    digests = {
        digest_of(dataset_of(tmp_path / "one", ADE, {"classes": NAMES, "offset": 1, "void": 0})),
        digest_of(dataset_of(tmp_path / "two", zero_based, {"classes": NAMES, "void": 255})),
        digest_of(
            dataset_of(
                tmp_path / "three",
                painted,
                {"classes": NAMES, "colours": colours.tolist(), "void_colours": [[0, 0, 0]]},
            )
        ),
    }
    assert len(digests) == 1


def test_255_is_a_class_where_the_values_say_so(tmp_path: Path) -> None:
    masks = [np.array([[0, 255], [255, 255]], np.uint8)]
    dataset = dataset_of(tmp_path, masks, {"values": {"0": "background", "255": "road"}})
    assert (dataset.spec.classes, dataset.spec.void) == (("background", "road"), None)
    assert masks_of(dataset) == [[[0, 1], [1, 1]]]


def test_masks_of_0_and_255_are_refused_with_the_mapping_first_and_not_void_alone(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [np.array([[0, 255]], np.uint8)], {"classes": ["background", "road"]})
    message = (
        r"mask 'trainannot/0\.png' holds values 0, 255, of which 255 mean nothing: classes are numbered 0 to 1 and "
        r"""there is no void value\. If 255 is a class, .* \{"values": \{"0": "background", "255": "road"\}\}\. If """
        r"it marks pixels without a class, give --void 255"
    )
    with pytest.raises(ManifestError, match=message):
        list(dataset.iter_masks())


def test_several_values_may_be_void(tmp_path: Path) -> None:
    masks = [np.array([[0, 1, 254, 255]], np.uint8)]
    for options in ({}, {"void": (255, 254)}):
        stated = {"classes": ["sky", "road"], **({} if options else {"void": [254, 255]})}
        dataset = dataset_of(tmp_path, masks, stated, **options)
        assert dataset.spec.void == 255
        assert masks_of(dataset) == [[[0, 1, 255, 255]]]


def test_many_classes_leave_255_free_for_a_class(tmp_path: Path) -> None:
    masks = [np.array([[0, 1, 256, 300]], np.uint16)]
    stated = {"classes": [str(index) for index in range(300)], "offset": 1, "void": 0}
    dataset = dataset_of(tmp_path, masks, stated)
    assert (dataset.spec.void, masks_of(dataset)) == (65535, [[[65535, 0, 255, 299]]])


@pytest.mark.parametrize("alpha", [False, True])
def test_masks_of_stated_colours_are_read(tmp_path: Path, alpha: bool) -> None:
    numbers = RANDOM.integers(0, 3, (40, 30))
    colours = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142]], np.uint8)
    painted = colours[numbers]
    if alpha:
        painted = np.concatenate([painted, np.full((40, 30, 1), 255, np.uint8)], axis=2)
    dataset = dataset_of(tmp_path, [painted], {"classes": ["sky", "road", "car"], "colours": colours.tolist()})
    assert dataset.spec.void is None
    assert masks_of(dataset) == [numbers.tolist()]


def test_a_colour_that_is_none_of_the_stated_is_named_with_its_place(tmp_path: Path) -> None:
    painted = np.zeros((4, 6, 3), np.uint8)
    painted[2, 5] = (1, 2, 3)
    dataset = dataset_of(tmp_path, [painted], {"classes": ["sky", "road"], "colours": [[0, 0, 0], [9, 9, 9]]})
    message = r"'trainannot/0\.png' holds colour \[1, 2, 3\] at x 5, y 2, which is none of the 2 .* 'void_colours'"
    with pytest.raises(ManifestError, match=message):
        list(dataset.iter_masks())


def test_colours_that_two_classes_share_cannot_be_read_from_masks_but_are_fine_for_pictures(tmp_path: Path) -> None:
    stated = {"classes": ["sky", "road"], "colours": [[0, 0, 0], [0, 0, 0]]}
    assert masks_of(dataset_of(tmp_path / "numbers", [np.zeros((2, 2), np.uint8)], stated)) == [[[0, 0], [0, 0]]]
    with pytest.raises(ManifestError, match=r"holds RGB colours.* all different, as 'colours'"):
        dataset_of(tmp_path / "colours", [np.zeros((2, 2, 3), np.uint8)], stated)


def test_a_mask_in_another_format_is_refused_by_its_name(tmp_path: Path) -> None:
    dataset_of(tmp_path, [np.zeros((4, 4), np.uint8)], {"classes": ["sky"]})
    (tmp_path / "trainannot/0.png").unlink()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "trainannot/0.jpg")
    with pytest.raises(ManifestError, match=r"mask 'trainannot/0\.jpg' of image 'train/0\.png' is a \.jpg file, which"):
        open_dataset(f"segmentation:{tmp_path}")


def test_a_mask_off_by_one_pixel_is_refused_with_its_true_reason(tmp_path: Path) -> None:
    dataset_of(tmp_path, [np.zeros((4, 6), np.uint8)], {"classes": ["sky"]})
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "trainannot/0.png")
    message = r"'trainannot/0\.png' is 7 x 4, but its image 'train/0\.png' is 6 x 4\. A mask has one value for each"
    with pytest.raises(ManifestError, match=message):
        open_dataset(f"segmentation:{tmp_path}")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"classes": NAMES, "void": 0}, r"void value 0 is also class 'wall'.*\"offset\": 1 in dataset\.json"),
        ({"classes": NAMES, "offset": 1, "void": 2}, r"void value 2 is also class 'sky'"),
        ({"classes": NAMES, "values": {"1": "car"}}, r"mask value 1 is 'car', which is none of the classes \['wall'"),
        ({"classes": NAMES, "values": {"1": "sky"}, "offset": 1}, r"has 'values' and 'offset'; keep the one"),
        ({"classes": NAMES, "values": {"x": "sky"}}, r"\['values'\] are not of the right form"),
        ({"classes": NAMES, "values": {"70000": "sky"}}, r"\['values'\] are not of the right form"),
        ({"classes": NAMES, "void": [0, "x"]}, r"\['void'\] are not of the right form"),
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(
    tmp_path: Path, description: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        dataset_of(tmp_path, ADE, description)


@pytest.mark.parametrize(
    "description",
    [{"classes": ["wall", "wall", "sky"]}, {"classes": ["wall", " wall", "sky"]}, {"values": {"1": "a", "2": "a "}}],
)
def test_two_classes_of_one_name_are_refused(tmp_path: Path, description: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=r"classes 0 and 1 are both called '(wall|a)'.*a name of its own"):
        dataset_of(tmp_path, ADE, description)


def test_two_classes_of_one_name_in_the_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"classes 0 and 2 are both called 'a'"):
        dataset_of(tmp_path, ADE, {}, classes=("a", "b", "a"))


def test_a_description_that_says_a_thing_twice_is_refused(tmp_path: Path) -> None:
    dataset_of(tmp_path, ADE, {"classes": NAMES, "offset": 1, "void": 0})
    (tmp_path / "dataset.json").write_text('{"classes":["a","b","c"],"classes":["x","y","z"]}')
    with pytest.raises(ManifestError, match=r"dataset\.json .*'classes' stands there twice"):
        open_dataset(f"segmentation:{tmp_path}")


def test_tiles_padded_with_void_take_the_stored_void(tmp_path: Path) -> None:
    dataset = dataset_of(
        tmp_path, [np.ones((3, 4), np.uint8)], {"values": {"0": None, "1": "sky"}}, tile=4, tile_fit="pad"
    )
    assert masks_of(dataset) == [[[0] * 4, [0] * 4, [0] * 4, [255] * 4]]
