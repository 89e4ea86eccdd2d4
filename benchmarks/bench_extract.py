"""Extraction, from image files to receipts, against the bare forward loop on pixels that are in memory already.

Both in one process, by turns, with the same batches, dtype and threads. `VITRINE_BENCH=full` takes CamVid in tiles and
the demo weights, and needs `VITRINE_TEST_DATA`; else a few random pictures and a random backbone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from benchmarks.ratio import FULL, compare
from feature_store import Receipt
from pipelines.backbones import BackboneRequest, resolve_backbone
from pipelines.datasets import Dataset, DatasetOptions, open_dataset
from pipelines.extract import extract_shard
from pipelines.meter import STAGES, Meter
from pipelines.plan import ExtractionSettings, views_of
from pipelines.prefetch import prepare_views
from pipelines.run import Prepared, begin_extraction, prepare_extraction

# A warm-up and three rounds, each into a store of its own.
_STORES = 4
_IMAGES_PER_SPLIT = 24


@pytest.fixture
def case(tmp_path: Path) -> tuple[Dataset, BackboneRequest]:
    """What to extract, and with what."""
    if FULL:
        camvid = Path(os.environ["VITRINE_TEST_DATA"]) / "camvid"
        options = DatasetOptions(tile=120, limit_per_split=_IMAGES_PER_SPLIT)
        return open_dataset(f"segmentation:{camvid}", options=options), resolve_backbone("demo", fit="squash")
    folder = tmp_path / "pictures" / "all"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    return open_dataset(f"images:{folder.parent}"), resolve_backbone("test_vit", weights=weights, image_size=64)


def test_extraction(case: tuple[Dataset, BackboneRequest], tmp_path: Path) -> None:
    dataset, request = case
    stores = iter([_prepare(dataset, request, tmp_path / f"store-{index}") for index in range(_STORES)])
    batches = list(_batches(dataset, _prepare(dataset, request, tmp_path / "bare")))
    prepared = _prepare(dataset, request, tmp_path / "bare")
    torch.set_num_threads(prepared.plan.threads)
    layers = prepared.plan.spec.identity.layers
    meter = Meter()

    def bare() -> int:
        return sum(len(prepared.backbone.tokens_of(batch, layers)[layers[-1], "patches"]) for batch in batches)

    def extract() -> list[Receipt]:
        fresh = next(stores)
        return [extract_shard(fresh.plan, shard, meter=meter) for shard in fresh.missing]

    found = compare("extraction, bare forward", peer=bare, ours=extract)
    rows = dataset.table.num_rows
    split = ", ".join(f"{name} {meter.count.seconds[name]:.2f} s" for name in STAGES)
    print(f"{rows / found.ours_s:.1f} images/s against {rows / found.peer_s:.1f}; all rounds: {split}")
    assert sum(receipt.stop - receipt.start for receipt in found.ours) == rows <= found.peer


def _prepare(dataset: Dataset, request: BackboneRequest, store: Path) -> Prepared:
    prepared = prepare_extraction(dataset, request, ExtractionSettings(), store=str(store))
    begin_extraction(prepared)
    return prepared


def _batches(dataset: Dataset, prepared: Prepared) -> Iterator[torch.Tensor]:
    """The batches that extraction forms of a shard after another, normalised."""
    spec, backbone = prepared.plan.spec, prepared.backbone
    for shard in prepared.missing:
        views = prepare_views(
            dataset.root,
            views_of(dataset.table, shard.start, shard.stop),
            backbone.preprocessing,
            batch_size=spec.batch_size,
            threads=prepared.plan.threads,
            meter=Meter(),
        )
        pixels = np.stack([view.pixels for view in views if view.pixels is not None])
        for start in range(0, len(pixels), spec.batch_size):
            batch = np.zeros((spec.batch_size, *pixels.shape[1:]), dtype=np.uint8)
            part = pixels[start : start + spec.batch_size]
            batch[: len(part)] = part
            yield backbone.normalise(torch.from_numpy(batch)).contiguous()
