"""Image bytes to pixels: decode, cut the view, fit it to the backbone. Any number of threads may do so at once."""

import io
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from feature_store.errors import ManifestError
from feature_store.manifest import TILE_AXES
from pipelines.image_files import MAX_IMAGE_PIXELS, UnreadableImageError
from pipelines.image_formats import TRANSPOSITIONS, decoding, open_image_header, orientation_of

Fit = Literal["squash", "crop"]
MAX_TILE_PIXELS = 1 << 26  # below the 89 million at which Pillow's `crop` warns


def decode_image(data: bytes, uri: str, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode an image to 8-bit RGB as a viewer shows it.

    Gray, palette, CMYK and YCbCr become RGB; alpha is laid over white; 16-bit gray is scaled to 8 bits as
    round(value / 257), other 16-bit images lose their low byte as Pillow reads them; the EXIF orientation is applied;
    of an animation the first frame is taken. Colour profiles are not applied.

    Args:
        data: the file's bytes.
        uri: what to call it in errors.
        max_pixels: how many pixels are decoded at most.

    Returns:
        An RGB image that shares nothing with `data`.

    Raises:
        UnreadableImageError: `empty`, `not_an_image`, `too_large`, `truncated`, `corrupt`, `unsupported_bands` (of
            a TIFF: neither gray nor RGB), or `unsupported` (float, signed or 32-bit values, which state no range, Lab,
            and formats that are not read).
    """
    file = io.BytesIO(data)
    image = open_image_header(file, uri, max_pixels)
    with decoding(file, uri, image.format or ""):
        image.load()
        orientation = orientation_of(image)
        pixels = _to_rgb(image, uri)
    return pixels.transpose(TRANSPOSITIONS[orientation]) if orientation > 1 else pixels


def _to_rgb(image: Image.Image, uri: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_sixteen_bits(image, uri)
    if image.mode in ("F", "LAB"):
        raise UnreadableImageError("unsupported", uri, f"{image.mode} values; save it as 8-bit RGB")
    if image.has_transparency_data:
        rgba, opaque = image.convert("RGBA"), Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return opaque
    # Not a copy: pictures may be large, and nobody else has this one.
    return image.convert("RGB") if image.mode != "RGB" else image._new(image.im)


def _scale_sixteen_bits(image: Image.Image, uri: str) -> Image.Image:
    values = np.asarray(image).astype(np.int32, copy=False)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError(
            "unsupported", uri, f"values from {values.min()} to {values.max()}; save it as 8-bit RGB"
        )
    gray = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def resize_target(transform: Mapping[str, str] | None) -> tuple[int, int] | None:
    """The (width, height) that a view's transform resizes the image to, or None for a clean view.

    Raises:
        ManifestError: an unknown transform, or parameters that are not a bounded size.
    """
    if transform is None:
        return None
    name, text = transform["name"], transform["parameters"]
    if name != "resize":
        raise ManifestError(f"transform {name!r} is not known; known is 'resize'. See docs/datasets.md.")
    try:
        parameters: Any = json.loads(text)
        width, height = parameters["width"], parameters["height"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"resize needs {{'width', 'height'}} as JSON; got {str(text)[:99]!r}.") from error
    if not (type(width) is int and type(height) is int and width > 0 < height and width * height <= MAX_IMAGE_PIXELS):
        raise ManifestError(f"resize to {width!r} x {height!r}: both must be whole, at most {MAX_IMAGE_PIXELS} pixels.")
    return width, height


def tile_box(tile: Mapping[str, int]) -> tuple[int, int, int, int]:
    """The (left, top, right, bottom) of a tile in pixels.

    Raises:
        ManifestError: an empty tile, one beyond `MAX_TILE_PIXELS`, or a null among its numbers.
    """
    x, y, width, height = (tile[axis] for axis in TILE_AXES)
    if None in (x, y, width, height) or width <= 0 or height <= 0 or width * height > MAX_TILE_PIXELS:
        raise ManifestError(
            f"tile {dict(tile)}: width and height must be positive and cover at most {MAX_TILE_PIXELS} pixels."
        )
    return x, y, x + width, y + height


def is_outside(box: tuple[int, int, int, int], size: tuple[float, float]) -> bool:
    """Whether a box (left, top, right, bottom) has no pixel of an image of this (width, height)."""
    left, top, right, bottom = box
    return right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]


def cut_view(
    image: Image.Image, tile: Mapping[str, int] | None = None, transform: Mapping[str, str] | None = None
) -> Image.Image:
    """The pixels of one view: the image transformed first, then the tile's box of it.

    Args:
        image: 8-bit RGB, from `decode_image`.
        tile: x, y, width, height in pixels of the transformed image; None for all of it. What leaves it is black.
        transform: name and parameters (JSON); so far `resize` with width and height, bicubic on 8-bit values.

    Raises:
        ManifestError: the tile or the transform is impossible.
        UnreadableImageError: `outside_image`, a tile without one pixel of the image.
    """
    target = resize_target(transform)
    if target is not None and target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    if tile is None:
        return image
    box = tile_box(tile)
    if is_outside(box, image.size):
        raise UnreadableImageError("outside_image", "", f"tile {dict(tile)} of {image.width} x {image.height} pixels")
    return image.crop(box)


def fit_view(
    view: Image.Image,
    *,
    size: tuple[int, int],
    fit: Fit = "squash",
    crop_fraction: float = 1.0,
    interpolation: str = "bicubic",
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize a view to the backbone's input, on 8-bit values as Pillow does it.

    Args:
        view: 8-bit RGB.
        size: (height, width) of the result, in pixels.
        fit: `squash` resizes both sides and keeps everything; `crop` resizes the view, proportions kept, to just cover
            floor(size / crop_fraction) and takes the centre, which is timm's evaluation transform.
        crop_fraction: sides of the centre crop over those of what the view covers, in (0, 1]; only for `crop`.
        interpolation: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.

    Raises:
        ValueError: a setting outside its range.
        UnreadableImageError: `too_large`, a view so long and thin that the resized one would pass `MAX_IMAGE_PIXELS`.
    """
    resampling = Image.Resampling.__members__.get(interpolation.upper())
    if resampling is None or fit not in ("squash", "crop") or min(size) <= 0 or not 0 < crop_fraction <= 1:
        raise ValueError(
            f"size={size!r}, fit={fit!r}, crop_fraction={crop_fraction!r}, interpolation={interpolation!r}: use a "
            "positive size, 'squash' or 'crop', a fraction in (0, 1] and a filter of Pillow."
        )
    height, width = size
    if fit == "squash":
        return np.array(view.resize((width, height), resampling))
    covering = _covering_size(view.size, (math.floor(width / crop_fraction), math.floor(height / crop_fraction)))
    if covering[0] * covering[1] > MAX_IMAGE_PIXELS:
        raise UnreadableImageError("too_large", "", f"a view of {view.size} fitted to {covering} pixels")
    resized = view.resize(covering, resampling)
    # Python's round: to even at one half, as in torchvision's CenterCrop.
    left, top = round((resized.width - width) / 2.0), round((resized.height - height) / 2.0)
    return np.array(resized.crop((left, top, left + width, top + height)))


def _covering_size(view: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest (width, height) in the view's proportions that covers the target, rounded as timm rounds it."""
    if target[0] == target[1]:
        longer = int(target[0] * max(view) / min(view))
        return (target[0], longer) if view[0] <= view[1] else (longer, target[0])
    ratio = min(view[0] / target[0], view[1] / target[1])
    return round(view[0] / ratio), round(view[1] / ratio)
