"""Seven nights of a folder that grows: what they take on the disk, with rows that stay and in uri order.

Run with `VITRINE_BENCH=full` for 1,000 pictures and 50 more each night; otherwise a few go through the same lines. The
null model is used, so bytes and counts are those of a real model and times are not.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.backbones import resolve_backbone
from pipelines.datasets import open_dataset
from pipelines.plan import ExtractionSettings
from pipelines.run import prepare_extraction, run_extraction
from tests.pipelines.nights import here

FULL = os.environ.get("VITRINE_BENCH") == "full"
AT_FIRST, A_NIGHT = (1000, 50) if FULL else (40, 3)
NIGHTS = 7


def draw(folder: Path, numbers: range) -> None:
    """Pictures of noise under random names, so that new ones stand between old ones."""
    for number in numbers:
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{random.integers(1 << 40):010x}-{number}.png")


def disk_bytes(store: Path) -> tuple[int, int]:
    """Of all files: the sum of their sizes, and of the blocks that they take, a file of several names counted once."""
    found = [place.stat() for place in store.rglob("*") if place.is_file()]
    blocks = {status.st_ino: status.st_blocks * 512 for status in found}
    return sum(status.st_size for status in found), sum(blocks.values())


@pytest.mark.parametrize("order", ["uri", "grown"])
def test_seven_nights(tmp_path: Path, order: str, capsys: pytest.CaptureFixture[str]) -> None:
    images, store = tmp_path / "images", tmp_path / "store"
    images.mkdir()
    draw(images, range(AT_FIRST))
    request = resolve_backbone("null", image_size=224)
    lines = []
    before = 0
    for night in range(NIGHTS):
        if night:
            draw(images, range(AT_FIRST + (night - 1) * A_NIGHT, AT_FIRST + night * A_NIGHT))
        start = time.process_time()
        settings = ExtractionSettings(order=order)
        outcome = run_extraction(
            prepare_extraction(open_dataset(f"images:{images}"), request, settings, store=str(store)), here
        )
        cpu_s = time.process_time() - start
        apparent, real = disk_bytes(store)
        lines.append(
            f"{order:>5} night {night}: {outcome.rows} rows, {outcome.reused} reused, {apparent / 1e6:.1f} MB by name, "
            f"{real / 1e6:.1f} MB on the disk (+{(real - before) / 1e6:.1f}), {cpu_s:.1f} s of CPU"
        )
        before = real
        if night:
            assert outcome.reused == outcome.rows - A_NIGHT
    with capsys.disabled():
        print("", *lines, sep="\n")
