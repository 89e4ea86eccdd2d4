"""Formats by their first bytes, and TIFF as remote sensing writes it: against tifffile's arrays and closed forms."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipelines.image_files import UnreadableImageError
from pipelines.views import decode_image

RANDOM = np.random.default_rng(0)


def tiff(values: np.ndarray[Any, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def code_of(data: bytes) -> tuple[str, str]:
    with pytest.raises(UnreadableImageError, match="x") as caught:
        decode_image(data, "x")
    return caught.value.code, caught.value.detail


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_bands_are_red_green_and_blue(
    byte_order: Any, compression: Any, planes: str, photometric: str, dtype: Any
) -> None:
    values = RANDOM.integers(0, np.iinfo(dtype).max, (20, 30, 3), dtype=dtype)
    stored = values if planes == "contig" else np.ascontiguousarray(np.moveaxis(values, 2, 0))
    data = tiff(stored, photometric=photometric, planarconfig=planes, compression=compression, byteorder=byte_order)
    expected = values if dtype is np.uint8 else (values >> 8).astype(np.uint8)
    assert np.array_equal(np.asarray(decode_image(data, "x")), expected)


@pytest.mark.parametrize(
    ("n_bands", "dtype", "said"),
    [
        (8, np.uint8, "8 bands of 8 bits, unsigned"),
        (8, np.uint16, "8 bands of 16 bits, unsigned"),
        (4, np.uint16, "4 bands of 16 bits, unsigned"),
        (2, np.uint8, "2 bands of 8 bits, unsigned"),
        (3, np.float32, "3 bands of 32 bits, float"),
        (3, np.int16, "3 bands of 16 bits, signed"),
    ],
)
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_bands_that_are_no_picture_have_a_reason_of_their_own(
    n_bands: int, dtype: Any, said: str, planes: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = (20, 30, n_bands) if planes == "contig" else (n_bands, 20, 30)
    code, detail = code_of(tiff(np.zeros(shape, dtype), photometric="minisblack", planarconfig=planes))
    assert code == "unsupported_bands"
    assert said in detail
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + bytes(99), "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
        (b"8BPS\0\1" + bytes(99), "Photoshop"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_not_called_corrupt(data: bytes, name: str) -> None:
    code, detail = code_of(data)
    assert code == "unsupported"
    assert f"a {name} file; read are JPEG, PNG, WEBP, AVIF," in detail


def test_avif_is_told_from_heic_by_any_of_its_brands() -> None:
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(file, "AVIF")
    data = bytearray(file.getvalue())
    assert decode_image(bytes(data), "x").size == (40, 24)
    data[8:12] = b"mif1"
    assert decode_image(bytes(data), "x").size == (40, 24)


def test_signed_values_are_unsupported_with_their_range() -> None:
    code, detail = code_of(tiff(np.full((4, 4), -5, np.int16)))
    assert (code, detail) == ("unsupported", "values from -5 to -5; save it as 8-bit RGB")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libtiff is found through /proc")
def test_decoders_write_no_line_of_their_own_to_the_terminal(tmp_path: Path) -> None:
    data = bytearray(tiff(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8), compression="deflate"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "damaged.tif").write_bytes(bytes(data))
    bands = tiff(np.zeros((9, 9, 8), np.uint8), photometric="minisblack", planarconfig="contig")
    (tmp_path / "bands.tif").write_bytes(bands)
    (tmp_path / "tags.jpg").write_bytes(_with_broken_exif())
    # A process of its own: libtiff writes from C, and its handlers are the process's.
    program = (
        "import sys; from pathlib import Path; from pipelines.image_files import UnreadableImageError\n"
        "from pipelines.views import decode_image\n"
        "for name in sys.argv[1:]:\n"
        "    try: decode_image(Path(name).read_bytes(), name)\n"
        "    except UnreadableImageError as error: print(error.code)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONWARNINGS": "default"},
    )
    assert ran.stdout.split() == ["unsupported_bands", "corrupt"]
    assert ran.stderr == ""


def _with_broken_exif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    return file.getvalue()
