"""Image bytes to pixels: read, decode, cut the view, fit it to the backbone.

Pillow and NumPy only. No global setting of Pillow or of `warnings` is changed, so any number of threads may decode at
once beside other users of Pillow. What Pillow warns of, such as broken EXIF, goes where the process sends warnings.
"""

import errno
import io
import json
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from feature_store.errors import ManifestError
from feature_store.manifest import TILE_AXES

ReasonCode = Literal[
    "missing", "empty", "truncated", "too_large", "not_an_image", "corrupt", "unsupported", "outside_root",
    "outside_image", "non_finite",
]  # fmt: skip
Fit = Literal["squash", "crop"]
MAX_IMAGE_BYTES = 256 << 20
MAX_IMAGE_PIXELS = 100_000_000
MAX_TILE_PIXELS = 1 << 26  # below the 89 million at which Pillow's `crop` warns
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_TAIL_BYTES = 1024
_MAX_PNG_CHUNKS = 10_000

BinaryFile: TypeAlias = io.BytesIO | io.BufferedReader
_Decoder = Callable[[BinaryFile, str], ImageFile.ImageFile]
# Pillow's own sniffing tries every registered format, and warns of large images; here each decoder is named.
_DECODERS: dict[str, tuple[tuple[bytes, ...], _Decoder]] = {
    "JPEG": ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    "WEBP": ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "PPM": (tuple(b"P%d" % kind for kind in range(1, 7)), PpmImagePlugin.PpmImageFile),
}
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(Exception):
    """An image that gives no pixels: its row stays, marked invalid with this reason.

    Attributes:
        code: the reason, as receipts record it.
        uri: the image, relative to its dataset's root.
    """

    def __init__(self, code: ReasonCode, uri: str, detail: str = "") -> None:
        self.code: ReasonCode = code
        self.uri = uri
        self.detail = detail
        super().__init__(code, uri, detail)

    def __str__(self) -> str:
        return f"{self.uri}: {self.code}" + (f" ({self.detail})" if self.detail else "")


@contextmanager
def open_image_file(root: Path, uri: str) -> Iterator[io.BufferedReader]:
    """Open an image's file, which must be a regular file of bounded size under the root, symlinks resolved.

    Raises:
        UnreadableImageError: `missing`, `outside_root`, `not_an_image` (a folder, a device) or `too_large`.
        OSError: the file is there but reading it failed; trying again may help.
    """
    path = _resolve_inside(root, uri)
    with _absence(uri):
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 -- Path.open takes no opener
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("not_an_image", uri, "not a regular file")
        if status.st_size > MAX_IMAGE_BYTES:
            raise UnreadableImageError("too_large", uri, f"{status.st_size} bytes; at most {MAX_IMAGE_BYTES} are read")
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK a named pipe would block for ever; O_NOFOLLOW closes the gap since the path was resolved.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


@contextmanager
def _absence(uri: str) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError as error:
        raise UnreadableImageError("not_an_image", uri, "a folder") from error
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError is a loop of symlinks, ValueError a NUL in the name.
        if isinstance(error, OSError) and error.errno not in _NOT_THERE:
            raise
        raise UnreadableImageError("missing", uri) from error


def _resolve_inside(root: Path, uri: str) -> Path:
    with _absence(uri):
        resolved_root = root.resolve(strict=True)
        path = (resolved_root / uri).resolve(strict=True)
    if not path.is_relative_to(resolved_root):
        raise UnreadableImageError("outside_root", uri, "its path leads out of the dataset's root")
    return path


def read_image_bytes(root: Path, uri: str) -> bytes:
    """The bytes of one image file, whose path `uri` is relative to the dataset's root.

    Raises:
        UnreadableImageError: see `open_image_file`; also when the file grows past the bound while it is read.
        OSError: reading failed for a reason that may pass.
    """
    with open_image_file(root, uri) as file:
        data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise UnreadableImageError("too_large", uri)
    return data


def open_image_header(file: BinaryFile, uri: str) -> ImageFile.ImageFile:
    """Read an image's header: nothing is decoded, and too many pixels are refused.

    Args:
        file: positioned at the start; must stay open until the image is loaded.
        uri: what to call it in errors.

    Raises:
        UnreadableImageError: `empty`, `not_an_image`, `truncated`, `corrupt` or `too_large`.
    """
    prefix = file.read(16)
    if not prefix:
        raise UnreadableImageError("empty", uri)
    name = _format_name(prefix)
    if name is None:
        raise UnreadableImageError("not_an_image", uri, f"starts with {prefix[:8]!r}; read are {', '.join(_DECODERS)}")
    file.seek(0)
    with decoding(file, uri, name):
        image = _DECODERS[name][1](file, "")
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise UnreadableImageError("too_large", uri, f"{width} x {height}; at most {MAX_IMAGE_PIXELS} pixels are read")
    return image


def _format_name(prefix: bytes) -> str | None:
    for name, (signatures, _) in _DECODERS.items():
        if prefix.startswith(signatures) and (name != "WEBP" or prefix[8:12] == b"WEBP"):
            return name
    return None


@contextmanager
def decoding(file: BinaryFile, uri: str, name: str) -> Iterator[None]:
    """While a decoder of format `name` works on `file`: give what hostile bytes make it raise a reason code.

    Raises:
        UnreadableImageError: `truncated`, `corrupt` or `too_large`.
        OSError, MemoryError: the machine failed, not the file; trying again may help.
    """
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError("too_large", uri, str(error)) from error
    except Exception as error:
        # Pillow's own OSErrors carry no errno. EINVAL is a seek to an offset that a hostile header named.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        cut = "truncated" in str(error).lower() or _is_cut_short(file, name)
        raise UnreadableImageError("truncated" if cut else "corrupt", uri, f"{name}: {error}") from error


def _is_cut_short(file: BinaryFile, name: str) -> bool:
    """Whether the format's end marker, or the length that its header states, is missing."""
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    file.seek(max(0, size_bytes - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    if name in _END_MARKERS:
        return _END_MARKERS[name] not in tail
    if name not in ("WEBP", "BMP") or len(head) < 12:
        return False
    stated = int.from_bytes(head[4:8], "little") + 8 if name == "WEBP" else int.from_bytes(head[2:6], "little")
    return stated > size_bytes


def oriented_size(file: BinaryFile, uri: str) -> tuple[int, int]:
    """The (width, height) that `decode_image` will give, from the header alone wherever that can be told.

    Raises:
        UnreadableImageError: as `open_image_header`.
    """
    image = open_image_header(file, uri)
    if isinstance(image, PngImagePlugin.PngImageFile) and _has_late_metadata(file):
        with decoding(file, uri, "PNG"):
            image.load()
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _has_late_metadata(file: BinaryFile) -> bool:
    """Whether a PNG states metadata after its pixels, where only decoding would find an orientation."""
    found = seen_pixels = False
    position = file.tell()
    file.seek(8)
    for _ in range(_MAX_PNG_CHUNKS):
        head = file.read(8)
        found = seen_pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        if len(head) < 8 or head[4:] == b"IEND" or found:
            break
        seen_pixels = seen_pixels or head[4:] == b"IDAT"
        file.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
    else:
        found = True  # so many chunks that only decoding tells
    file.seek(position)
    return found


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1 to 8, still to be applied; 1 where there is none or it cannot be read."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies it: to the size in the header, to the pixels when they are loaded
    try:
        # The base class's method: PNG's own would decode the image.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata is a stranger's too, and no reason to lose the pixels
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSITIONS else 1


def decode_image(data: bytes, uri: str) -> Image.Image:
    """Decode an image to 8-bit RGB as a viewer shows it.

    Gray, palette, CMYK and YCbCr become RGB; alpha is laid over white; 16-bit gray is scaled to 8 bits as
    round(value / 257), other 16-bit images lose their low byte as Pillow reads them; the EXIF orientation is applied;
    of an animation the first frame is taken. Colour profiles are not applied.

    Args:
        data: the file's bytes.
        uri: what to call it in errors.

    Returns:
        An RGB image that shares nothing with `data`.

    Raises:
        UnreadableImageError: `empty`, `not_an_image`, `too_large`, `truncated`, `corrupt`, or `unsupported` (float or
            32-bit values, which state no range, and Lab).
    """
    file = io.BytesIO(data)
    image = open_image_header(file, uri)
    with decoding(file, uri, image.format or ""):
        image.load()
        orientation = _orientation(image)
        pixels = _to_rgb(image, uri)
    return pixels.transpose(_TRANSPOSITIONS[orientation]) if orientation > 1 else pixels


def _to_rgb(image: Image.Image, uri: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_sixteen_bits(image, uri)
    if image.mode in ("F", "LAB"):
        raise UnreadableImageError("unsupported", uri, f"{image.mode} values; save it as 8-bit RGB")
    if image.has_transparency_data:
        rgba, opaque = image.convert("RGBA"), Image.new("RGB", image.size, (255, 255, 255))
        opaque.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return opaque
    return image.convert("RGB") if image.mode != "RGB" else Image.Image.copy(image)


def _scale_sixteen_bits(image: Image.Image, uri: str) -> Image.Image:
    values = np.asarray(image).astype(np.int32, copy=False)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImageError("unsupported", uri, f"32-bit values up to {values.max()}; save it as 8-bit RGB")
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
