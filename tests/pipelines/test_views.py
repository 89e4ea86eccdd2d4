"""Image bytes to pixels, against Pillow's own arrays, NumPy, timm, and closed forms."""

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.transforms_factory import create_transform

from feature_store.errors import ManifestError
from pipelines.image_files import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, UnreadableImageError, read_image_bytes
from pipelines.image_formats import oriented_size
from pipelines.views import cut_view, decode_image, fit_view, resize_target, tile_box

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)
LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "WEBP")
LOSSY = ("JPEG", "AVIF")


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    if image_format == "WEBP":
        options = {"lossless": True, **options}
    image.save(file, format=image_format, **options)
    return file.getvalue()


def pixels_of(data: bytes) -> Array:
    image = decode_image(data, "image")
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *after: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand, for what Pillow cannot write."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def code_of(data: bytes) -> str:
    with pytest.raises(UnreadableImageError, match=r"'folder/x\.png': ") as caught:
        decode_image(data, "folder/x.png")
    assert caught.value.uri == "folder/x.png"
    return caught.value.code


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    assert np.array_equal(pixels_of(encoded(Image.fromarray(COLOURS), image_format)), COLOURS)


@pytest.mark.parametrize("image_format", LOSSY)
def test_lossy_pixels_are_those_of_pillow(image_format: str) -> None:
    data = encoded(Image.fromarray(COLOURS), image_format)
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_gray_is_repeated_over_the_channels() -> None:
    gray = COLOURS[..., 0]
    assert np.array_equal(pixels_of(encoded(Image.fromarray(gray))), np.repeat(gray[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white() -> None:
    bits = COLOURS[..., 0] > 128
    assert np.array_equal(pixels_of(encoded(Image.fromarray(bits)))[..., 0], bits * np.uint8(255))


def test_palette_becomes_its_colours() -> None:
    palette = RANDOM.integers(0, 256, (8, 3), dtype=np.uint8)
    indices = RANDOM.integers(0, 8, (9, 11), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert np.array_equal(pixels_of(encoded(image)), palette[indices])
    assert np.array_equal(pixels_of(encoded(image, "GIF")), palette[indices])


def test_cmyk_loses_ink_channel_by_channel() -> None:
    inks = RANDOM.integers(0, 256, (10, 12, 4), dtype=np.uint8)
    # Light that the black ink lets through, less the share that the coloured ink takes.
    light = 255 - inks[..., 3:].astype(np.int64)
    expected = light - (inks[..., :3] * light + 127) // 255
    assert np.abs(pixels_of(encoded(Image.fromarray(inks, "CMYK"), "TIFF")) - expected).max() <= 1


def test_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    # Pillow, as Adobe, stores the inks of a JPEG inverted: pure cyan ink must come back as cyan light.
    data = encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(pixels_of(data).astype(int) - [0, 255, 255]).max() <= 3


def test_ycbcr_tiff_becomes_rgb() -> None:
    flat = np.full((16, 16, 3), (200, 80, 40), np.uint8)
    data = encoded(Image.fromarray(flat).convert("YCbCr"), "TIFF", compression="jpeg")
    assert np.abs(pixels_of(data).astype(int) - flat).max() <= 3


# --- alpha -----------------------------------------------------------------------------------------------------------


def over_white(colour: Array, alpha: Array) -> Array:
    exact = colour.astype(np.int64) * alpha + 255 * (255 - alpha.astype(np.int64))
    return (exact + 127) // 255


def test_rgba_is_laid_over_white() -> None:
    alpha = RANDOM.integers(0, 256, (24, 40, 1), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))
    assert np.array_equal(pixels_of(encoded(image)), over_white(COLOURS, alpha))


def test_gray_with_alpha_is_laid_over_white() -> None:
    pair = RANDOM.integers(0, 256, (9, 14, 2), dtype=np.uint8)
    expected = over_white(pair[..., :1], pair[..., 1:])
    assert np.array_equal(pixels_of(encoded(Image.fromarray(pair))), np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize(
    ("image_format", "transparency"), [("PNG", 1), ("GIF", 1), ("PNG", bytes([255, 0, 255]))], ids=str
)
def test_transparent_palette_entry_becomes_white(image_format: str, transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    data = encoded(image, image_format, transparency=transparency)
    assert pixels_of(data).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7), ("I;16", 700)])
def test_transparent_colour_becomes_white(mode: str, key: Any) -> None:
    image = Image.new(mode, (2, 1), key)
    assert pixels_of(encoded(image, transparency=key)).tolist() == [[[255] * 3] * 2]


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_divided_by_257_and_rounded(image_format: str) -> None:
    # 257 * 8-bit value is its exact 16-bit twin; 128 and 129 lie on the two sides of one half of 257.
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 1, 2, 254, 255, 255]
    assert pixels_of(encoded(Image.fromarray(values), image_format))[0, :, 0].tolist() == expected


def test_every_eight_bit_value_survives_sixteen_bits() -> None:
    values = np.arange(256, dtype=np.uint16)[None] * 257
    assert pixels_of(encoded(Image.fromarray(values)))[0, :, 0].tolist() == list(range(256))


def test_sixteen_bit_pgm_is_scaled() -> None:
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257 * 9)
    assert pixels_of(data)[0, :, 0].tolist() == [255, 9]


def test_sixteen_bit_rgb_keeps_the_high_byte() -> None:
    row = b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF)
    assert pixels_of(png(1, 1, 16, 2, row)).tolist() == [[[0x12, 0x80, 0xFF]]]


@pytest.mark.parametrize("values", [np.array([[0.5]], np.float32), np.array([[1 << 20]], np.int32)])
def test_values_without_a_stated_range_are_unsupported(values: Array) -> None:
    assert code_of(encoded(Image.fromarray(values), "TIFF")) == "unsupported"


# --- orientation and frames ------------------------------------------------------------------------------------------

# What a viewer does to the stored array, from the EXIF standard's table of rows and columns.
AS_SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_exif_orientation_is_applied(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOURS), image_format, exif=exif)
    plain = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), image_format))).convert("RGB"))
    expected = AS_SHOWN[orientation](plain)
    assert np.array_equal(pixels_of(data), expected)
    assert oriented_size(io.BytesIO(data), "image") == (expected.shape[1], expected.shape[0])


def test_orientation_after_the_pixels_of_a_png_is_found() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = b"".join(b"\0" + row.tobytes() for row in COLOURS)
    data = png(40, 24, 8, 2, rows, (b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(pixels_of(data), AS_SHOWN[6](COLOURS))
    assert oriented_size(io.BytesIO(data), "image") == (24, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_costs_no_pixels(exif: bytes) -> None:
    data = encoded(Image.fromarray(COLOURS), "JPEG", exif=exif)
    assert pixels_of(data).shape == COLOURS.shape


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_is_taken(image_format: str) -> None:
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    data = encoded(first, image_format, save_all=True, append_images=[second])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert np.array_equal(pixels_of(data), np.asarray(first))


# --- fates -----------------------------------------------------------------------------------------------------------


def test_empty_bytes_are_empty() -> None:
    assert code_of(b"") == "empty"


@pytest.mark.parametrize("data", [b"<html>404</html>", b"%PDF-1.7", b"\0" * 64, b"RIFF\0\0\0\0AVI LIST"])
def test_other_files_are_not_an_image(data: bytes) -> None:
    assert code_of(data) == "not_an_image"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_cut_file_is_truncated(image_format: str, kept: float) -> None:
    data = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), image_format)
    assert code_of(data[: int(len(data) * kept)]) in (
        {"truncated", "corrupt"} if image_format == "TIFF" else {"truncated"}
    )


WHOLE_FILES = {name: encoded(Image.fromarray(COLOURS), name) for name in (*LOSSLESS, *LOSSY, "GIF")}


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(WHOLE_FILES)), st.data())
def test_any_prefix_gives_all_pixels_or_a_reason(image_format: str, data: st.DataObject) -> None:
    whole = WHOLE_FILES[image_format]
    prefix = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        pixels = pixels_of(prefix)
    except UnreadableImageError as error:
        assert error.code in ("empty", "truncated", "corrupt", "not_an_image")  # noqa: PT017
    else:
        assert np.array_equal(pixels, pixels_of(whole))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(WHOLE_FILES)), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4))
def test_changed_bytes_never_raise_anything_else(image_format: str, place: int, change: bytes) -> None:
    data = bytearray(WHOLE_FILES[image_format])
    place %= len(data)
    data[place : place + len(change)] = change
    try:
        pixels = decode_image(bytes(data), "image")
    except UnreadableImageError:
        return
    assert pixels.mode == "RGB"


def test_wrong_checksum_is_corrupt() -> None:
    data = bytearray(encoded(Image.fromarray(COLOURS)))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert code_of(bytes(data)) == "corrupt"


def test_pixels_are_bounded_from_the_header() -> None:
    side = int(MAX_IMAGE_PIXELS**0.5) + 1
    # A PNG of a hundred bytes that claims more than a hundred million pixels; nothing is decoded, so none are needed.
    assert code_of(png(side, side, 8, 2, b"")) == "too_large"
    assert code_of(b"P6 100001 1000 255\n") == "too_large"


def enlarged(image_format: str) -> bytes:
    """A small file whose header is changed to claim billions of pixels."""
    data = bytearray(WHOLE_FILES[image_format])
    if image_format == "JPEG":
        data[(start := data.index(b"\xff\xc0") + 5) : start + 4] = struct.pack(">HH", 65500, 65500)
    elif image_format == "GIF":
        data[6:10] = struct.pack("<HH", 65500, 65500)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<ii", 65500, 65500)
    elif image_format == "WEBP":
        # Lossless: after the chunk's name, size and one signature byte come 14 bits each of width - 1 and height - 1.
        data[(start := data.index(b"VP8L") + 9) : start + 4] = struct.pack("<I", (16382 << 14) | 16382)
    else:
        for tag in (256, 257):
            data[(start := data.index(struct.pack("<HHI", tag, 4, 1)) + 8) : start + 4] = struct.pack("<I", 65500)
    return bytes(data)


@pytest.mark.parametrize("image_format", ["JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_every_format_is_bounded_before_it_is_decoded(image_format: str) -> None:
    assert code_of(enlarged(image_format)) == "too_large"


def test_size_between_the_limits_of_pillow_and_here_passes_without_a_warning() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 9500 * 10_000 < MAX_IMAGE_PIXELS
    assert oriented_size(io.BytesIO(png(9500, 10_000, 1, 0, b"")), "image") == (9500, 10_000)


def test_decoding_in_threads_gives_the_same_pixels() -> None:
    files = [encoded(Image.fromarray(np.roll(COLOURS, shift, axis=1)), name) for shift in range(8) for name in LOSSLESS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels_of, files * 4))
    alone = [pixels_of(data) for data in files] * 4
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))


# --- files -----------------------------------------------------------------------------------------------------------


def fate_of(root: Path, uri: str) -> str:
    with pytest.raises(UnreadableImageError, match=": ") as caught:
        read_image_bytes(root, uri)
    return caught.value.code


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"content")
    assert read_image_bytes(tmp_path, "a/x.png") == b"content"


@pytest.mark.parametrize("uri", ["no.png", "no/x.png", "file/x.png", "nul\0.png", "x" * 300])
def test_absent_file_is_missing(tmp_path: Path, uri: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert fate_of(tmp_path, uri) == "missing"


def test_loop_of_links_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert fate_of(tmp_path, "a.png") == "missing"


@pytest.mark.parametrize("uri", ["link.png", "folder/secret.png", "../secret.png"])
def test_path_out_of_the_root_is_not_read(tmp_path: Path, uri: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    assert fate_of(root, uri) == "outside_root"


def test_link_inside_the_root_is_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "x.png").write_bytes(b"content")
    (tmp_path / "root" / "link.png").symlink_to("x.png")
    (tmp_path / "alias").symlink_to("root")
    assert read_image_bytes(tmp_path / "alias", "link.png") == b"content"


def test_folders_and_pipes_are_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert fate_of(tmp_path, "folder.png") == "not_an_image"
    assert fate_of(tmp_path, "pipe.png") == "not_an_image"


def test_oversized_file_is_too_large_and_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    assert fate_of(tmp_path, "x.png") == "too_large"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails with EIO")
def test_failing_disk_is_raised_and_not_made_a_fate() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        read_image_bytes(Path("/proc/self"), "mem")


# --- views -----------------------------------------------------------------------------------------------------------


def test_tile_is_a_slice_of_the_image() -> None:
    tile = {"x": 7, "y": 3, "width": 20, "height": 11}
    assert np.array_equal(np.asarray(cut_view(Image.fromarray(COLOURS), tile)), COLOURS[3:14, 7:27])


def test_tile_that_leaves_the_image_is_black_outside() -> None:
    view = np.asarray(cut_view(Image.fromarray(COLOURS), {"x": 30, "y": 20, "width": 16, "height": 8}))
    expected = np.zeros((8, 16, 3), np.uint8)
    expected[:4, :10] = COLOURS[20:, 30:]
    assert np.array_equal(view, expected)


@pytest.mark.parametrize(("x", "y"), [(-16, 0), (40, 0), (0, -8), (0, 24), (1 << 30, 1 << 30)])
def test_tile_without_a_pixel_of_the_image_is_no_view(x: int, y: int) -> None:
    image = Image.fromarray(COLOURS)
    assert image.size == (40, 24)
    with pytest.raises(UnreadableImageError, match="outside_image"):
        cut_view(image, {"x": x, "y": y, "width": 16, "height": 8})


@pytest.mark.parametrize(("x", "y"), [(-15, -7), (39, -7), (-15, 23), (39, 23)])
def test_tile_with_one_pixel_of_the_image_is_a_view(x: int, y: int) -> None:
    image = Image.fromarray(np.full((24, 40, 3), 255, np.uint8))
    view = cut_view(image, {"x": x, "y": y, "width": 16, "height": 8})
    assert np.count_nonzero(np.asarray(view)) == 3


def test_transform_comes_before_the_tile() -> None:
    transform = {"name": "resize", "parameters": '{"height":30,"width":60}'}
    resized = Image.fromarray(COLOURS).resize((60, 30), Image.Resampling.BICUBIC)
    view = cut_view(Image.fromarray(COLOURS), {"x": 30, "y": 0, "width": 30, "height": 30}, transform)
    assert np.array_equal(np.asarray(view), np.asarray(resized)[:, 30:])


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("swirl", "{}", "transform 'swirl' is not known"),
        ("resize", "{}", "needs {'width', 'height'}"),
        ("resize", "[" * 100_000, "needs {'width', 'height'}"),
        ("resize", "null", "needs {'width', 'height'}"),
        ("resize", '{"width": 1.5, "height": 2}', "both must be whole"),
        ("resize", '{"width": true, "height": 2}', "both must be whole"),
        ("resize", '{"width": 100000, "height": 100000}', "at most 100000000 pixels"),
    ],
)
def test_impossible_transforms_are_refused(name: str, parameters: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        resize_target({"name": name, "parameters": parameters})


@pytest.mark.parametrize("side", [0, -4, 1 << 20])
def test_impossible_tiles_are_refused(side: int) -> None:
    with pytest.raises(ManifestError, match="must be positive and cover at most"):
        tile_box({"x": 0, "y": 0, "width": side, "height": side})


@pytest.mark.parametrize("size", [(120, 120), (480, 360), (37, 301)])
def test_squash_is_the_resize_of_pillow(size: tuple[int, int]) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    assert np.array_equal(fit_view(image, size=(224, 224), fit="squash", interpolation="bicubic"), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.9, 0.95])
@pytest.mark.parametrize("size", [(300, 200), (201, 333), (64, 64), (225, 1000)])
@pytest.mark.parametrize("target", [(96, 96), (96, 48), (32, 112)])
def test_crop_is_the_evaluation_transform_of_timm(
    size: tuple[int, int], target: tuple[int, int], crop_fraction: float, interpolation: str
) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    transform = create_transform(
        (3, *target), is_training=False, interpolation=interpolation, crop_pct=crop_fraction, normalize=False
    )
    expected = np.asarray(transform(image)).transpose(1, 2, 0)
    fitted = fit_view(image, size=target, fit="crop", crop_fraction=crop_fraction, interpolation=interpolation)
    assert fitted.dtype == np.uint8
    assert np.array_equal(fitted, expected)


def test_long_thin_view_is_not_blown_up() -> None:
    with pytest.raises(UnreadableImageError, match="too_large"):
        fit_view(Image.new("RGB", (1_000_000, 1)), size=(224, 112), fit="crop")


@pytest.mark.parametrize(
    "settings_", [{"size": (8, 0)}, {"crop_fraction": 0.0}, {"crop_fraction": 1.1}, {"interpolation": "__class__"}]
)
def test_impossible_fits_are_refused(settings_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use a positive size"):
        fit_view(Image.new("RGB", (4, 4)), **{"size": (8, 8), **settings_})
