"""`demo`: scenes composed of real photographs, with masks that are exact because composing made them.

Two to four materials share the ground of a scene, parted by wavy lines; coins, pieces of a cat, wheels, printed sheets
and discs of a retina lie on it. Train and test scenes are cut from different regions of the photographs.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFilter

from feature_store.canonical import digest_of, pretty_json
from feature_store.errors import ManifestError
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.demo_photographs import (
    CLASSES,
    SPLITS,
    Box,
    Photographs,
    SceneClass,
    Shape,
    Split,
    photographs_sha256,
    read_photographs,
)
from pipelines.datasets.description import DESCRIPTION_FILE
from pipelines.datasets.scan import ANNOTATION_ENDING, Progress
from pipelines.datasets.segmentation_folder import open_segmentation_folder
from pipelines.user_cache import user_cache_folder

SIDE_PX = 224
TRAIN_SCENES, TEST_SCENES = 48, 24
VOID = 255
# Raised whenever the same seed gives other scenes, so that no old cache is taken for the new ones.
_REVISION = 1
_OBJECTS = (3, 5)
_PLACEMENTS_TRIED = 24
_MOST_OVERLAP = 0.2
_EDGE_PX = 2
_GROUNDS = tuple(index for index, scene_class in enumerate(CLASSES) if scene_class.shape == "ground")
_THINGS = tuple(index for index, scene_class in enumerate(CLASSES) if scene_class.shape != "ground")

# Nameless axes: one function handles photographs, parts and scenes, each of its own size.
Pixels: TypeAlias = UInt8[np.ndarray, "_ _ 3"]
Inside: TypeAlias = Bool[np.ndarray, "_ _"]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One composed scene.

    Attributes:
        pixels: 8-bit RGB.
        mask: the class of every pixel.
    """

    pixels: Pixels
    mask: UInt8[np.ndarray, "height width"]


def compose_scene(photographs: Photographs, *, split: Split, index: int, seed: int = 0) -> Scene:
    """Compose one scene; a function of its arguments.

    Args:
        photographs: pixels by file name, see `read_photographs`.
        split: decides which regions of the photographs are used.
        index: of the scene within its split.
        seed: not negative.
    """
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    n_grounds = int(random.integers(2, 5))
    grounds = random.permutation(_GROUNDS)[:n_grounds]
    mask = grounds[_wavy_cells(random, n_grounds)].astype(np.uint8)
    pixels = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    for ground in grounds.tolist():
        texture = _ground_texture(random, photographs, CLASSES[ground], split)
        pixels[mask == ground] = texture[mask == ground]
    taken = np.zeros((SIDE_PX, SIDE_PX), bool)
    things = random.permutation(_THINGS)[: int(random.integers(_OBJECTS[0], _OBJECTS[1] + 1))]
    for thing in things.tolist():
        cut_out, inside = _cut_out(random, photographs, CLASSES[thing], split)
        place = _free_place(random, inside, taken)
        if place is None:
            continue
        window = np.s_[place[0] : place[0] + inside.shape[0], place[1] : place[1] + inside.shape[1]]
        pixels = _with_shadow(pixels, inside, place)
        pixels[window][inside] = cut_out[inside]
        mask[window][inside] = thing
        taken[window] |= inside
    return Scene(pixels=pixels, mask=mask)


def _wavy_cells(random: np.random.Generator, n_cells: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Which of `n_cells` points is nearest to each pixel, after a few slow waves have bent the plane."""
    rows, columns = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX
    bent = []
    for axis in (rows, columns):
        waves = np.zeros_like(axis)
        for _ in range(4):
            across, down, phase = random.uniform(-5, 5), random.uniform(-5, 5), random.uniform(0, 2 * math.pi)
            waves += np.sin(2 * math.pi * (across * columns + down * rows) * 0.5 + phase)
        bent.append(axis + 0.03 * waves)
    # Points around the centre at turning angles: no cell can vanish into a corner.
    angles = random.uniform(0, 2 * math.pi) + 2 * math.pi * np.arange(n_cells) / n_cells
    radius = random.uniform(0.18, 0.35, n_cells)
    distances = [
        (bent[0] - 0.5 - r * math.sin(angle)) ** 2 + (bent[1] - 0.5 - r * math.cos(angle)) ** 2
        for r, angle in zip(radius, angles, strict=True)
    ]
    nearest: np.ndarray[Any, np.dtype[np.intp]] = np.argmin(np.stack(distances), axis=0)
    return nearest


def _ground_texture(
    random: np.random.Generator, photographs: Photographs, scene_class: SceneClass, split: Split
) -> Pixels:
    box = scene_class.boxes(split)[0]
    # No smaller scale than one at which the region still fills the scene.
    least = max(scene_class.scale[0], SIDE_PX / min(box.width, box.height))
    side = int(SIDE_PX / random.uniform(least, scene_class.scale[1]))
    patch = _random_part(random, photographs[scene_class.photograph], box, side, side)
    return _jittered(random, np.asarray(_resized(patch, SIDE_PX, SIDE_PX)))


def _random_part(random: np.random.Generator, photograph: Pixels, box: Box, width: int, height: int) -> Pixels:
    """A part of the box, perhaps mirrored: of the given size, or the box's where that is smaller."""
    width, height = min(width, box.width), min(height, box.height)
    x = box.x + int(random.integers(0, box.width - width + 1))
    y = box.y + int(random.integers(0, box.height - height + 1))
    part = photograph[y : y + height, x : x + width]
    return part[:, ::-1] if random.random() < 0.5 else part


def _resized(part: Pixels, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(part)).resize((width, height), Image.Resampling.BICUBIC)


def _jittered(random: np.random.Generator, pixels: Pixels) -> Pixels:
    """Brightness and contrast changed by up to a fifth."""
    contrast, brightness = random.uniform(0.8, 1.2), random.uniform(-25, 25)
    mean = pixels.mean()
    changed = np.clip(np.rint((pixels - mean) * contrast + mean + brightness), 0, 255)
    return np.asarray(changed, np.uint8)


def _cut_out(
    random: np.random.Generator, photographs: Photographs, scene_class: SceneClass, split: Split
) -> tuple[Pixels, Inside]:
    """A thing's pixels and which of them belong to it, turned and cropped to what it covers."""
    boxes = scene_class.boxes(split)
    box = boxes[int(random.integers(len(boxes)))]
    width = height = int(random.integers(*scene_class.diameter_px, endpoint=True))
    part_width, part_height = box.width, box.height
    if scene_class.shape == "blob":
        part_width = part_height = int(width / random.uniform(0.7, 1.1))
    elif scene_class.shape == "sheet":
        height = int(width * random.uniform(0.6, 0.9))
        part_width = int(box.width * random.uniform(0.55, 0.9))
        part_height = part_width * height // width
    part = _random_part(random, photographs[scene_class.photograph], box, part_width, part_height)
    picture = Image.fromarray(_jittered(random, np.asarray(_resized(part, width, height))))
    outline = _outline(random, scene_class.shape, width, height)
    angle = float(random.uniform(-scene_class.turn_degrees, scene_class.turn_degrees))
    turned = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    inside = np.asarray(outline.rotate(angle, Image.Resampling.NEAREST, expand=True)) > 0
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    covered = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(turned)[covered], inside[covered]


def _outline(random: np.random.Generator, shape: Shape, width: int, height: int) -> Image.Image:
    """White where the thing is; a margin keeps the black that turning brings in out of it."""
    outline = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(outline)
    if shape == "sheet":
        draw.rectangle((_EDGE_PX, _EDGE_PX, width - 1 - _EDGE_PX, height - 1 - _EDGE_PX), fill=255)
        return outline
    angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    radius = np.ones_like(angles)
    if shape == "blob":
        for wave in (2, 3, 4, 5):
            radius += random.uniform(0, 0.32) / wave * np.cos(wave * angles + random.uniform(0, 2 * math.pi))
        radius /= radius.max()
    radius *= min(width, height) / 2 - _EDGE_PX
    points = zip(width / 2 + radius * np.cos(angles), height / 2 + radius * np.sin(angles), strict=True)
    draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    return outline


def _free_place(random: np.random.Generator, inside: Inside, taken: Inside) -> tuple[int, int] | None:
    """The (row, column) of a place where the thing hides little of those before it, or None after some tries."""
    height, width = inside.shape
    for _ in range(_PLACEMENTS_TRIED):
        row, column = int(random.integers(0, SIDE_PX - height + 1)), int(random.integers(0, SIDE_PX - width + 1))
        hidden = np.count_nonzero(taken[row : row + height, column : column + width] & inside)
        if hidden <= _MOST_OVERLAP * np.count_nonzero(inside):
            return row, column
    return None


def _with_shadow(pixels: Pixels, inside: Inside, place: tuple[int, int]) -> Pixels:
    """The scene with a soft shadow below and right of the thing; a shadow changes no class."""
    shadow = Image.new("L", (SIDE_PX, SIDE_PX), 0)
    shadow.paste(130, (place[1] + 3, place[0] + 4), Image.fromarray(inside.astype(np.uint8) * 255))
    strength = np.asarray(shadow.filter(ImageFilter.GaussianBlur(3)), np.float64)[..., None] / 255
    return np.rint(pixels * (1 - strength)).astype(np.uint8)


def write_demo_scenes(
    folder: Path, *, seed: int = 0, train_scenes: int = TRAIN_SCENES, test_scenes: int = TEST_SCENES
) -> None:
    """Write the scenes, their masks and `dataset.json` in the layout that `segmentation:` reads.

    The pixels are a function of the seed, of the photographs in the installed scikit-image, and of the versions of
    Pillow and NumPy.

    Args:
        folder: is made where it does not exist; files of the same names are replaced.
        seed: not negative.
        train_scenes, test_scenes: how many of each; scene i does not depend on how many there are.

    Raises:
        ManifestError: scikit-image or one of its photographs is missing, or a number is negative.
    """
    if min(seed, train_scenes, test_scenes) < 0:
        raise ManifestError(f"seed={seed}, scenes={train_scenes} and {test_scenes}: none may be negative.")
    photographs = read_photographs()
    for split, count in zip(SPLITS, (train_scenes, test_scenes), strict=True):
        for name, scene in _numbered(photographs, split, count, seed):
            for subfolder, values in ((split, scene.pixels), (split + ANNOTATION_ENDING, scene.mask)):
                (folder / subfolder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(folder / subfolder / name)
    (folder / DESCRIPTION_FILE).write_bytes(pretty_json(_description(seed)))


def _numbered(photographs: Photographs, split: Split, count: int, seed: int) -> Iterator[tuple[str, Scene]]:
    for index in range(count):
        yield f"scene_{index:03d}.png", compose_scene(photographs, split=split, index=index, seed=seed)


def _description(seed: int) -> dict[str, Any]:
    return {
        "name": "demo",
        "classes": [scene_class.name for scene_class in CLASSES],
        "colours": [list(scene_class.colour) for scene_class in CLASSES],
        "void": VOID,
        "license": "the photographs' own, as stated by scikit-image for each file in its data folder",
        "source": f"scenes composed from photographs in the scikit-image package, seed {seed}",
    }


def open_demo_scenes(options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """The demo scenes as a dataset; written on first use into `options.cache` or the user's cache folder.

    Raises:
        ManifestError: scikit-image is missing, or the cache folder cannot be written.
    """
    key = digest_of([_REVISION, photographs_sha256(), PIL.__version__, np.__version__])[:16]
    folder = (options.cache or user_cache_folder()) / f"demo-scenes-{key}"
    if not folder.is_dir():
        try:
            _write_whole(folder)
        except OSError as error:
            raise ManifestError(
                f"the demo scenes cannot be written to {folder} ({error}); set XDG_CACHE_HOME to a folder "
                "that you may write."
            ) from error
    return open_segmentation_folder(folder, replace(options, cache=None), progress)


def _write_whole(folder: Path) -> None:
    """Write beside the folder, then rename: nobody sees half of the scenes, and of two writers one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as partial:
        write_demo_scenes(Path(partial) / "scenes")
        try:
            (Path(partial) / "scenes").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
