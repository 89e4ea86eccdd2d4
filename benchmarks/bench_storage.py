"""What each way of storage takes and costs: size, reading, and accuracy on CamVid, tiles of 120, demo weights.

The rows of the table in docs/storage.md are printed by `VITRINE_BENCH=full VITRINE_TEST_DATA=... make bench`;
VITRINE_STORAGE_LIMIT takes so many images of each split, since exact patch k-NN on all of them takes minutes a row.
Otherwise two images a split goes through the same lines, so that they cannot rot. An existing store is extended where
VITRINE_STORAGE_STORE names one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ratio import FULL, compare
from evaluators import KnnParameters, Subject
from evaluators.feature_map import FeatureMap
from feature_store import FeatureSet, open_store, views_digest
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionSettings
from vitrine.compression import CompressionRequest, compress
from vitrine.extraction import ModelWords, RunOptions, extract_dataset, resolve_model
from vitrine.questions import ask_knn, ask_linear, linear_parameters

# Name in the table -> how it is made of float16; None for what an extraction stores.
WAYS: dict[str, CompressionRequest | None] = {
    "float32": None,
    "float16": None,
    "int8": CompressionRequest(storage="int8"),
    "PCA 128": CompressionRequest(storage="float16", n_components=128),
    "PCA 64": CompressionRequest(storage="float16", n_components=64),
    "PCA 64, int8": CompressionRequest(storage="int8", n_components=64),
}
_TINY_COMPONENTS = 8
FeaturesOf = Callable[[str], FeatureSet]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeaturesOf:
    """CamVid in a store, in float32, and in float16 copied from it: a feature set by its storage dtype."""
    data = os.environ.get("VITRINE_TEST_DATA")
    if not data:
        pytest.skip("VITRINE_TEST_DATA names no folder with real images")
    named = os.environ.get("VITRINE_STORAGE_STORE")
    place = Path(named) if named else tmp_path_factory.mktemp("storage") / "store"
    limit = int(os.environ.get("VITRINE_STORAGE_LIMIT", "0")) or None
    dataset = open_dataset(
        f"segmentation:{data}/camvid", options=DatasetOptions(tile=120, limit_per_split=limit if FULL else 2)
    )
    model = resolve_model(ModelWords(model="demo", fit="squash", device="cpu"), dataset)
    run = RunOptions(quiet=True, allow_mixed_environment=named is not None)
    for dtype in ("float32", "float16"):
        settings = ExtractionSettings(token_kinds=("patches",), storage_dtype=dtype)
        assert extract_dataset(dataset, model, settings, store=str(place), options=run) == 0
    views, opened = views_digest(dataset.table), open_store(str(place))

    def extracted(dtype: str) -> FeatureSet:
        every = [opened.features(name) for name in opened.names()]
        wanted = (views, dtype, None)
        (found,) = (
            features
            for features in every
            for identity in [features.spec.identity]
            if (identity.views_digest, identity.storage_dtype, identity.compression) == wanted
        )
        return found

    return extracted


def stored(extracted: FeaturesOf, way: str) -> FeatureSet:
    """The feature set of one way of storage."""
    request = WAYS[way]
    if request is None:
        return extracted(way)
    if not FULL and request.n_components is not None:
        request = CompressionRequest(storage=request.storage, n_components=_TINY_COMPONENTS)
    return compress(extracted("float16"), request).features


def read_all(features: FeatureSet) -> float:
    """Every patch as evaluators take it, in float32; gives a sum so that nothing is left unread."""
    total = 0.0
    for _, block in features.iter_blocks("last", "patches"):
        total += float(FeatureMap().apply(block.reshape(-1, block.shape[-1]))[:, 0].sum())
    return total


@pytest.mark.parametrize("way", WAYS)
def test_what_a_way_of_storage_takes_and_costs(store: FeaturesOf, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    features, plain = stored(store, way), store("float16")
    read = compare(f"reading {way} against float16", peer=lambda: read_all(plain), ours=lambda: read_all(features))
    n_rows, spec = int(features.valid.sum()), features.spec
    values_bytes = n_rows * int(np.prod(spec.row_shape("patches"))) * 4
    (knn,) = ask_knn(features, KnnParameters(subject=Subject(on="patches")))
    linear = ask_linear(features, linear_parameters(Subject(on="patches")))
    with capsys.disabled():
        print(
            f"\n| {way} | {features.stored_bytes / 1e6:.1f} MB | {features.stored_bytes / plain.stored_bytes:.0%} "
            f"| {n_rows / read.ours_s:.0f} | {values_bytes / read.ours_s / 1e6:.0f} MB/s | {read.speed:.2f} "
            f"| {knn.result['miou']:.4f} | {linear.result['miou']:.4f} | ({n_rows} rows)",
            end="",
        )
    assert 0 < knn.result["miou"] < 1
    assert 0 < linear.result["miou"] < 1


def test_int8_takes_half_and_is_within_half_a_step(store: FeaturesOf) -> None:
    plain, small = store("float16"), stored(store, "int8")
    assert small.stored_bytes < 0.51 * plain.stored_bytes
    rows = plain.rows_of_split("train")
    quantiser = small.codecs[small.layer_number("last"), "patches"].quantiser
    assert quantiser is not None
    worst = np.abs(small.read(rows=rows) - plain.read(rows=rows).astype(np.float32)).max(axis=(0, 1))
    assert (worst <= quantiser.scale * 0.501).all()
