"""The unit of work: one shard, from image bytes to a receipt. A function of the plan, free of any engine.

It may be repeated, killed at any instant and run beside itself: the shard's bytes depend on the plan alone.
"""

import errno
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from feature_store import InvalidRow, Receipt, Shard, TokenKind, read_dataset, read_manifest, write_shard
from feature_store.arrays import token_layout, token_names
from feature_store.objects import open_root
from pipelines.backbones import Backbone, BackboneRequest, load_backbone
from pipelines.meter import Meter
from pipelines.plan import ExtractionPlan, view_columns, views_of
from pipelines.stopping import stop_requested
from pipelines.views import UnreadableImageError, cut_view, decode_image, fit_view, read_image_bytes

NON_FINITE = "non_finite"
_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2
# Trying again makes no room and grants no rights.
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_BATCHES_AHEAD = 2
_Result = TypeVar("_Result")
Prepared = tuple[int, np.ndarray[Any, np.dtype[np.uint8]] | None, str | None]


class StopRequestedError(Exception):
    """The run was asked to stop; what is committed stays."""


class SourceChangedError(ValueError):
    """An image's bytes are no longer those that the manifest was made of."""


def extract_shard(plan: ExtractionPlan, shard: Shard, *, meter: Meter | None = None) -> Receipt:
    """Compute and commit one shard.

    Args:
        plan: what to do.
        shard: which rows.
        meter: counts rows and seconds.

    Returns:
        The receipt, which is on the disk when this returns.

    Raises:
        SourceChangedError: an image changed since the manifest was made.
        StopRequestedError: `stop_requested` was set.
        OSError: images cannot be read or the store cannot be written, after several attempts.
    """
    meter = meter or Meter()
    meter.begin_shard(shard.index)
    backbone = cached_backbone(plan.backbone, plan.spec.attention_kernel)
    meter.begin_computing()
    tokens, invalid = compute_shard(plan, shard, backbone, _manifest(plan.store, plan.dataset_folder), meter)
    with meter.stage("write"):
        root = open_root(plan.store)
        receipt = _with_retries(lambda: write_shard(root, plan.folder, plan.spec, shard, tokens, invalid))
    meter.end_shard()
    return receipt


def compute_shard(
    plan: ExtractionPlan, shard: Shard, backbone: Backbone, manifest: pa.Table, meter: Meter
) -> tuple[dict[tuple[int, TokenKind], np.ndarray[Any, Any]], list[InvalidRow]]:
    """The tokens of one shard, by (layer, kind), and its invalid rows; nothing is written."""
    tokens = {
        (layer, kind): np.zeros((shard.n_rows, *plan.spec.row_shape(kind)), dtype=token_layout(plan.spec, kind).dtype)
        for layer, kind in token_names(plan.spec)
    }
    reasons: dict[int, str] = {}
    views = views_of(manifest, shard.start, shard.stop)
    batch = _Batch(plan, backbone, tokens, reasons, shard.start, meter)
    for row, pixels, reason in prepare_views(plan, views, shard.start, backbone, meter):
        if pixels is None:
            reasons[row] = str(reason)
            meter.add_rows(1)
        else:
            batch.add(row, pixels)
    batch.flush()
    return tokens, [InvalidRow(row=row, reason=reasons[row]) for row in sorted(reasons)]


class _Batch:
    """Collects views to the one batch shape of the plan, runs it, and puts the tokens into their rows."""

    def __init__(
        self,
        plan: ExtractionPlan,
        backbone: Backbone,
        tokens: Mapping[tuple[int, TokenKind], np.ndarray[Any, Any]],
        reasons: dict[int, str],
        start: int,
        meter: Meter,
    ) -> None:
        self._plan, self._backbone, self._tokens = plan, backbone, tokens
        self._reasons, self._start, self._meter = reasons, start, meter
        side = backbone.preprocessing.image_size
        self._pixels = np.zeros((plan.spec.batch_size, side, side, 3), dtype=np.uint8)
        self._rows: list[int] = []

    def add(self, row: int, pixels: np.ndarray[Any, Any]) -> None:
        """Take one view; runs the batch when it is full."""
        self._pixels[len(self._rows)] = pixels
        self._rows.append(row)
        if len(self._rows) == len(self._pixels):
            self.flush()

    def flush(self) -> None:
        """Run what is there; a tail is padded with zeros, so that the shape never changes."""
        if stop_requested.is_set():
            raise StopRequestedError
        if not self._rows:
            return
        self._pixels[len(self._rows) :] = 0
        with self._meter.stage("infer"):
            outputs = self._backbone.forward(self._pixels, self._plan.spec.identity.layers)
            finite = np.ones(len(self._rows), dtype=bool)
            places = np.asarray(self._rows) - self._start
            for name, stored in self._tokens.items():
                values = outputs[name][: len(places)].to(getattr(torch, str(stored.dtype)))
                finite &= values.isfinite().flatten(1).all(dim=1).cpu().numpy()
                stored[places] = values.cpu().numpy()
        for place in places[~finite]:
            self._reasons[int(place) + self._start] = NON_FINITE
            for stored in self._tokens.values():
                stored[place] = 0
        self._meter.add_rows(len(self._rows))
        self._rows = []


def prepare_views(
    plan: ExtractionPlan, views: Sequence[Mapping[str, Any]], start: int, backbone: Backbone, meter: Meter
) -> Iterator[Prepared]:
    """Read, decode, cut and fit views in threads, ahead of the model, and give them in row order.

    An image of several views is read and decoded once. At most a few batches wait at any time.

    Yields:
        (row, uint8 pixels [size, size, 3], None), or (row, None, reason code).
    """
    images = [list(group) for _, group in groupby(enumerate(views, start), key=lambda numbered: numbered[1]["uri"])]
    ahead_rows = _BATCHES_AHEAD * plan.spec.batch_size + plan.threads
    with ThreadPoolExecutor(plan.threads, thread_name_prefix="decode") as pool:
        waiting: list[tuple[Future[list[Prepared]], int]] = []
        n_waiting = 0
        try:
            for image in images:
                waiting.append((pool.submit(_prepare_image, plan, image, backbone, meter), len(image)))
                n_waiting += len(image)
                while n_waiting > ahead_rows:
                    future, n_rows = waiting.pop(0)
                    n_waiting -= n_rows
                    yield from future.result()
            for future, _ in waiting:
                yield from future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _prepare_image(
    plan: ExtractionPlan, numbered: Sequence[tuple[int, Mapping[str, Any]]], backbone: Backbone, meter: Meter
) -> list[Prepared]:
    uri = numbered[0][1]["uri"]
    preprocessing = backbone.preprocessing
    try:
        with meter.stage("read"):
            data = _with_retries(lambda: read_image_bytes(Path(plan.dataset_root), uri))
            _require_unchanged(data, uri, numbered[0][1]["image_sha256"])
        with meter.stage("decode"):
            image = decode_image(data, uri)
            return [
                (
                    row,
                    fit_view(
                        cut_view(image, view["tile"], view["transform"]),
                        size=preprocessing.image_size,
                        fit=preprocessing.fit,
                        crop_fraction=preprocessing.crop_fraction,
                        interpolation=preprocessing.interpolation,
                    ),
                    None,
                )
                for row, view in numbered
            ]
    except UnreadableImageError as error:
        return [(row, None, error.code) for row, _ in numbered]


def _require_unchanged(data: bytes, uri: str, content_key: str) -> None:
    if content_key.startswith("stat:"):
        size_bytes = int(content_key.split(":")[1].split("-", maxsplit=1)[0])
        same = len(data) == size_bytes
    else:
        same = hashlib.sha256(data).hexdigest() == content_key
    if not same:
        raise SourceChangedError(
            f"image {uri!r} changed while its features were being extracted; run the command again, which makes a new "
            "manifest and, for the changed pixels, a new feature set."
        )


def _with_retries(action: Callable[[], _Result]) -> _Result:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except OSError as error:
            if error.errno in _HOPELESS or attempt == _ATTEMPTS:
                raise
            time.sleep(_RETRY_DELAY_S * attempt)
    raise AssertionError("unreachable")


@functools.lru_cache(maxsize=1)
def cached_backbone(request: BackboneRequest, attention_kernel: str) -> Backbone:
    """The backbone, loaded once a process."""
    return load_backbone(request, attention_kernel=attention_kernel)


@functools.lru_cache(maxsize=1)
def _manifest(store: str, dataset_folder: str) -> pa.Table:
    root = open_root(store)
    return read_manifest(root, read_dataset(root, dataset_folder), view_columns())
