"""The whole of CamVid with the demo weights: the figures that the README and docs state.

Run with `VITRINE_BENCH=full VITRINE_TEST_DATA=...`; otherwise four images go through the same lines, so that they
cannot rot. An existing store is used again where VITRINE_CAMVID_STORE names one.
"""

import os
from pathlib import Path

import pytest

from evaluators import KnnParameters, Subject
from feature_store import FeatureSet, open_store
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionSettings
from vitrine.extraction import RunOptions, extract_dataset, resolve_model
from vitrine.questions import Dropping, ask_knn, ask_linear, ask_variance, make_selection

FULL = os.environ.get("VITRINE_BENCH") == "full"
DROPPED = (10, 50, 100, 200)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    data = os.environ.get("VITRINE_TEST_DATA")
    if not data:
        pytest.skip("VITRINE_TEST_DATA names no folder with real images")
    named = os.environ.get("VITRINE_CAMVID_STORE")
    store = Path(named) if named and FULL else tmp_path_factory.mktemp("camvid") / "store"
    options = DatasetOptions(tile=120, limit_per_split=None if FULL else 2)
    dataset = open_dataset(f"segmentation:{data}/camvid", options=options)
    request = resolve_model(
        "demo", dataset, weights=None, image_size=None, fit="squash", compute_dtype="float32", device="cpu"
    )
    run = RunOptions(quiet=True)
    assert extract_dataset(dataset, request, ExtractionSettings(), store=str(store), options=run) == 0
    return open_store(str(store)).features()


def test_camvid_figures(features: FeatureSet, capsys: pytest.CaptureFixture[str]) -> None:
    variance = ask_variance(features).result
    top = [(feature, round(variance["variance"][feature], 4)) for feature in variance["order"][:10]]
    lines = [f"top variance: {top}"]
    for metric in ("dot", "cosine", "l2"):
        (answer,) = ask_knn(features, KnnParameters(metric=metric))
        lines.append(f"1-NN {metric}: mIoU {answer.result['miou']:.4f}")
    lines.append(f"ceiling of perfect patch labels: {answer.result['ceiling_miou']:.4f}")
    for n_dropped in DROPPED:
        make_selection(features, Dropping(top_variance=n_dropped), name=f"no{n_dropped}")
        (answer,) = ask_knn(features, KnnParameters(), selection=f"no{n_dropped}")
        lines.append(f"1-NN cosine without the top {n_dropped}: mIoU {answer.result['miou']:.4f}")
    standardised = ask_knn(features, KnnParameters(standardise=True))[0].result
    lines.append(f"1-NN cosine standardised: mIoU {standardised['miou']:.4f}")
    linear = ask_linear(features, Subject()).result
    lines.append(f"linear: mIoU {linear['miou']:.4f}, l2 {linear['l2']:g}")
    assert 0 < answer.result["miou"] < 1
    with capsys.disabled():
        print("\n" + "\n".join(lines))
