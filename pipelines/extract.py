"""The unit of work: one shard, from image bytes to a receipt. A function of the plan, free of any engine.

It may be repeated, killed at any instant and run beside itself: the shard's bytes depend on the plan alone.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64

from feature_store import InvalidRow, Receipt, Shard, TokenKind, read_dataset, read_manifest, write_shard
from feature_store.arrays import token_layout, token_names
from feature_store.canonical import canonical_json
from feature_store.errors import CorruptError, StorageError, StoreNotFoundError
from feature_store.linking import link_shard
from feature_store.manifest import removed_rows
from feature_store.objects import ObjectRoot
from feature_store.receipts import REMOVED_ROW
from feature_store.roots import process_root
from pipelines.backbones import Backbone, BackboneRequest, load_backbone
from pipelines.backbones.held_weights import WeightsChangedError
from pipelines.meter import Meter
from pipelines.plan import ExtractionPlan, recorded_preprocessing, view_columns, views_of
from pipelines.prefetch import HOPELESS_ERRORS, prepare_views, unreadable_images, with_retries
from pipelines.reuse import copy_rows, row_map
from pipelines.stopping import StopRequestedError, stop_requested

NON_FINITE = "non_finite"
ShardTokens = dict[tuple[int, TokenKind], np.ndarray[Any, Any]]
Places = Int64[np.ndarray, " places"]


class StoreUnwritableError(OSError):
    """The store takes nothing more (a full or read-only disk): no other shard can be committed either."""

    def __str__(self) -> str:
        return str(self.args[0])


def extract_shard(plan: ExtractionPlan, shard: Shard, *, meter: Meter | None = None) -> Receipt:
    """Compute and commit one shard; rows that a source of the plan has are copied from there.

    Args:
        plan: what to do.
        shard: which rows.
        meter: counts rows and seconds.

    Returns:
        The receipt, which is on the disk when this returns.

    Raises:
        SourceChangedError: an image is not the one that the manifest was made of.
        StopRequestedError: `stop_requested` was set.
        WeightsChangedError: the weights are not those that the plan was made of.
        StoreUnwritableError: the store's disk is full, read-only or closed to this user.
        OSError: images cannot be read or the store cannot be written, after several attempts.
    """
    _check_stop()
    meter = meter or Meter()
    with meter.shard(shard.index):
        work = _ShardWork(plan, shard, meter)
        work.check_stated_keys()
        return work.link() or work.fill()


class _ShardWork:
    """One shard in the making: its tokens, and the invalid rows that are known so far."""

    def __init__(self, plan: ExtractionPlan, shard: Shard, meter: Meter) -> None:
        self._plan, self._shard, self._meter = plan, shard, meter
        self._manifest = cached_manifest(plan.store, plan.dataset_folder)
        self._rows = row_map(plan.store, plan.dataset_folder, plan.sources) if plan.sources else None
        self._tokens = {
            (layer, kind): np.zeros(
                (shard.n_rows, *plan.spec.row_shape(kind)), dtype=token_layout(plan.spec, kind).dtype
            )
            for layer, kind in token_names(plan.spec)
        }
        gone = removed_rows(self._manifest.slice(shard.start, shard.n_rows))
        self._invalid = [InvalidRow(row=shard.start + int(place), reason=REMOVED_ROW) for place in np.flatnonzero(gone)]
        # Places in the shard that are neither known to be invalid nor filled.
        self._open: Places = np.flatnonzero(~gone)
        # Places whose rows a source has, and whose image cannot be read: they are left to be computed.
        self._refused: Places = np.zeros(0, dtype=np.int64)

    def check_stated_keys(self) -> None:
        """Hold the keys that a user's table states to the images whose rows would be copied by these keys.

        A row that is computed has its key checked when its image is read. A row that is copied needs no image, so a
        false key would put the tokens of one image under the path of another.
        """
        if self._rows is None or not self._plan.keys_stated:
            return
        places = np.flatnonzero(self._rows.source[self._shard.start : self._shard.stop] >= 0)
        rows = self._manifest.slice(self._shard.start, self._shard.n_rows).take(pa.array(places))
        of_rows = list(zip(rows["uri"].to_pylist(), rows["image_sha256"].to_pylist(), strict=True))
        root, plan = Path(self._plan.dataset_root), self._plan
        with self._meter.stage("read"):
            # Each image once, however many tiles it has.
            unreadable = unreadable_images(root, list(dict.fromkeys(of_rows)), threads=plan.threads, rules=plan.rules)
        self._refused = places[[image in unreadable for image in of_rows]]

    def link(self) -> Receipt | None:
        """Commit the shard as that of a source which holds the same, if one does; else None, with nothing committed."""
        twin = None if self._rows is None else self._rows.twin(self._plan.spec, self._shard)
        if twin is None or self._refused.size:
            return None
        theirs = twin.receipts[self._shard.index]
        # Rows without tokens there are tried again: what could not be read may be readable by now.
        places = np.asarray([entry.row - self._shard.start for entry in theirs.invalid], dtype=np.int64)
        self._compute(np.intersect1d(places, self._open))
        if tuple(self._invalid) != theirs.invalid:
            return None
        try:
            with self._meter.stage("copy"):
                link = functools.partial(link_shard, twin, self._plan.folder, self._plan.spec, self._shard)
                receipt = _commit(twin.root, link)
        except (CorruptError, StoreNotFoundError):
            return None  # damaged or gone: copied or computed, as every other shard is
        self._meter.add_reused(len(self._open))
        return receipt

    def fill(self) -> Receipt:
        """Copy what the plan's sources have, compute the rest, and commit the shard."""
        if self._rows is not None:
            with self._meter.stage("copy"):
                copied = np.setdiff1d(copy_rows(self._rows, self._shard, self._tokens), self._refused)
                for tokens in self._tokens.values():
                    tokens[self._refused] = 0
            self._meter.add_reused(len(copied))
            self._open = np.setdiff1d(self._open, copied, assume_unique=True)
        self._compute(self._open)
        plan, root = self._plan, process_root(self._plan.store)
        with self._meter.stage("write"):
            return _commit(
                root, lambda: write_shard(root, plan.folder, plan.spec, self._shard, self._tokens, self._invalid)
            )

    def _compute(self, places: Places) -> None:
        if places.size:
            found = compute_rows(self._plan, self._shard, places, self._tokens, self._manifest, self._meter)
            self._invalid = sorted([*self._invalid, *found], key=lambda entry: entry.row)
            self._open = np.setdiff1d(self._open, places, assume_unique=True)


def compute_rows(
    plan: ExtractionPlan, shard: Shard, places: Places, tokens: ShardTokens, manifest: pa.Table, meter: Meter
) -> list[InvalidRow]:
    """Fill in the tokens of some places of a shard, and give its invalid rows; nothing is written."""
    backbone = planned_backbone(plan)
    meter.begin_computing()
    batches = _Batches(backbone, tokens, meter, plan.spec.batch_size)
    of_shard = views_of(manifest, shard.start, shard.stop)
    views = prepare_views(
        Path(plan.dataset_root),
        [of_shard[place] for place in places],
        backbone.preprocessing,
        batch_size=plan.spec.batch_size,
        threads=plan.threads,
        rules=plan.rules,
        meter=meter,
    )
    reasons: dict[int, str] = {}
    with contextlib.closing(views):
        for view in views:
            place = int(places[view.place])
            if view.pixels is None:
                reasons[place] = str(view.reason)
                meter.add_rows(1)
            else:
                batches.add(place, view.pixels, of_shard[place]["ground_sample_distance_m"])
    reasons |= dict.fromkeys(batches.finish(), NON_FINITE)
    return [InvalidRow(row=shard.start + place, reason=reasons[place]) for place in sorted(reasons)]


def _check_stop() -> None:
    if stop_requested.is_set():
        raise StopRequestedError("asked to stop between two batches")


def _commit(root: ObjectRoot, write: Callable[[], Receipt]) -> Receipt:
    try:
        return with_retries(write)
    except StorageError as error:
        if error.errno not in HOPELESS_ERRORS:
            raise
        raise StoreUnwritableError(str(error)) from error
    except OSError as error:
        if error.errno not in HOPELESS_ERRORS:
            raise
        raise StoreUnwritableError(
            f"{root.url} takes nothing more ({error.strerror}); free some space or grant the right to write, and run "
            "the same command again: committed shards stay."
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Launched:
    """A batch that the device may still be computing.

    Attributes:
        places: rows of the shard that it fills.
        values: what to put there, in the storage dtype, on the host.
        finite: which views gave finite values throughout.
        ready: waits until the device has written both; None where they are there already.
    """

    places: list[int]
    values: dict[tuple[int, TokenKind], torch.Tensor]
    finite: torch.Tensor
    ready: Any


class _Batches:
    """Collects views to batches of one shape, runs them, and puts the tokens into their rows.

    A batch is taken from the device only when the next one is under way, so that a GPU computes while the host
    prepares. Two pixel buffers take turns: the device may still read one while the other is filled.
    """

    def __init__(
        self, backbone: Backbone, tokens: Mapping[tuple[int, TokenKind], Any], meter: Meter, batch_size: int
    ) -> None:
        self._backbone, self._tokens, self._meter = backbone, tokens, meter
        self._layers = sorted({layer for layer, _ in tokens})
        self._class_attention = any(kind == "attention" for _, kind in tokens)
        self._on_gpu = backbone.request.device.startswith("cuda")
        shape = (batch_size, *backbone.preprocessing.image_size, 3)
        self._buffers = [torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu) for _ in range(2)]
        self._pixels = self._buffers[0].numpy()
        self._distances_m = np.full(batch_size, np.nan, dtype=np.float32)
        self._places: list[int] = []
        self._launched: _Launched | None = None
        self._non_finite: list[int] = []

    def add(self, place: int, pixels: np.ndarray[Any, Any], ground_sample_distance_m: float | None) -> None:
        """Take one view; runs the batch when it is full."""
        self._pixels[len(self._places)] = pixels
        if ground_sample_distance_m is not None:
            self._distances_m[len(self._places)] = ground_sample_distance_m
        self._places.append(place)
        if len(self._places) == len(self._pixels):
            self._run()

    def finish(self) -> list[int]:
        """Run what is left, and give the rows whose tokens are not finite in the storage dtype."""
        if self._places:
            # A tail is padded, so that the shape never changes.
            self._pixels[len(self._places) :] = 0
            self._run()
        with self._meter.stage("infer"):
            self._collect()
        return self._non_finite

    def _run(self) -> None:
        _check_stop()
        with self._meter.stage("infer"):
            launched = self._launch()
            self._collect()
            self._launched = launched
        self._places = []
        self._distances_m = np.full_like(self._distances_m, np.nan)
        self._buffers.reverse()
        self._pixels = self._buffers[0].numpy()

    def _launch(self) -> _Launched:
        outputs = self._backbone.forward(
            self._pixels,
            self._layers,
            class_attention=self._class_attention,
            ground_sample_distance_m=self._distances_m,
        )
        finite = torch.ones(len(self._pixels), dtype=torch.bool, device=self._backbone.request.device)
        values = {}
        for name, stored in self._tokens.items():
            rounded = outputs[name].to(getattr(torch, str(stored.dtype)))
            finite &= rounded.isfinite().flatten(1).all(dim=1)
            values[name] = rounded.to("cpu", non_blocking=True)
        host_finite = finite.to("cpu", non_blocking=True)
        ready = None
        if self._on_gpu:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._backbone.request.device))
        return _Launched(places=self._places, values=values, finite=host_finite, ready=ready)

    def _collect(self) -> None:
        launched, self._launched = self._launched, None
        if launched is None:
            return
        if launched.ready is not None:
            launched.ready.synchronize()
        places = np.asarray(launched.places)
        finite = launched.finite.numpy()[: len(places)]
        for name, stored in self._tokens.items():
            stored[places] = launched.values[name].numpy()[: len(places)]
            stored[places[~finite]] = 0
        self._non_finite += places[~finite].tolist()
        self._meter.add_rows(len(places))


def planned_backbone(plan: ExtractionPlan) -> Backbone:
    """The backbone of a plan, loaded once a process.

    Raises:
        WeightsChangedError: its weights, or what stands beside them, are not those of the plan.
        BackboneError: they cannot be loaded.
    """
    backbone = cached_backbone(plan.backbone, plan.spec.attention_kernel)
    identity = plan.spec.identity
    # The digest of the weights was compared when they were loaded. A folder of transformers says more beside them.
    loaded = {"architecture": backbone.architecture, "preprocessing": recorded_preprocessing(backbone, plan.max_pixels)}
    planned = {"architecture": identity.architecture, "preprocessing": identity.preprocessing}
    # As JSON has them, since a plan comes from another process.
    differing = [name for name in loaded if canonical_json(loaded[name]) != canonical_json(planned[name])]
    if differing:
        name = differing[0]
        raise WeightsChangedError(
            f"what stands beside weights {plan.backbone.weights} changed after the run was planned: {name} was "
            f"{canonical_json(planned[name])} and is now {canonical_json(loaded[name])}; put it back, or run the same "
            "command again, which makes another feature set."
        )
    return backbone


@functools.lru_cache(maxsize=1)
def cached_backbone(request: BackboneRequest, attention_kernel: str) -> Backbone:
    """The backbone, loaded once a process."""
    return load_backbone(request, attention_kernel=attention_kernel)


@functools.lru_cache(maxsize=1)
def cached_manifest(store: str, dataset_folder: str) -> pa.Table:
    """The manifest's columns that decide pixels, read once a process."""
    root = process_root(store)
    return read_manifest(root, read_dataset(root, dataset_folder), view_columns())
