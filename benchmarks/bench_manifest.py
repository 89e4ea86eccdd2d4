"""A manifest of ten million rows: planned, registered, opened, filtered, split and sampled; seconds and peak memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.ratio import sized

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("sample", "plan", "register", "ask", "hold out")
# In a child for each, so that the peak is one of this work alone.
_CHILD = """
import contextlib, sys, time
from pathlib import Path
import numpy as np
from benchmarks.stores import spec_of, write_store
from evaluators.probe_input import ProbeInput
from evaluators.subject import Subject
from feature_store import FeatureStore, create_store, read_dataset, register_dataset
from feature_store.roots import open_root
from pipelines.backbones import resolve_backbone
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionSettings
from pipelines.run import prepare_extraction

def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

@contextlib.contextmanager
def step(name):
    open("/proc/self/clear_refs", "w").write("5")
    start, cpu = time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{name}: {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak_mb():.0f} MB", flush=True)

what, manifest, folder, rows_per_shard = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
print(f"imports: peak {peak_mb():.0f} MB")

def read(**options):
    return open_dataset(f"manifest:{manifest}", options=DatasetOptions(**options))

def plan(dataset):
    request = resolve_backbone(
        "null", weights=None, image_size=None, windows=None, fit="crop", compute_dtype="float32", device="cpu",
        position_embedding=None,
    )
    settings = ExtractionSettings(token_kinds=("cls",), rows_per_shard=rows_per_shard)
    return prepare_extraction(dataset, request, settings, store=str(folder / "none"), dry_run=True)

def opened():
    root = open_root(str(folder / "store"))
    (dataset,) = root.list("datasets")
    # Before the pointer to it, which has another ending.
    stored = read_dataset(root, f"datasets/{dataset}/{root.list(f'datasets/{dataset}')[0]}")
    features = FeatureStore(root).features()
    features.__dict__["dataset"] = stored
    return features

if what == "sample":
    with step("read and sampled, 1,000 images a split"):
        assert len(read(limit_per_split=1000).table) == 2000
if what == "plan":
    with step("read into a manifest"):
        dataset = read()
    with step("planned (dry run)"):
        assert len(plan(dataset).manifest) == len(dataset.table)
if what == "register":
    dataset = read()
    with step("registered in a store"):
        root = create_store(str(folder / "store"))
        stored = register_dataset(root, dataset.spec, dataset.table, dataset.iter_masks())
    spec = spec_of(
        n_rows=stored.n_rows, rows_per_shard=rows_per_shard, n_features=1, side=1, views=stored.views_digest, cls=True
    )
    write_store(folder / "store", spec)
if what == "ask":
    features = opened()
    with step("rows of a split"):
        assert len(features.rows_of_split("test")) == len(features) // 10
    with step("filtered by a condition"):
        assert len(features.where("split = 'train' AND label IN (3, 5)").rows) > 0
if what == "hold out":
    features = opened()
    with step("split, a fifth of the images held out"):
        probe = ProbeInput(features, Subject(on="cls", hold_out=0.2))
        assert len(probe.test_rows) == round(0.2 * 0.9 * len(features))
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_ten_million_rows(tmp_path: Path, shuffled: bool) -> None:
    n_rows = sized(tiny=10_000, full=10_000_000)
    _write_manifest(tmp_path / "views.parquet", n_rows, shuffled=shuffled)
    arguments = [str(tmp_path / "views.parquet"), str(tmp_path), str(sized(tiny=4096, full=1 << 20))]
    print(f"\n{n_rows} rows, {'shuffled' if shuffled else 'in order'}")
    for what in STEPS:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, what, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout, end="")


def _write_manifest(path: Path, n_rows: int, *, shuffled: bool) -> None:
    """A user's table with content keys, written batch by batch."""
    order = np.random.default_rng(0).permutation(n_rows) if shuffled else np.arange(n_rows)
    schema = pa.schema({"uri": pa.string(), "image_sha256": pa.string(), "split": pa.string(), "label": pa.int32()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, n_rows, 1 << 18):
            numbers = order[start : start + (1 << 18)]
            keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers.tolist()]
            columns = {
                "uri": [f"images/{number:09d}.jpg" for number in numbers.tolist()],
                "image_sha256": keys,
                "split": np.where(numbers % 10 == 9, "test", "train"),
                "label": (numbers % 1000).astype(np.int32),
            }
            writer.write_table(pa.table(columns, schema=schema))
