"""Evaluators stream: what they hold does not grow with the store."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from evaluators import KnnParameters, Subject, VarianceParameters, evaluate_knn, evaluate_variance
from feature_store import (
    DatasetSpec,
    FeatureSet,
    FeatureSetSpec,
    FeatureStore,
    Identity,
    create_feature_set,
    create_store,
    finish_feature_set,
    manifest_table,
    register_dataset,
    shards_of,
    write_shard,
)

_ROW_BYTES = 16 * 1024


def _store(folder: Path, n_rows: int) -> FeatureSet:
    """Rows of 64 patches with 128 features, every eighth a test row."""
    root = create_store(str(folder))
    table = manifest_table(
        {"uri": f"{row:05d}", "image_sha256": f"{row:064x}", "label": row % 3, "split": "train" if row % 8 else "test"}
        for row in range(n_rows)
    )
    dataset = register_dataset(root, DatasetSpec(name="long", classes=("a", "b", "c")), table, [None] * n_rows)
    identity = Identity(
        views_digest=dataset.views_digest,
        weights_sha256="b" * 64,
        architecture={"name": "random"},
        preprocessing={"fit": "squash"},
        layers=(1,),
        token_kinds=("patches",),
    )
    spec = FeatureSetSpec(
        identity=identity, model="random", title="random", n_rows=n_rows, rows_per_shard=256, grid=(8, 8),
        n_features=128, n_registers=0, batch_size=8, attention_kernel="fused",
    )  # fmt: skip
    place = create_feature_set(root, "long", spec)
    for shard in shards_of(n_rows, 256):
        values = np.random.default_rng(shard.index).normal(size=(shard.n_rows, 64, 128)).astype(np.float16)
        write_shard(root, place, spec, shard, {(1, "patches"): values})
    finish_feature_set(root, place, spec)
    return FeatureStore(root).features()


def _peak_bytes(features: FeatureSet, question: str) -> int:
    """Of what Python and NumPy allocate; a map is no allocation, and torch's own buffers are of one block."""
    tracemalloc.start()
    try:
        if question == "variance":
            evaluate_variance(features, VarianceParameters())
        else:
            evaluate_knn(features, KnnParameters(subject=Subject(on="mean"), k=1))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("question", ["variance", "knn"])
def test_four_times_the_store_is_not_more_memory(tmp_path: Path, question: str) -> None:
    small, large = _store(tmp_path / "small", 1024), _store(tmp_path / "large", 4096)
    _peak_bytes(small, question)  # what a process loads once
    opened = [FeatureStore(features.root).features() for features in (small, large)]
    peaks = {features.stored_bytes: _peak_bytes(features, question) for features in opened}
    (small_bytes, small_peak), (large_bytes, large_peak) = sorted(peaks.items())
    assert large_bytes - small_bytes == 3072 * (_ROW_BYTES + 1)  # and whether the row is valid
    # Labels, splits and results have a few hundred bytes a row, where tokens have 16,384.
    assert large_peak - small_peak < (large_bytes - small_bytes) / 8
