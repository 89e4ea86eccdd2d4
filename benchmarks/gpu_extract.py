"""Extraction on one GPU: JPEGs from disk to committed shards, against the bare forward on tensors in memory.

Needs torch, timm, Pillow, zarr, numcodecs, google-crc32c, fsspec, pyarrow and jaxtyping, and neither Beam nor DuckDB.
On a machine with a CUDA device, in the root of the repository:

    python -m benchmarks.gpu_extract --model vit_base_patch16_224 --images 4096 --dtype bfloat16

Prints images/s of both, and their ratio. Weights are random, from a fixed seed: speed does not depend on them.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from pipelines.backbones import resolve_backbone
from pipelines.datasets import open_dataset
from pipelines.extract import extract_shard
from pipelines.meter import STAGES, Meter
from pipelines.plan import ExtractionSettings
from pipelines.run import Prepared, prepare_extraction


def main(arguments: list[str]) -> float:
    """Measure, print, and give the ratio of extraction to the bare forward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm")
    parser.add_argument("--images", type=int, default=4096, help="JPEGs of 256 x 256 pixels to write and extract")
    parser.add_argument("--dtype", default="bfloat16", help="of the forward pass")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--at-once", type=int, default=2, help="shards: one is written while another is computed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vitrine-gpu-") as name:
        folder = Path(name)
        prepared = _prepare(folder, options)
        forward = _forward_rate(prepared)
        meter = Meter()
        start = time.perf_counter()
        with ThreadPoolExecutor(options.at_once) as pool:
            list(pool.map(lambda shard: extract_shard(prepared.plan, shard, meter=meter), prepared.missing))
        extraction = options.images / (time.perf_counter() - start)
    split = ", ".join(f"{stage} {meter.count.seconds[stage]:.1f} s" for stage in STAGES)
    print(
        f"{options.model}, {options.dtype}, {options.device}: forward {forward:.0f} images/s, extraction "
        f"{extraction:.0f} images/s, ratio {extraction / forward:.2f} ({split})"
    )
    return float(extraction / forward)


def _prepare(folder: Path, options: argparse.Namespace) -> Prepared:
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(options.images):
        low = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(low).resize((256, 256), Image.Resampling.BICUBIC).save(folder / "images" / f"{index:06d}.jpg")
    torch.manual_seed(0)
    weights = folder / "random.pth"
    torch.save(timm.create_model(options.model, pretrained=False, num_classes=0).state_dict(), weights)
    request = resolve_backbone(options.model, weights=weights, compute_dtype=options.dtype, device=options.device)
    settings = ExtractionSettings(batch_size=options.batch_size)
    return prepare_extraction(
        open_dataset(f"images:{folder / 'images'}"), request, settings, store=str(folder / "store")
    )


def _forward_rate(prepared: Prepared, *, seconds: float = 3.0) -> float:
    """Images/s of the model on one normalised batch that stays on the device."""
    backbone, spec = prepared.backbone, prepared.plan.spec
    batch = torch.randn((spec.batch_size, 3, *backbone.preprocessing.image_size), device=backbone.request.device)

    def run(n_batches: int) -> float:
        start = time.perf_counter()
        for _ in range(n_batches):
            backbone.tokens_of(batch, spec.identity.layers)
        if batch.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(3)
    n_batches = max(3, round(seconds / (run(3) / 3)))
    return float(n_batches * spec.batch_size / run(n_batches))


if __name__ == "__main__":
    main(sys.argv[1:])
