"""Hostile images: each ends in pixels or in a reason code, soon and in bounded memory, and none in another error."""

import io
import os
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.image_files import MAX_IMAGE_PIXELS, UnreadableImageError
from pipelines.image_formats import oriented_size
from pipelines.views import decode_image

FULL = os.environ.get("VITRINE_FAULTS") == "full"
_N_MUTATED = 1500 if FULL else 300
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
_MAX_GROWTH_BYTES = 256 << 20
_MAX_SECONDS = 5.0  # of a machine under load; a bomb that is decoded takes minutes or all memory


def _encoded(image_format: str, *, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> bytes:
    random_pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(random_pixels).convert(mode).save(buffer, image_format)
    return buffer.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, pixels: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), *extra, _chunk(b"IDAT", pixels), _chunk(b"IEND", b""))
    )


def _zeros(n_bytes: int) -> bytes:
    compressor = zlib.compressobj(9)
    return b"".join([*(compressor.compress(bytes(1 << 20)) for _ in range(n_bytes >> 20)), compressor.flush()])


def _claims(content: bytes, width: int, height: int, image_format: str) -> bytes:
    """The file with another size in its header."""
    if image_format == "PNG":
        header = content[16:24]
        changed = content.replace(header, struct.pack(">II", width, height), 1)
        return changed[:29] + struct.pack(">I", zlib.crc32(changed[12:29])) + changed[33:]
    if image_format == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        return content[:place] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + content[place + 4 :]
    if image_format == "BMP":
        return content[:18] + struct.pack("<ii", width, height) + content[26:]
    if image_format == "GIF":
        return content[:6] + struct.pack("<HH", min(width, 65535), min(height, 65535)) + content[10:]
    return content.replace(b"48 40", b"%d %d" % (width, height), 1)


def _bombs() -> Iterator[tuple[str, bytes]]:
    for image_format in ("PNG", "JPEG", "BMP", "GIF", "PPM"):
        content = _encoded(image_format)
        for width, height in ((65_500, 65_500), (2**31 - 1, 1), (1, 2**31 - 1), (30_000, 30_000), (0, 0), (0, 7)):
            yield f"{image_format} claims {width} x {height}", _claims(content, width, height, image_format)
    yield "a gigabyte of zeros in a small PNG", _png(32, 32, _zeros(1 << 30))
    yield (
        "text that unpacks to a gigabyte",
        _png(8, 8, zlib.compress(bytes(25 * 8)), _chunk(b"zTXt", b"k\0\0" + _zeros(1 << 30))),
    )
    yield (
        "a colour profile that unpacks to a gigabyte",
        _png(8, 8, zlib.compress(bytes(25 * 8)), _chunk(b"iCCP", b"k\0\0" + _zeros(1 << 30))),
    )
    yield "a hundred thousand chunks", _png(8, 8, zlib.compress(bytes(25 * 8)), *[_chunk(b"tEXt", b"a\0b")] * 100_000)
    many = io.BytesIO()
    frames = [Image.new("L", (16, 16), value) for value in range(200)]
    frames[0].save(many, "GIF", save_all=True, append_images=frames[1:])
    yield "two hundred frames", many.getvalue()
    yield "a TIFF whose directory is its own next", _looping_tiff()


def _looping_tiff() -> bytes:
    content = bytearray(_encoded("TIFF"))
    (directory,) = struct.unpack("<I", content[4:8])
    (n_entries,) = struct.unpack("<H", content[directory : directory + 2])
    content[directory + 2 + 12 * n_entries :][:4] = struct.pack("<I", directory)
    place = directory + 2 + 12 * n_entries
    content[place : place + 4] = struct.pack("<I", directory)
    return bytes(content)


def _not_images() -> Iterator[tuple[str, bytes]]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/canary) (w) file closefile\nshowpage\n"
    yield "EPS", eps
    yield (
        "EPS behind a DOS header",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, len(eps), 0, 0, 0, 0) + b"\xff\xff" + eps,
    )
    yield "SVG that names a host", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x"/></svg>'
    yield "PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    yield "HTML", b"<!DOCTYPE html><script>alert(1)</script>"
    yield "zip", b"PK\x03\x04" + bytes(40)
    yield "pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    for magic in (
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"8BPS\0\1",
        b"\0\0\1\0\1\0",
        b"SIMPLE  =",
        b"FWS\x09",
        b"#define x_width 8\n",
    ):
        yield f"another format {magic[:6]!r}", magic + bytes(200)


def _polyglots() -> Iterator[tuple[str, bytes]]:
    sound = {name: _encoded(name) for name in _FORMATS}
    for first, head in sound.items():
        for second, tail in sound.items():
            if first != second:
                yield f"{first} then {second}", head + tail
        yield f"{first} then a script", head + b"<?php system('x'); ?>"
        yield f"{first} then a zip", head + b"PK\x03\x04" + bytes(100)
    yield "PNG magic and JPEG body", sound["PNG"][:8] + sound["JPEG"]


def _cut() -> Iterator[tuple[str, bytes]]:
    for name in _FORMATS:
        content = _encoded(name, size=(24, 16))
        step = 1 if FULL and len(content) < 3000 else max(1, len(content) // 25)
        for n_bytes in range(0, len(content), step):
            yield f"{name} cut at {n_bytes}", content[:n_bytes]


def _mutated() -> Iterator[tuple[str, bytes]]:
    chance = random.Random(0)
    sound = [
        _encoded(name, mode=mode)
        for name, mode in (*((name, "RGB") for name in _FORMATS), ("PNG", "P"), ("JPEG", "CMYK"))
    ]
    for number in range(_N_MUTATED):
        content = bytearray(chance.choice(sound))
        for _ in range(chance.choice((1, 2, 5, 30))):
            # Headers decide more than pixels do.
            content[chance.randrange(min(len(content), chance.choice((64, 400, 10**9))))] = chance.randrange(256)
        yield f"mutated {number}", bytes(content)


def _fate(content: bytes) -> str:
    try:
        size = oriented_size(io.BytesIO(content), "image")
        assert size[0] * size[1] <= MAX_IMAGE_PIXELS
    except UnreadableImageError:
        size = None
    try:
        image = decode_image(content, "image")
    except UnreadableImageError as error:
        return error.code
    assert image.mode == "RGB"
    assert image.size == size, "a header that cannot be read has no pixels"
    return "pixels"


def _status_bytes(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings of broken metadata go where the process sends them
@pytest.mark.parametrize(
    ("corpus", "least"),
    [(_bombs, 35), (_not_images, 10), (_polyglots, 55), (_cut, 150), (_mutated, _N_MUTATED)],
    ids=["bombs", "not images", "polyglots", "cut", "mutated"],
)
def test_every_image_ends_in_pixels_or_a_reason(corpus: Callable[[], Iterator[tuple[str, bytes]]], least: int) -> None:
    fates: Counter[str] = Counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    before = _status_bytes("VmRSS")
    for name, content in corpus():
        start = time.perf_counter()
        try:
            fate = _fate(content)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        assert time.perf_counter() - start < _MAX_SECONDS, name
        fates[fate] += 1
    assert _status_bytes("VmHWM") - before < _MAX_GROWTH_BYTES
    print(corpus.__name__, dict(fates))
    assert sum(fates.values()) >= least
    if corpus is _not_images:
        assert fates["not_an_image"] + fates["unsupported"] == sum(fates.values())
    if corpus is _cut:
        assert fates["truncated"] > sum(fates.values()) // 2
