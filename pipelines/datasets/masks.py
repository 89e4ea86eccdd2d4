"""Masks: files of class numbers, read without any conversion, cut as their views are.

Pillow rescales some gray depths when it opens a file (a 4-bit 3 becomes 51), so only formats and depths whose values it
keeps, or that can be given back, are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import ImageFile

from feature_store.errors import ManifestError
from pipelines.image_files import DEFAULT_RULES, ReadingRules, UnreadableImageError, open_image_file
from pipelines.image_formats import decoding, open_image_header
from pipelines.views import resize_target, tile_box

Mask: TypeAlias = UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]
ColourMask: TypeAlias = UInt8[np.ndarray, "height width 3"]
ViewMask: TypeAlias = UInt8[np.ndarray, "view_height view_width"] | UInt16[np.ndarray, "view_height view_width"]
MASK_SUFFIXES = (".png", ".tif", ".tiff")
_COLOUR_MODES = ("RGB", "RGBA")
_OPAQUE = 255
VALUE_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_BLACK_IS_ZERO, _PALETTE = 1, 3
_PIXELS_PER_STEP = 1 << 20


def mask_size(root: Path, uri: str, rules: ReadingRules = DEFAULT_RULES, *, colours: bool = False) -> tuple[int, int]:
    """The (width, height) of a mask, from its header; `colours` says whether it may hold them.

    Raises:
        ManifestError: the file cannot be read as class numbers.
    """
    try:
        with open_image_file(root, uri, rules) as file:
            image = open_image_header(file, uri, rules.max_pixels)
            _check_form(image, uri, colours=colours)
            return image.size
    except UnreadableImageError as error:
        raise _refusal(uri, error) from error


def read_mask(root: Path, uri: str, rules: ReadingRules = DEFAULT_RULES, *, colours: bool = False) -> Mask | ColourMask:
    """The values in a mask file, as they stand there.

    PNG and TIFF with one value a pixel: gray, palette indices, 1-bit, 16-bit. An EXIF orientation in a PNG is ignored.

    Args:
        root: the dataset's root.
        uri: the path relative to it.
        rules: how files are read.
        colours: whether the mask may hold RGB instead of values.

    Raises:
        ManifestError: the file cannot be read, or holds colours that nobody listed.
    """
    try:
        with open_image_file(root, uri, rules) as file:
            head = file.read(26)
            file.seek(0)
            image = open_image_header(file, uri, rules.max_pixels)
            _check_form(image, uri, colours=colours)
            with decoding(file, uri, image.format or ""):
                values = np.asarray(image)
                if image.mode == "RGBA" and (values[..., 3] != _OPAQUE).any():
                    raise ManifestError(f"mask {uri!r} has transparent pixels, which have no class. Save it without.")
    except UnreadableImageError as error:
        raise _refusal(uri, error) from error
    if values.ndim == 3:
        return np.ascontiguousarray(values[..., :3])
    if values.dtype == np.int32:
        if values.min() < 0 or values.max() > 65535:
            raise ManifestError(
                f"mask {uri!r}: value {int(values.max())}; class numbers go from 0 to 65535. Renumber them."
            )
        return values.astype(np.uint16)
    if values.dtype.itemsize == 2:
        return values.astype(np.uint16)
    gray_bits = head[24] if image.format == "PNG" and head[25] == 0 else 8
    # Pillow stretches 2- and 4-bit gray to 0..255.
    return values.astype(np.uint8) // ((255 // (2**gray_bits - 1)) if gray_bits in (2, 4) else 1)


def _check_form(image: ImageFile.ImageFile, uri: str, *, colours: bool) -> None:
    if image.format not in ("PNG", "TIFF"):
        raise ManifestError(
            f"mask {uri!r} is a {image.format} file, which may not keep its values; save masks as PNG or TIFF."
        )
    if image.mode in _COLOUR_MODES and colours:
        return
    if image.mode not in VALUE_MODES:
        raise ManifestError(
            f"mask {uri!r} holds {image.mode} colours; a mask holds one class number a pixel (gray or palette). "
            "Save the class numbers, or list the colour of each class, all different, as 'colours' in dataset.json."
        )
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits, photometric = tags.get(_BITS_PER_SAMPLE, (8,)), tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)
    if bits[0] not in (8, 16) or photometric not in (_BLACK_IS_ZERO, _PALETTE):
        raise ManifestError(
            f"mask {uri!r} is a TIFF of {bits[0]} bits and photometric interpretation {photometric}; read are 8 and 16 "
            "bits, black zero or palette. Save it as PNG."
        )


def _refusal(uri: str, error: UnreadableImageError) -> ManifestError:
    return ManifestError(
        f"mask {uri!r} cannot be read: {error.code}{f' ({error.detail})' if error.detail else ''}. Restore the file, "
        "or remove mask and image from the dataset."
    )


def values_in(mask: Mask) -> list[int]:
    """The values that a mask holds, ascending."""
    present = np.zeros(int(np.iinfo(mask.dtype).max) + 1, dtype=bool)
    # In runs of rows, since NumPy takes eight bytes a pixel for what it indexes with.
    rows = max(1, _PIXELS_PER_STEP // mask.shape[1])
    for start in range(0, len(mask), rows):
        present[mask[start : start + rows]] = True
    return [int(value) for value in np.flatnonzero(present)]


def cut_mask(
    mask: Mask, tile: Mapping[str, int] | None, transform: Mapping[str, str] | None, *, void: int | None
) -> ViewMask:
    """A mask cut as `pipelines.views.cut_view` cuts its image; a resize takes the nearest pixel.

    Args:
        mask: class numbers of the whole image.
        tile: x, y, width, height; what leaves the mask is void.
        transform: as of the view.
        void: the value for what leaves the mask.

    Raises:
        ManifestError: the tile leaves the mask and there is no void value.
    """
    target = resize_target(transform)
    if target is not None:
        mask = mask[_nearest(mask.shape[0], target[1])[:, None], _nearest(mask.shape[1], target[0])[None, :]]
    if tile is None:
        return mask
    left, top, right, bottom = tile_box(tile)
    height, width = mask.shape
    if min(left, top) >= 0 and right <= width and bottom <= height:
        return mask[top:bottom, left:right]
    if void is None:
        raise ManifestError(
            f"tile {dict(tile)} leaves its mask of {width} x {height}, and what lies outside has no class. State a "
            "void value (--void, or 'void' in dataset.json), or use --tile-fit resize."
        )
    cut = np.full((bottom - top, right - left), void, np.promote_types(mask.dtype, np.min_scalar_type(void)))
    inside = mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.size:
        row, column = max(-top, 0), max(-left, 0)
        cut[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cut


def _nearest(source: int, target: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The source index under the centre of each target pixel, in whole numbers and so without rounding."""
    return (2 * np.arange(target, dtype=np.int64) + 1) * source // (2 * target)
