"""Reading behind a URL against zarr-python on the same objects: requests, bytes and time.

The objects stand in fsspec's memory, behind a layer that counts requests and lets each take as long as one does on a
network, so the ratio is that of round trips, not of a server's speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.ratio import compare, sized
from feature_store import FeatureSet, Identity, create_feature_set, create_store, open_store, shards_of, write_shard
from feature_store.identity import FeatureSetSpec
from feature_store.layout import token_array

_LATENCY_S = sized(tiny=0.0, full=0.015)
_FEATURES = sized(tiny=8, full=384)


class _Counted(MemoryFileSystem):  # type: ignore[misc]  # fsspec says nothing of its types
    """fsspec's memory, with a price for each request."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests = 0
    octets = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = bytes(super().cat_file(path, start=start, end=end, **options))
        _Counted.requests += 1
        _Counted.octets += len(data)
        time.sleep(_LATENCY_S)
        return data


@pytest.fixture
def features() -> Iterator[FeatureSet]:
    """1,024 rows of 64 patches, in shards of 128 rows: 6.3 MB each."""
    fsspec.register_implementation("counted", _Counted, clobber=True)
    url = "counted://bench"
    rows, rows_per_shard = sized(tiny=(40, 16), full=(1024, 128))
    identity = Identity(
        views_digest="a" * 64,
        weights_sha256="b" * 64,
        architecture={"name": "bench"},
        preprocessing={"size": 8},
        layers=(1,),
        token_kinds=("patches",),
    )
    spec = FeatureSetSpec(
        identity=identity,
        model="bench",
        title="bench",
        n_rows=rows,
        rows_per_shard=rows_per_shard,
        grid=(8, 8),
        n_features=_FEATURES,
        n_registers=0,
        batch_size=8,
        attention_kernel="none",
    )
    root = create_store(url)
    folder = create_feature_set(root, "bench", spec)
    random = np.random.default_rng(0)
    for shard in shards_of(rows, rows_per_shard):
        values = random.normal(size=(shard.n_rows, 64, _FEATURES)).astype(np.float16)
        write_shard(root, folder, spec, shard, {(1, "patches"): values})
    yield open_store(url).features()
    _Counted.store.clear()
    _Counted.pseudo_dirs[:] = [""]


def _counting(read: Any) -> tuple[np.ndarray[Any, Any], int, int]:
    before = _Counted.requests, _Counted.octets
    found = read()
    return found, _Counted.requests - before[0], _Counted.octets - before[1]


def _compare(name: str, features: FeatureSet, *, peer: Any, ours: Any) -> None:
    found = compare(f"{name}, zarr-python", peer=lambda: _counting(peer), ours=lambda: _counting(ours))
    np.testing.assert_array_equal(found.ours[0], found.peer[0])
    for who, (_, requests, octets) in (("zarr-python", found.peer), ("ours", found.ours)):
        print(f"  {who}: {requests} requests, {octets / 1e6:.2f} MB")


def test_remote_reads(features: FeatureSet) -> None:
    array = zarr.open_array(
        features.root.zarr_store(token_array(features.folder, 1, "patches")), mode="r", zarr_format=3
    )
    n_rows = features.spec.n_rows
    some = np.sort(np.random.default_rng(1).choice(n_rows, size=sized(tiny=8, full=64), replace=False))
    assert features.valid.all()

    _compare("remote, whole layer", features, peer=lambda: array[:], ours=lambda: features.read(1, "patches"))
    _compare(
        "remote, 100 rows in a run", features,
        peer=lambda: array[5 : min(105, n_rows)],
        ours=lambda: features.read(1, "patches", slice(5, 105)),
    )  # fmt: skip
    _compare(
        "remote, 64 random rows", features,
        peer=lambda: array.oindex[some], ours=lambda: features.read(1, "patches", some),
    )  # fmt: skip
