"""Images beyond the default limit of pixels: read on request, one at a time, and cut into tiles from one decoding."""

import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import prefetch
from pipelines.backbones.preprocessing import Preprocessing
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.image_files import MAX_IMAGE_BYTES, ReadingRules
from pipelines.meter import Meter
from pipelines.views import decode_image
from tests.pipelines.test_views import png

PLAIN = Preprocessing(
    image_size=(8, 8),
    fit="squash",
    crop_fraction=1.0,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    position_embedding="timm",
)


def prepared(root: Path, rules: ReadingRules, *, tile: int, **options: Any) -> Any:
    dataset = open_dataset(f"images:{root}", options=DatasetOptions(max_pixels=rules.max_pixels, tile=tile))
    return prefetch.prepare_views(
        root, dataset.table.to_pylist(), PLAIN, meter=Meter(), rules=rules, **{"batch_size": 2, "threads": 3, **options}
    )


def test_a_picture_of_120_megapixels_is_measured_and_cut_on_request(tmp_path: Path) -> None:
    width, height = 12_288, 10_240
    # One bit a pixel: 15 MB when unpacked, and a few kilobytes on the disk.
    (tmp_path / "x.png").write_bytes(png(width, height, 1, 0, bytes((width // 8 + 1) * height)))
    refused = open_dataset(f"images:{tmp_path}", options=DatasetOptions(tile=512))
    assert refused.table.num_rows == 1
    assert "at most 100000000 pixels are read, see --max-pixels" in refused.findings[0].detail
    read = open_dataset(f"images:{tmp_path}", options=DatasetOptions(tile=512, max_pixels=width * height))
    assert read.table.num_rows == (width // 512) * (height // 512)
    assert read.findings == ()


def test_large_images_are_held_one_at_a_time_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_IMAGE_PIXELS", 100)
    expected = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        expected += [pixels[y : y + 8, x : x + 8] for x in (0, 8, 16) for y in (0, 8)]
    held, most, decoded = set(), [0], []
    lock = threading.Lock()
    decode = decode_image

    class Held:
        """Counts the images that are alive."""

        def __init__(self, key: int) -> None:
            self.key = key

        def __del__(self) -> None:
            with lock:
                held.discard(self.key)

    def counted(data: bytes, uri: str, max_pixels: int) -> Image.Image:
        image = decode(data, uri, max_pixels)
        with lock:
            key = zlib.crc32(data)
            decoded.append(key)
            held.add(key)
            most[0] = max(most[0], len(held))
        image.info["held"] = Held(key)
        return image

    monkeypatch.setattr(prefetch, "decode_image", counted)
    views = [view.pixels for view in prepared(tmp_path, ReadingRules(max_pixels=101 * 1000), tile=8)]
    assert np.array_equal(np.stack(views), np.stack(expected))
    assert (most[0], len(decoded)) == (1, 6)


def test_a_failure_while_a_large_image_waits_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_IMAGE_PIXELS", 100)
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no view")

    monkeypatch.setattr(prefetch, "cut_view", failing)
    with pytest.raises(RuntimeError, match="no view"):
        list(prepared(tmp_path, ReadingRules(max_pixels=1000), tile=8))


def test_bytes_are_bounded_by_the_limit_of_pixels() -> None:
    assert ReadingRules(max_pixels=1000).max_bytes == MAX_IMAGE_BYTES
    assert ReadingRules(max_pixels=400_000_000).max_bytes == 3_200_000_000


def test_the_limit_holds_when_pixels_are_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    assert decode_image(data, "x", 200).size == (20, 10)
    (view,) = prefetch.prepare_views(
        tmp_path,
        open_dataset(f"images:{tmp_path}").table.to_pylist(),
        PLAIN,
        batch_size=1,
        threads=1,
        meter=Meter(),
        rules=ReadingRules(max_pixels=199),
    )
    assert view.reason == "too_large"
