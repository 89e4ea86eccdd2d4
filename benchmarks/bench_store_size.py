"""What opening, asking and streaming cost as a store grows: ten thousand shards, ten million rows, gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.ratio import compare, sized
from benchmarks.stores import spec_of, write_store
from feature_store import DatasetSpec, FeatureStore, StoredDataset, create_store, manifest_table, register_dataset
from feature_store.manifest import MANIFEST_SCHEMA
from feature_store.writer import committed_receipts

ROOT = Path(__file__).resolve().parents[1]
# In the child: what one question to the store costs, over what the imports had taken.
_CHILD = """
import json, sys, time
from evaluators import (
    KnnParameters, LinearParameters, Subject, VarianceParameters, evaluate_knn, evaluate_linear, evaluate_variance
)
from feature_store import open_store
features = open_store(sys.argv[1]).features()
subject = Subject(on=sys.argv[3])
linear = LinearParameters(subject=subject, memory_bytes=256 << 20, l2s=(0.01,), max_passes=5)
ask = {
    "variance": lambda: evaluate_variance(features, VarianceParameters()),
    "knn": lambda: evaluate_knn(features, KnnParameters(subject=subject, k=1)),
    "linear": lambda: evaluate_linear(features, linear),
}[sys.argv[2]]
def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
# The peak starts anew: a child's begins with its parent's.
open("/proc/self/clear_refs", "w").write("5")
before = peak_mb()
start = time.perf_counter()
ask()
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "grown_mb": peak_mb() - before, "before_mb": before}))
"""


def test_opening_many_shards(tmp_path: Path) -> None:
    """Opening by the index, against opening by every receipt and object."""
    n_shards = sized(tiny=50, full=10_000)
    spec = spec_of(n_rows=8 * n_shards, rows_per_shard=8, n_features=2, side=1, cls=True)
    features = write_store(tmp_path / "store", spec)

    def by_receipts() -> int:
        return len(committed_receipts(features.root, features.folder, spec))

    def by_index() -> int:
        opened = FeatureStore(features.root).features()
        assert opened.complete
        return int(opened.valid.sum())

    found = compare(f"opening {n_shards} shards, every receipt and object", peer=by_receipts, ours=by_index)
    assert (found.peer, found.ours) == (n_shards, 8 * n_shards)


def _manifest_of(n_rows: int, path: Path) -> None:
    """A manifest in the store's schema without the cost of making ten million dictionaries."""
    batch_rows = min(n_rows, 500_000)
    with pq.ParquetWriter(path, MANIFEST_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, n_rows, batch_rows):
            numbers = np.arange(start, min(start + batch_rows, n_rows))
            text = pa.array([f"{number:032x}" for number in numbers])
            columns = {
                "view_id": text,
                "image_sha256": text,
                "uri": pa.array([f"images/{number:09d}.jpg" for number in numbers]),
                "split": pa.array(np.where(numbers % 10 == 9, "test", "train")),
                "label": pa.array((numbers % 1000).astype(np.int32)),
            }
            empty = {name: pa.nulls(len(numbers), MANIFEST_SCHEMA.field(name).type) for name in MANIFEST_SCHEMA.names}
            writer.write_table(pa.table({**empty, **columns}, schema=MANIFEST_SCHEMA))


def test_where_over_many_rows(tmp_path: Path) -> None:
    """`FeatureSet.where`, against reading two columns and comparing them in NumPy."""
    n_rows = sized(tiny=20_000, full=10_000_000)
    spec = spec_of(n_rows=n_rows, rows_per_shard=sized(tiny=4096, full=1 << 20), n_features=1, side=1)
    features = write_store(tmp_path / "store", spec)
    # Registering would first make every digest; only the question is timed here.
    features.__dict__["dataset"] = StoredDataset(
        folder="datasets/synthetic/0-0",
        spec=DatasetSpec(name="synthetic"),
        views_digest=spec.identity.views_digest,
        annotations_digest="0" * 64,
        n_rows=n_rows,
    )
    path = Path(features.root.url, features.dataset.folder, "manifest.parquet")
    path.parent.mkdir(parents=True)
    _manifest_of(n_rows, path)

    def in_numpy() -> int:
        table = pq.read_table(path, columns=["split", "label"])
        split, label = table["split"].to_numpy(zero_copy_only=False), table["label"].to_numpy()
        return int(((split == "train") & np.isin(label, [3, 5])).sum())

    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mb()
    rows = features.where("split = 'train' AND label IN (3, 5)").rows
    grown = _peak_mb() - before
    found = compare(
        f"where over {n_rows} rows, two columns in NumPy",
        peer=in_numpy,
        ours=lambda: len(features.where("split = 'train' AND label IN (3, 5)").rows),
    )
    assert found.peer == found.ours == len(rows)
    assert {int(row) % 1000 for row in rows} == {3, 5}
    print(f"manifest {path.stat().st_size / 1e6:.0f} MB; the first question took {grown:.0f} MB")


def _peak_mb() -> float:
    """Of this process since `clear_refs` was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same kind of store at an eighth of the size and at full size, by stored bytes."""
    n_rows = sized(tiny=640, full=100_000)
    return dict(_labelled_store(tmp_path_factory.mktemp("size"), rows) for rows in (n_rows // 8, n_rows))


def _labelled_store(folder: Path, n_rows: int) -> tuple[int, Path]:
    # Exact k-NN of patches is the square of the rows: 100 test rows have 4,900 queries against 4.9 million.
    every = max(2, n_rows // 100)
    table = manifest_table(
        {
            "uri": f"{row:06d}.jpg",
            "image_sha256": f"{row:064x}",
            "label": row % 4,
            "split": "test" if row % every == every - 1 else "train",
        }
        for row in range(n_rows)
    )
    root = create_store(str(folder / "store"))
    # A class a quarter, so that patches have labels as images have.
    masks = (np.full((7, 7), row % 4, dtype=np.uint16) for row in range(n_rows))
    dataset = register_dataset(root, DatasetSpec(name="synthetic", classes=("a", "b", "c", "d")), table, masks)
    spec = spec_of(
        n_rows=n_rows,
        rows_per_shard=sized(tiny=64, full=2048),
        n_features=192,
        side=7,
        views=dataset.views_digest,
        cls=True,
    )
    return write_store(folder / "store", spec).stored_bytes, folder / "store"


@pytest.mark.parametrize(
    ("evaluator", "on"),
    [
        ("variance", "patches"),
        ("knn", "patches"),
        ("knn", "mean"),
        ("knn", "cls"),
        ("linear", "patches"),
        ("linear", "mean"),
    ],
)
def test_evaluators_in_bounded_memory(stores: dict[int, Path], evaluator: str, on: str) -> None:
    """Peak memory over the imports', at both sizes; maps of the page cache count as memory here, and are let go."""
    for stored_bytes, store in sorted(stores.items()):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(store), evaluator, on],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        print(
            f"\n{evaluator} on {on}: {found['grown_mb']:.0f} MB over the imports' {found['before_mb']:.0f} MB, for "
            f"{stored_bytes / 1e6:.0f} MB of tokens; {found['seconds']:.1f} s"
        )
