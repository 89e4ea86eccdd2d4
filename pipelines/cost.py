"""What a run will cost, said before it starts: rows, bytes, memory, and time from one timed batch."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_store.arrays import row_bytes
from feature_store.space import free_bytes, require_free
from pipelines.memory import estimated_worker_bytes, shard_bytes
from pipelines.meter import Meter
from pipelines.plan import views_of
from pipelines.prefetch import prepare_views
from pipelines.run import Prepared


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run will cost, said before it starts.

    Attributes:
        rows: still to compute.
        reused: rows still to take from other feature sets.
        linked: of these, and of rows that are invalid there too, how many are in whole shards that need not be written.
        shards: still to commit.
        stored_bytes: rows computed and copied will take; those of linked shards take nothing.
        free_bytes: on the store's disk, or None where that cannot be asked.
        worker_bytes: the most memory that one worker holds at once: measured while the model was loaded and a batch
            run, and the arrays of a shard, where `calibrated`; else estimated.
        seconds: of decoding and of the forward passes, from one timed batch; the start of the workers comes on top.
            None where no batch was timed.
        calibrated: whether the model was loaded and a batch run.
    """

    rows: int
    shards: int
    stored_bytes: int
    free_bytes: int | None
    worker_bytes: int
    seconds: float | None
    calibrated: bool = True
    reused: int = 0
    linked: int = 0


def estimate_cost(prepared: Prepared, *, workers: int = 1, calibrate: bool = True) -> Cost:
    """What the missing shards will cost; writes nothing.

    Args:
        prepared: the planned extraction.
        workers: processes that share the work.
        calibrate: load the model and run a batch to measure memory and time. Without, the weights stay on the disk.
    """
    plan = prepared.plan
    rows = sum(shard.n_rows for shard in prepared.missing)
    # A batch has one shape whatever it holds, so a shard with one new row costs as much as one with a batch of them.
    n_batches = sum(-(-count // plan.spec.batch_size) for count in prepared.computed)
    seconds = 0.0 if not n_batches else None
    _forget_peak()
    if calibrate and n_batches:
        seconds = _seconds_per_batch(prepared) * n_batches / workers
    # After the batch, since most of it is the model's.
    measured_bytes = _peak_bytes() + shard_bytes(plan)
    return Cost(
        rows=sum(prepared.computed),
        reused=rows - sum(prepared.computed) - sum(prepared.removed),
        linked=sum(prepared.linked),
        shards=len(prepared.missing),
        stored_bytes=(rows - sum(prepared.linked)) * row_bytes(plan.spec),
        free_bytes=free_bytes(prepared.root),
        worker_bytes=measured_bytes if calibrate else estimated_worker_bytes(plan),
        seconds=seconds,
        calibrated=calibrate,
    )


def _seconds_per_batch(prepared: Prepared) -> float:
    """Of one batch, from image files to tokens."""
    forward_s, decoding_s = _forward_seconds(prepared), _decoding_seconds(prepared)
    # A CPU does both at once, but with the same cores; a GPU waits for whichever is slower.
    on_cpu = prepared.plan.backbone.device == "cpu"
    return forward_s + decoding_s if on_cpu else max(forward_s, decoding_s)


def _decoding_seconds(prepared: Prepared) -> float:
    """Of reading and decoding a batch of the first missing rows; nothing where the images cannot be read."""
    plan = prepared.plan
    first = prepared.missing[0]
    views = views_of(prepared.manifest, first.start, min(first.stop, first.start + plan.spec.batch_size))
    start = time.perf_counter()
    # What is wrong with an image is for the run to say.
    with contextlib.suppress(OSError, ValueError):
        for _ in prepare_views(
            Path(plan.dataset_root),
            views,
            prepared.backbone.preprocessing,
            batch_size=plan.spec.batch_size,
            threads=plan.threads,
            rules=plan.rules,
            meter=Meter(),
        ):
            pass
    return (time.perf_counter() - start) * plan.spec.batch_size / len(views)


def _forward_seconds(prepared: Prepared) -> float:
    """Of the forward pass, from the second of two batches."""
    import torch

    spec, backbone = prepared.plan.spec, prepared.backbone
    torch.set_num_threads(prepared.plan.threads)
    shape = (spec.batch_size, *backbone.preprocessing.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        tokens = backbone.forward(
            pixels, spec.identity.layers, class_attention="attention" in spec.identity.token_kinds
        )
        for values in tokens.values():
            values.cpu()
    return time.perf_counter() - start


def require_space(cost: Cost, url: str) -> None:
    """Refuse a run that would fill the disk.

    Raises:
        NoSpaceError: the free space is short of what the run will write.
    """
    way_out = "free some space, choose another --store, fewer --layers or --tokens, or tiles that are larger"
    require_free(cost.free_bytes, cost.stored_bytes, url=url, way_out=way_out)


def _forget_peak() -> None:
    """Let `_peak_bytes` count from now; where the system does not, it counts from the process's start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """The most memory that this process has held at once."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10
    return 0
