"""What half precision does to tokens: their cosine to those of float32, by family.

Random weights of the family's smallest ViT in timm by default; with `VITRINE_BENCH=full` and `VITRINE_TEST_DATA` also
the demo weights on tiles of CamVid. Printed as a table in Markdown, which docs/running.md holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.ratio import FULL
from pipelines.backbones import Backbone, load_backbone, resolve_backbone
from pipelines.backbones.timm_vit import random_timm
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.meter import Meter
from pipelines.plan import views_of
from pipelines.prefetch import prepare_views

# (family, timm's name, input): learned, relative and rotary positions, layer scale, registers, gated perceptrons.
_FAMILIES = (
    ("MAE, DINO, iBOT, supervised (ViT)", "vit_tiny_patch16_224", 224),
    ("DeiT III (layer scale)", "deit3_small_patch16_224", 224),
    ("DINOv2 with registers", "vit_small_patch14_reg4_dinov2", 224),
    ("DINOv3 (rotary)", "vit_small_patch16_dinov3_qkvb", 256),
    ("SimMIM, BEiT (relative bias)", "beit_base_patch16_224", 224),
    ("EVA-02 (rotary, gated)", "eva02_tiny_patch14_224", 224),
    ("SigLIP (no class token)", "vit_base_patch16_siglip_224", 224),
)
_TINY = _FAMILIES[:1]
_VIEWS = 8


def test_half_precision_stays_near_float32() -> None:
    print("\n| family | compute | least cosine of a patch | mean |\n| --- | --- | --- | --- |")
    for title, exact, pixels in _cases():
        expected = _patches(exact, pixels)
        for dtype in ("bfloat16", "float16"):
            found = _patches(replace(exact, request=replace(exact.request, compute_dtype=dtype)), pixels)
            cosine = torch.cosine_similarity(found, expected, dim=-1)
            print(f"| {title} | {dtype} | {float(cosine.min()):.6f} | {float(cosine.mean()):.6f} |", flush=True)
            # Rounding to eight bits, some hundred times: anything below is a mistake and not a rounding.
            assert float(cosine.mean()) > 0.99


def _cases() -> Iterator[tuple[str, Backbone, np.ndarray]]:
    for title, architecture, side in _FAMILIES if FULL else _TINY:
        backbone = random_timm(architecture, image_size=(side, side))
        generator = torch.Generator().manual_seed(1)
        for parameter in backbone.module.parameters():
            # As timm begins, blocks and layer scales hardly add to what passes by them.
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        yield f"{title}: {architecture}, random weights", backbone, _noise(backbone)
    if FULL:
        demo = load_backbone(resolve_backbone("demo", fit="squash"))
        yield "demo weights, CamVid", demo, _tiles(demo)


def _noise(backbone: Backbone) -> np.ndarray:
    """Pictures of a few coarse colours."""
    height, width = backbone.preprocessing.image_size
    coarse = np.random.default_rng(0).integers(0, 256, (_VIEWS, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(
        coarse.repeat(-(-height // 8), axis=1).repeat(-(-width // 8), axis=2)[:, :height, :width]
    )


def _tiles(backbone: Backbone) -> np.ndarray:
    dataset = open_dataset(
        f"segmentation:{Path(os.environ['VITRINE_TEST_DATA']) / 'camvid'}",
        options=DatasetOptions(tile=120, limit_per_split=_VIEWS),
    )
    rows = views_of(dataset.table, 0, dataset.table.num_rows)[:: dataset.table.num_rows // (4 * _VIEWS)]
    views = prepare_views(dataset.root, rows, backbone.preprocessing, batch_size=_VIEWS, threads=1, meter=Meter())
    return np.stack([view.pixels for view in views if view.pixels is not None])


def _patches(backbone: Backbone, pixels: np.ndarray) -> torch.Tensor:
    return backbone.forward(pixels, [backbone.depth])[backbone.depth, "patches"].double()
