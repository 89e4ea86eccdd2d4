"""The image formats that are read: known by their first bytes, bounded by their headers, their errors given codes.

Each decoder is named, since Pillow's own sniffing tries every format that any plugin registers.
"""

import errno
import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from PIL import (
    AvifImagePlugin,
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

from pipelines.image_files import MAX_IMAGE_PIXELS, ReasonCode, UnreadableImageError
from pipelines.tiff_bands import BandedTiff, UnsupportedBandsError, silence_decoders

_TAIL_BYTES = 1024
_MAX_PNG_CHUNKS = 10_000
_PREFIX_BYTES = 256

BinaryFile: TypeAlias = io.BytesIO | io.BufferedReader
_Decoder = Callable[[BinaryFile, str], ImageFile.ImageFile]
_DECODERS: dict[str, tuple[tuple[bytes, ...], _Decoder]] = {
    "JPEG": ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    "WEBP": ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    "AVIF": ((), AvifImagePlugin.AvifImageFile),  # told by its brands
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), BandedTiff),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "PPM": (tuple(b"P%d" % kind for kind in range(1, 7)), PpmImagePlugin.PpmImageFile),
}
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Formats of images that are not read, so that a message can say what a file is.
_UNREAD = {
    # Its decoder's memory follows from sizes of blocks that a file of a few bytes states, and nothing bounds them.
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"),
    "Photoshop": (b"8BPS",),
}
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image_header(file: BinaryFile, uri: str, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageFile.ImageFile:
    """Read an image's header: nothing is decoded, and too many pixels are refused.

    Args:
        file: positioned at the start; must stay open until the image is loaded.
        uri: what to call it in errors.
        max_pixels: how many pixels are decoded at most.

    Raises:
        UnreadableImageError: `empty`, `not_an_image`, `unsupported`, `unsupported_bands`, `truncated`, `corrupt` or
            `too_large`.
    """
    prefix = file.read(_PREFIX_BYTES)
    if not prefix:
        raise UnreadableImageError("empty", uri)
    name = _format_name(prefix)
    if name is None:
        unread = _unread_format(prefix)
        code: ReasonCode = "not_an_image" if unread is None else "unsupported"
        what = f"starts with {prefix[:8]!r}" if unread is None else f"a {unread} file"
        raise UnreadableImageError(code, uri, f"{what}; read are {', '.join(_DECODERS)}")
    if name == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise UnreadableImageError("unsupported", uri, "an AVIF file, and this Pillow was built without AVIF")
    file.seek(0)
    with decoding(file, uri, name):
        image = _DECODERS[name][1](file, "")
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableImageError(
            "too_large", uri, f"{width} x {height}; at most {max_pixels} pixels are read, see --max-pixels"
        )
    return image


def _format_name(prefix: bytes) -> str | None:
    if any(brand in _AVIF_BRANDS for brand in _brands(prefix)):
        return "AVIF"
    for name, (signatures, _) in _DECODERS.items():
        if signatures and prefix.startswith(signatures) and (name != "WEBP" or prefix[8:12] == b"WEBP"):
            return name
    return None


def _unread_format(prefix: bytes) -> str | None:
    """The name of a format of images that is not read, whatever the file's ending says."""
    if any(brand in _HEIF_BRANDS for brand in _brands(prefix)):
        return "HEIC"
    return next((name for name, signatures in _UNREAD.items() if prefix.startswith(signatures)), None)


def _brands(prefix: bytes) -> list[bytes]:
    """The brands of an ISO media file, the major one first; AVIF and HEIC differ in them alone."""
    if prefix[4:8] != b"ftyp":
        return []
    end = min(len(prefix), int.from_bytes(prefix[:4], "big"))
    return [prefix[8:12], *(prefix[place : place + 4] for place in range(16, end - 3, 4))]


@contextmanager
def decoding(file: BinaryFile, uri: str, name: str) -> Iterator[None]:
    """While a decoder of format `name` works on `file`: give what hostile bytes make it raise a reason code.

    Raises:
        UnreadableImageError: `truncated`, `corrupt`, `unsupported_bands` or `too_large`.
        OSError, MemoryError: the machine failed, not the file; trying again may help.
    """
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except UnsupportedBandsError as error:
        raise UnreadableImageError("unsupported_bands", uri, f"{name} of {error}") from error
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


def oriented_size(file: BinaryFile, uri: str, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """The (width, height) that `decode_image` will give, from the header alone wherever that can be told.

    Raises:
        UnreadableImageError: as `open_image_header`.
    """
    image = open_image_header(file, uri, max_pixels)
    if isinstance(image, PngImagePlugin.PngImageFile) and _has_late_metadata(file):
        with decoding(file, uri, "PNG"):
            image.load()
    width, height = image.size
    return (height, width) if orientation_of(image) >= 5 else (width, height)


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


def orientation_of(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1 to 8, still to be applied; 1 where there is none or it cannot be read."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies it: to the size in the header, to the pixels when they are loaded
    try:
        # The base class's method: PNG's own would decode the image.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # metadata is a stranger's too, and no reason to lose the pixels
        return 1
    return value if isinstance(value, int) and value in TRANSPOSITIONS else 1


silence_decoders()
