"""The whole of CamVid with the demo weights: every figure that the README states, beside an independent implementation.

Run with `VITRINE_BENCH=full VITRINE_TEST_DATA=...`; otherwise four images go through the same lines, so that they
cannot rot. An existing store is used again where VITRINE_CAMVID_STORE names one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from evaluators import KnnParameters, Subject
from evaluators.parameters import Metric
from feature_store import FeatureSet, open_store
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionSettings
from tests import camvid_reference
from vitrine.extraction import ModelWords, RunOptions, extract_dataset, resolve_model
from vitrine.questions import Dropping, ask_knn, ask_linear, ask_variance, linear_parameters, make_selection

Reference = dict[str, tuple[np.ndarray, np.ndarray]]
Report = Callable[[str], None]

FULL = os.environ.get("VITRINE_BENCH") == "full"
DROPPED = (10, 50, 100, 200)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Print one line, whatever pytest captures."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return show


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    data = os.environ.get("VITRINE_TEST_DATA")
    if not data:
        pytest.skip("VITRINE_TEST_DATA names no folder with real images")
    named = os.environ.get("VITRINE_CAMVID_STORE")
    store = Path(named) if named and FULL else tmp_path_factory.mktemp("camvid") / "store"
    options = DatasetOptions(tile=120, limit_per_split=None if FULL else 2)
    dataset = open_dataset(f"segmentation:{data}/camvid", options=options)
    model = resolve_model(ModelWords(model="demo", fit="squash", device="cpu"), dataset)
    run = RunOptions(quiet=True)
    assert extract_dataset(dataset, model, ExtractionSettings(), store=str(store), options=run) == 0
    return open_store(str(store)).features()


@pytest.fixture(scope="module")
def reference(features: FeatureSet) -> Reference:
    """Tokens and masks of both splits by an implementation that shares no code with Vitrine."""
    model, folder = camvid_reference.demo_model(), Path(os.environ["VITRINE_TEST_DATA"]) / "camvid"
    return {
        split: camvid_reference.tokens_and_masks(folder, split, model, limit=None if FULL else 2)
        for split in ("train", "test")
    }


def test_variances_are_the_references(features: FeatureSet, reference: Reference, report: Report) -> None:
    expected, _ = camvid_reference.top_variance(reference["train"][0])
    variance = ask_variance(features).result
    worst = float(np.abs(np.asarray(variance["variance"]) / expected - 1).max())
    top = [(feature, round(variance["variance"][feature], 4)) for feature in variance["order"][:10]]
    report(f"top variance: {top}; worst relative difference to the reference {worst:.1e}")
    assert worst < 1e-3


@pytest.mark.parametrize(
    ("metric", "n_dropped"), [("dot", 0), ("cosine", 0), ("l2", 0), *(("cosine", n) for n in DROPPED)]
)
def test_nearest_neighbour_is_the_references(
    features: FeatureSet, reference: Reference, metric: Metric, n_dropped: int, report: Report
) -> None:
    bank, queries = (reference[split][0].reshape(-1, 384) for split in ("train", "test"))
    kept = np.sort(camvid_reference.top_variance(bank)[1][n_dropped:])
    labels = camvid_reference.centres(reference["train"][1]).reshape(-1)
    rows = camvid_reference.nearest(bank[:, kept], queries[:, kept], metric, dtype=torch.float32)
    masks = reference["test"][1]
    expected = camvid_reference.miou(masks, labels[rows].reshape(camvid_reference.centres(masks).shape))
    selection = f"no{n_dropped}" if n_dropped else None
    if selection:
        make_selection(features, Dropping(top_variance=n_dropped), name=selection)
    (answer,) = ask_knn(features, KnnParameters(metric=metric), selection=selection)
    miou, ceiling = answer.result["miou"], answer.result["ceiling_miou"]
    perfect = camvid_reference.miou(masks, camvid_reference.centres(masks))
    report(
        f"1-NN {metric} without the top {n_dropped}: mIoU {miou:.4f}, reference {expected:.4f}; "
        f"ceiling {ceiling:.4f}, reference {perfect:.4f}"
    )
    assert abs(miou - expected) < 0.003
    assert abs(ceiling - perfect) < 0.001


def test_linear_is_scikit_learns(features: FeatureSet, reference: Reference, report: Report) -> None:
    result = ask_linear(features, linear_parameters(Subject())).result
    train, test = (reference[split][0].reshape(-1, 384).astype(np.float32) for split in ("train", "test"))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    labels, masks = camvid_reference.centres(reference["train"][1]).reshape(-1), reference["test"][1]
    # The loss of the probe is a mean over tokens plus l2 / 2 |w|^2; scikit-learn's is C times their sum plus 1/2 |w|^2.
    fit = LogisticRegression(C=1 / (result["l2"] * len(train)), max_iter=1000)
    fit.fit((train - mean) / deviation, labels)
    predicted = fit.predict((test - mean) / deviation)
    expected = camvid_reference.miou(masks, predicted.reshape(camvid_reference.centres(masks).shape))
    report(f"linear: mIoU {result['miou']:.4f}, l2 {result['l2']:g}, reference {expected:.4f}")
    assert abs(result["miou"] - expected) < 0.02
