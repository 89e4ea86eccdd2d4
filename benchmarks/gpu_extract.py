"""Extraction on one GPU: the bare forward against the matrix peak, and JPEGs to committed shards against the forward.

Needs torch, torchvision, timm, Pillow, zarr, numcodecs, google-crc32c, fsspec, pyarrow and jaxtyping, and neither Beam
nor DuckDB. On a machine with a CUDA device, in the root of the repository:

    python -m benchmarks.gpu_extract --model vit_small_patch16_224 --model vit_base_patch16_224 \
        --model vit_large_patch16_224 --images 4096 --dtype bfloat16 --decode gpu

Prints, for each model: images/s of the forward on tensors in memory and its share of the fastest matrix product of the
dtype; images/s of the whole `extract_shard` from JPEGs on disk, and its ratio to the forward. With `--decode gpu` also
the same files read in threads, decoded by torchvision on the device, resized there, and run: images/s, and the cosine
of its tokens to those of the path that extraction takes. Weights are random: speed does not depend on them.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import center_crop, resize
from torchvision.transforms.v2 import InterpolationMode

from feature_store import open_store
from pipelines.backbones import Backbone, load_backbone, resolve_backbone
from pipelines.datasets import open_dataset
from pipelines.extract import extract_shard
from pipelines.meter import STAGES, Meter
from pipelines.plan import ExtractionSettings
from pipelines.run import Prepared, begin_extraction, prepare_extraction
from pipelines.throughput import Setting, measure


@dataclass(frozen=True, kw_only=True)
class GpuResult:
    """What one model gave.

    Attributes:
        forward: images/s of the bare forward.
        share_of_peak: of it, in the fastest matrix product.
        extraction: images/s of the whole `extract_shard`.
        decoded_there: images/s with JPEGs decoded and resized on the device; None where that was not asked for.
        least_cosine: of any patch token of that way to that of extraction.
        mean_cosine: of all of them.
    """

    forward: float
    share_of_peak: float
    extraction: float
    decoded_there: float | None = None
    least_cosine: float | None = None
    mean_cosine: float | None = None


def main(arguments: list[str]) -> list[GpuResult]:
    """Measure and print each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", action="append", help="a ViT of timm; repeatable")
    parser.add_argument("--images", type=int, default=4096, help="JPEGs of 256 x 256 pixels to write and extract")
    parser.add_argument("--dtype", default="bfloat16", help="of the forward pass")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--at-once", type=int, default=2, help="shards: one is written while another is computed")
    parser.add_argument("--decode", choices=("cpu", "gpu"), default="cpu", help="gpu: try that beside")
    parser.add_argument("--compile", action="store_true", help="time the bare forward compiled, too")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the bare forward")
    options = parser.parse_args(arguments)
    found = []
    with tempfile.TemporaryDirectory(prefix="vitrine-gpu-") as name:
        _write_images(Path(name) / "images", options.images)
        for model in options.model or ["vit_base_patch16_224"]:
            found.append(_measure(Path(name), model, options))
            _print(model, options, found[-1])
    return found


def _measure(folder: Path, model: str, options: argparse.Namespace) -> GpuResult:
    prepared = _prepare(folder, model, options)
    batch_size = prepared.plan.spec.batch_size
    kinds = [Setting(compute_dtype=options.dtype, threads=torch.get_num_threads(), compiled=c) for c in (False, True)]
    speeds = measure(
        # Not the one that extraction will use: compiling changes a backbone for good.
        lambda: load_backbone(prepared.plan.backbone),
        kinds[: 1 + options.compile],
        batch_size=batch_size,
        seconds=options.seconds / 3,
    )
    for speed in speeds[1:]:
        print(f"{model}, compiled: {speed.failed or f'{speed.images_per_s:.0f} images/s, {speed.share_of_peak:.0%}'}")
    begin_extraction(prepared)
    meter, start = Meter(), time.perf_counter()
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda shard: extract_shard(prepared.plan, shard, meter=meter), prepared.missing))
    extraction = options.images / (time.perf_counter() - start)
    print(f"{model}, stages: {', '.join(f'{stage} {meter.count.seconds[stage]:.1f} s' for stage in STAGES)}")
    there = _decoded_there(prepared, folder / "images", options) if options.decode == "gpu" else None
    return GpuResult(
        forward=speeds[0].images_per_s,
        share_of_peak=speeds[0].share_of_peak,
        extraction=extraction,
        decoded_there=None if there is None else there[0],
        least_cosine=None if there is None else there[1],
        mean_cosine=None if there is None else there[2],
    )


def _print(model: str, options: argparse.Namespace, found: GpuResult) -> None:
    line = (
        f"{model}, {options.dtype}, {options.device}: forward {found.forward:.0f} images/s, "
        f"{found.share_of_peak:.0%} of the matrix peak; extraction {found.extraction:.0f} images/s, ratio "
        f"{found.extraction / found.forward:.2f}"
    )
    if found.decoded_there is not None:
        line += (
            f"; decoded there {found.decoded_there:.0f} images/s, ratio {found.decoded_there / found.forward:.2f}, "
            f"cosine {found.least_cosine:.5f} at least, {found.mean_cosine:.6f} mean"
        )
    print(line)


def _write_images(folder: Path, n_images: int) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n_images):
        low = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(low).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.jpg")


def _prepare(folder: Path, model: str, options: argparse.Namespace) -> Prepared:
    torch.manual_seed(0)
    weights = folder / f"{model}.pth"
    torch.save(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), weights)
    request = resolve_backbone(model, weights=weights, compute_dtype=options.dtype, device=options.device)
    settings = ExtractionSettings(batch_size=options.batch_size)
    dataset = open_dataset(f"images:{folder / 'images'}")
    return prepare_extraction(dataset, request, settings, store=str(folder / "store"))


def _decoded_there(prepared: Prepared, images: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Images/s from files to tokens on the host, and the least and mean cosine to what extraction has stored."""
    backbone, batch_size = prepared.backbone, prepared.plan.spec.batch_size
    stored = open_store(prepared.plan.store).features(prepared.name)
    paths = [images / uri for uri in stored.column("uri")]
    found = torch.zeros((len(paths), stored.spec.n_patches, stored.spec.n_features), dtype=torch.float16)
    start, row = time.perf_counter(), 0
    for inputs in _inputs(backbone, paths, batch_size):
        tokens = backbone.tokens_of(inputs, [backbone.depth])[backbone.depth, "patches"]
        count = min(batch_size, len(paths) - row)
        found[row : row + count] = tokens[:count].half().cpu()
        row += count
    rate = len(paths) / (time.perf_counter() - start)
    cosines = [
        torch.cosine_similarity(found[rows].double(), torch.from_numpy(np.array(tokens)).double(), dim=-1)
        for rows, tokens in stored.iter_blocks("last", "patches")
    ]
    return rate, min(float(one.min()) for one in cosines), float(torch.cat(cosines).mean())


def _inputs(backbone: Backbone, paths: Sequence[Path], batch_size: int) -> Iterator[torch.Tensor]:
    """Normalised batches of one shape, their files read two batches ahead in threads."""
    preprocessing, device = backbone.preprocessing, torch.device(backbone.request.device)
    side = int(preprocessing.image_size[0] / preprocessing.crop_fraction)
    interpolation = InterpolationMode(preprocessing.interpolation)
    with ThreadPoolExecutor() as pool:
        starts = range(0, len(paths), batch_size)
        reads = [pool.map(_bytes_of, paths[start : start + batch_size]) for start in starts[:2]]
        for number, _ in enumerate(starts):
            data = list(reads[number])
            if number + 2 < len(starts):
                reads.append(pool.map(_bytes_of, paths[starts[number + 2] : starts[number + 2] + batch_size]))
            with warnings.catch_warnings():
                # torchcodec will take over one day; until then this is what torch's own wheels bring.
                warnings.simplefilter("ignore", DeprecationWarning)
                pictures = decode_jpeg(data, device=device)
            fitted = [center_crop(resize(one, [side], interpolation), preprocessing.image_size) for one in pictures]
            batch = torch.zeros((batch_size, 3, *preprocessing.image_size), dtype=torch.uint8, device=device)
            batch[: len(fitted)] = torch.stack(fitted)
            yield backbone.normalise(batch.permute(0, 2, 3, 1))


def _bytes_of(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


if __name__ == "__main__":
    main(sys.argv[1:])
