"""Which part of which photograph the demo scenes are cut from: for every class, regions to train and to test on.

The photographs are those that scikit-image ships inside its package, so nothing is fetched. Where both splits use one
photograph their regions do not touch, so no source pixel is seen in both.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from feature_store.errors import ManifestError
from pipelines.image_files import UnreadableImageError, read_image_bytes
from pipelines.views import decode_image

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
Shape = Literal["ground", "disc", "blob", "sheet"]
Photographs = Mapping[str, UInt8[np.ndarray, "height width 3"]]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of source pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class SceneClass:
    """One class of the demo scenes and where its pixels come from.

    Attributes:
        name: of the class.
        photograph: file name in scikit-image's data folder.
        shape: a ground fills the scene; a disc, a blob or a sheet lies on it.
        train, test: boxes to cut from. A disc takes one box whole, the others a random part of one.
        diameter_px: (least, most) width of a cut-out in the scene; unused for a ground.
        turn_degrees: a cut-out is turned by at most this angle, either way.
        scale: scene pixels per source pixel, for a ground.
        colour: red, green, blue for pictures of masks.
    """

    name: str
    photograph: str
    shape: Shape
    train: tuple[Box, ...]
    test: tuple[Box, ...]
    diameter_px: tuple[int, int] = (0, 0)
    turn_degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.5)
    colour: tuple[int, int, int]

    def boxes(self, split: Split) -> tuple[Box, ...]:
        """The boxes of one split."""
        return self.train if split == "train" else self.test


def _halves(width: int, height: int) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    half = width // 2
    return (Box(x=0, y=0, width=half, height=height),), (Box(x=width - half, y=0, width=half, height=height),)


def _ground(
    name: str, photograph: str, size: tuple[int, int], colour: tuple[int, int, int], scale: tuple[float, float]
) -> SceneClass:
    train, test = _halves(*size)
    return SceneClass(
        name=name, photograph=photograph, shape="ground", train=train, test=test, colour=colour, scale=scale
    )


def _coins(centres: tuple[tuple[int, int, int], ...]) -> tuple[Box, ...]:
    return tuple(Box(x=x - radius, y=y - radius, width=2 * radius, height=2 * radius) for x, y, radius in centres)


_COINS_ABOVE = (
    (335, 44, 27), (155, 51, 22), (216, 51, 20), (276, 53, 18), (44, 54, 18), (101, 56, 16),
    (270, 119, 23), (46, 124, 19), (206, 124, 18), (336, 125, 18), (103, 126, 17), (153, 127, 16),
)  # fmt: skip
_COINS_BELOW = (
    (347, 187, 29), (213, 193, 22), (274, 194, 21), (102, 196, 20), (44, 198, 18), (154, 198, 18),
    (46, 260, 26), (172, 261, 24), (301, 264, 24), (244, 264, 23), (114, 265, 20), (359, 268, 19),
)  # fmt: skip
# A mask's value is the class's place in this tuple.
CLASSES: tuple[SceneClass, ...] = (
    _ground("brick", "brick.png", (512, 512), (178, 34, 34), (1.0, 1.5)),
    _ground("grass", "grass.png", (512, 512), (60, 160, 60), (1.0, 1.5)),
    _ground("gravel", "gravel.png", (512, 512), (150, 150, 150), (1.0, 1.5)),
    _ground("regolith", "moon.png", (512, 512), (90, 90, 120), (1.0, 1.5)),
    _ground("tissue", "ihc.png", (512, 512), (200, 150, 90), (0.9, 1.4)),
    _ground("stars", "hubble_deep_field.jpg", (1000, 872), (20, 20, 80), (0.6, 1.2)),
    SceneClass(
        name="coin", photograph="coins.png", shape="disc", diameter_px=(52, 88), turn_degrees=180.0,
        train=_coins(_COINS_ABOVE), test=_coins(_COINS_BELOW), colour=(230, 200, 60),
    ),
    SceneClass(
        name="cat", photograph="chelsea.png", shape="blob", diameter_px=(80, 130), turn_degrees=20.0,
        train=(Box(x=48, y=5, width=164, height=190),), test=(Box(x=214, y=20, width=136, height=220),),
        colour=(240, 130, 40),
    ),
    SceneClass(
        name="wheel", photograph="motorcycle_left.png", shape="disc", diameter_px=(72, 112), turn_degrees=180.0,
        train=(Box(x=518, y=286, width=168, height=168),), test=(Box(x=122, y=240, width=160, height=160),),
        colour=(120, 60, 160),
    ),
    SceneClass(
        name="print", photograph="page.png", shape="sheet", diameter_px=(84, 130), turn_degrees=30.0,
        train=(Box(x=0, y=0, width=188, height=140),), test=(Box(x=196, y=0, width=188, height=140),),
        colour=(235, 235, 235),
    ),
    SceneClass(
        name="retina", photograph="retina.jpg", shape="disc", diameter_px=(64, 110), turn_degrees=180.0,
        train=tuple(Box(x=250, y=y, width=440, height=440) for y in (260, 480, 700)),
        test=tuple(Box(x=720, y=y, width=440, height=440) for y in (260, 480, 700)),
        colour=(220, 80, 60),
    ),
)  # fmt: skip


def photographs_folder() -> Path:
    """Where scikit-image keeps the photographs of its package.

    Raises:
        ManifestError: scikit-image is not installed.
    """
    # Found, not imported: the demo needs its files and none of its code.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ManifestError(
            "the demo scenes need the photographs of scikit-image; install the extra 'demo' of vitrine."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _photograph_bytes() -> dict[str, bytes]:
    folder = photographs_folder()
    names = sorted({scene_class.photograph for scene_class in CLASSES})
    try:
        return {name: read_image_bytes(folder, name) for name in names}
    except UnreadableImageError as error:
        raise ManifestError(
            f"a photograph of the demo scenes cannot be read in {folder}: {error}. Install the extra 'demo' again."
        ) from error


def photographs_sha256() -> str:
    """Sha256 over the files of all photographs, which says whether two installations give the same scenes.

    Raises:
        ManifestError: scikit-image is not installed, or lacks a photograph.
    """
    digest = hashlib.sha256()
    for data in _photograph_bytes().values():
        digest.update(data)
    return digest.hexdigest()


def read_photographs() -> Photographs:
    """The pixels of every photograph that the scenes need, by file name.

    Raises:
        ManifestError: scikit-image is not installed, lacks a photograph, or has one smaller than its regions.
    """
    pixels = {name: np.asarray(decode_image(data, name)) for name, data in _photograph_bytes().items()}
    for scene_class in CLASSES:
        height, width = pixels[scene_class.photograph].shape[:2]
        for box in (*scene_class.train, *scene_class.test):
            if box.x + box.width > width or box.y + box.height > height:
                raise ManifestError(
                    f"{scene_class.photograph} is {width} x {height}, but the demo cuts {box} from it; install the "
                    "extra 'demo' again."
                )
    return pixels
