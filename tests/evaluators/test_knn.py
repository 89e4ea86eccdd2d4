from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators import (
    KnnParameters,
    LinearParameters,
    ProbeResult,
    Subject,
    ask,
    evaluate_knn,
    evaluate_knn_for,
    evaluate_linear,
    neighbors,
    predict_knn,
    question,
)
from evaluators.probe_input import ProbeInput
from feature_store import IncompleteError, Selection, SelectionError, StoreError

from .conftest import Synthetic

N_CLASSES = 3


def patch_truth(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The label at the centre pixel of every patch, by loops."""
    height, width = mask.shape
    truth = np.zeros(grid, dtype=int)
    for i in range(grid[0]):
        for j in range(grid[1]):
            value = int(mask[int((i + 0.5) * height / grid[0]), int((j + 0.5) * width / grid[1])])
            truth[i, j] = value if value < N_CLASSES else N_CLASSES
    return truth


def nearest_labels(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, metric: str, k: int) -> np.ndarray:
    """The k nearest by a stable sort of every score, in float64."""
    b, q = bank.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        b, q = b / np.linalg.norm(b, axis=1, keepdims=True), q / np.linalg.norm(q)
    scores = -((b - q) ** 2).sum(axis=1) if metric == "l2" else b @ q
    return labels[np.argsort(-scores, kind="stable")[:k]]


def vote(labels: np.ndarray) -> int:
    counts = [int((labels == c).sum()) for c in range(N_CLASSES + 1)]
    return next(int(label) for label in labels if counts[label] == max(counts))


def brute_force(
    data: Synthetic,
    *,
    metric: str,
    k: int,
    columns: np.ndarray | None = None,
    scaled: bool = False,
    scored: tuple[int, ...] = (0, 1, 2),
) -> dict[str, float]:
    """mIoU of the painted prediction and patch accuracy, pixel by pixel."""
    grid = data.features.spec.grid
    tokens = data.patches.astype(np.float64)
    train = [row for row in range(len(tokens)) if data.splits[row] == "train" and data.valid[row]]
    test = [row for row in range(len(tokens)) if data.splits[row] == "test" and data.valid[row]]
    if scaled:
        stacked = tokens[train].reshape(-1, tokens.shape[-1])
        tokens = (tokens - stacked.mean(axis=0)) / stacked.std(axis=0)
    if columns is not None:
        tokens = tokens[..., columns]
    truths = [patch_truth(mask, grid) for mask in data.masks if mask is not None]
    bank = tokens[train].reshape(-1, tokens.shape[-1])
    labels = np.concatenate([truths[row].reshape(-1) for row in train])
    hits = {c: [0, 0, 0] for c in range(N_CLASSES)}
    right = counted = 0
    for row in test:
        predicted = np.array([vote(nearest_labels(bank, labels, t, metric, k)) for t in tokens[row]]).reshape(grid)
        mask = data.masks[row]
        assert mask is not None
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                truth, guess = (
                    int(mask[y, x]),
                    int(predicted[y * grid[0] // mask.shape[0], x * grid[1] // mask.shape[1]]),
                )
                if truth not in scored:
                    continue
                if truth == guess:
                    hits[truth][0] += 1
                else:
                    hits[truth][1] += 1
                    if guess < N_CLASSES:
                        hits[guess][2] += 1
        counted += int(np.isin(truths[row], scored).sum())
        right += int(((truths[row] == predicted) & np.isin(truths[row], scored)).sum())
    return {
        "miou": float(np.mean([tp / (tp + fn + fp) for tp, fn, fp in (hits[c] for c in scored)])),
        "patch_accuracy": right / counted,
    }


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("k", [1, 5])
def test_patch_knn_equals_brute_force(segmented: Synthetic, metric: str, k: int) -> None:
    parameters = KnnParameters(k=k, metric=metric)  # type: ignore[arg-type]  # parametrised
    result = evaluate_knn(segmented.features, parameters).to_json()
    expected = brute_force(segmented, metric=metric, k=k)
    assert result["miou"] == pytest.approx(expected["miou"], abs=1e-12)
    assert result["patch_accuracy"] == pytest.approx(expected["patch_accuracy"], abs=1e-12)


def test_standardised_knn_equals_brute_force(segmented: Synthetic) -> None:
    result = evaluate_knn(segmented.features, KnnParameters(metric="l2", standardise=True)).to_json()
    assert result["miou"] == pytest.approx(brute_force(segmented, metric="l2", k=1, scaled=True)["miou"], abs=1e-12)


@pytest.mark.parametrize("scored", [(0, 2), (1,)])
def test_classes_that_are_not_scored_stay_in_the_bank_alone(segmented: Synthetic, scored: tuple[int, ...]) -> None:
    """The Cityscapes rule: pixels of other classes do not count at all, predicting another class is a miss."""
    result = evaluate_knn(segmented.features, KnnParameters(subject=Subject(scored=scored))).to_json()
    expected = brute_force(segmented, metric="cosine", k=1, scored=scored)
    assert result["miou"] == pytest.approx(expected["miou"], abs=1e-12)
    assert result["patch_accuracy"] == pytest.approx(expected["patch_accuracy"], abs=1e-12)
    shown = [name for name, value in result["class_iou"].items() if value is not None]
    assert shown == [("sky", "road", "tree")[index] for index in scored]


@pytest.mark.parametrize("scored", [(), (2, 1), (0, 0), (0, 3), (-1, 0)])
def test_impossible_scored_classes_are_refused(segmented: Synthetic, scored: tuple[int, ...]) -> None:
    with pytest.raises(StoreError, match=r"name some of the classes 0\.\.2, each once"):
        evaluate_knn(segmented.features, KnnParameters(subject=Subject(scored=scored)))


def selection_of(data: Synthetic, features: tuple[int, ...], weights: str = "ab" * 32) -> Selection:
    return Selection(
        name="some", features=features, width=6, weights_sha256=weights, layer=2, kind="patches", made_by={}
    )


@pytest.mark.parametrize(
    "evaluate",
    [
        partial(evaluate_knn, parameters=KnnParameters()),
        partial(evaluate_linear, parameters=LinearParameters(l2s=(0.01,))),
    ],
)
@pytest.mark.parametrize("with_masks", [True, False])
def test_a_class_that_nothing_is_tested_on_is_null_and_named(
    synthetic: Callable[..., Synthetic], with_masks: bool, evaluate: Callable[..., ProbeResult]
) -> None:
    features = synthetic(n_rows=14, absent=2, with_masks=with_masks).features
    everything = evaluate(features).to_json()
    assert list(everything["absent"]) == ["tree"]
    if not with_masks:
        assert everything["class_accuracy"]["tree"] is None


@pytest.mark.parametrize("with_masks", [True, False])
def test_when_no_scored_class_is_there_every_figure_is_null(
    synthetic: Callable[..., Synthetic], with_masks: bool
) -> None:
    features = synthetic(n_rows=14, absent=2, with_masks=with_masks).features
    parameters = KnnParameters(subject=Subject(scored=(2,)))
    answer = ask(features, question(features, "knn", 1, parameters), lambda: evaluate_knn(features, parameters))
    assert answer.digest is not None
    totals = ("pixel_accuracy", "patch_accuracy", "ceiling_miou") if with_masks else ("accuracy",)
    assert [answer.result[name] for name in totals] == [None] * len(totals)
    assert answer.result["absent"] == ["tree"]


def test_bank_labels_take_a_byte_each(segmented: Synthetic) -> None:
    probe = ProbeInput(segmented.features, Subject())
    labels = probe.compact_labels(probe.train_rows)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, probe.labels(probe.train_rows))


def test_a_bank_beyond_the_limit_is_refused_before_a_token_is_read(
    segmented: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "MAX_BANK_ROWS", 10)
    for token_object in (Path(segmented.url) / segmented.features.folder / "tokens.zarr/layer_2/patches/c").rglob("0"):
        if token_object.is_file():
            token_object.write_bytes(bytes(token_object.stat().st_size))  # whoever reads it is told that it is corrupt
    with pytest.raises(ValueError, match="a search ranks at most 10"):
        evaluate_knn(segmented.features, KnnParameters())


def test_knn_with_a_selection_equals_brute_force_on_its_columns(segmented: Synthetic) -> None:
    result = evaluate_knn(segmented.features, KnnParameters(), selection=selection_of(segmented, (1, 4, 5)))
    expected = brute_force(segmented, metric="cosine", k=1, columns=np.array([1, 4, 5]))
    assert result.to_json()["miou"] == pytest.approx(expected["miou"], abs=1e-12)
    assert result.n_features == 3


def test_a_selection_of_other_weights_is_refused(segmented: Synthetic) -> None:
    with pytest.raises(SelectionError, match="within one model"):
        evaluate_knn(segmented.features, KnnParameters(), selection=selection_of(segmented, (0,), weights="cd" * 32))


def test_several_k_from_one_search_equal_single_searches(segmented: Synthetic) -> None:
    together = list(evaluate_knn_for(segmented.features, [7, 1, 3], KnnParameters()))
    alone = [evaluate_knn(segmented.features, KnnParameters(k=k)) for k in (7, 1, 3)]
    assert [result.to_json() for result in together] == [result.to_json() for result in alone]


@pytest.mark.parametrize("on", ["cls", "mean"])
def test_image_knn_equals_brute_force(labelled: Synthetic, on: str) -> None:
    tokens = labelled.cls.astype(np.float64) if on == "cls" else labelled.patches.astype(np.float64).mean(axis=1)
    rows = {s: [r for r in range(30) if labelled.splits[r] == s and labelled.valid[r]] for s in ("train", "test")}
    labels = np.array(labelled.labels)
    guesses = [
        nearest_labels(tokens[rows["train"]], labels[rows["train"]], tokens[r], "cosine", 1)[0] for r in rows["test"]
    ]
    parameters = KnnParameters(subject=Subject(on=on))  # type: ignore[arg-type]  # parametrised
    result = evaluate_knn(labelled.features, parameters).to_json()
    assert result["accuracy"] == pytest.approx(np.mean(guesses == labels[rows["test"]]), abs=1e-12)
    assert (result["n_train"], result["n_test"]) == (len(rows["train"]), len(rows["test"]))


def test_auto_takes_patches_where_there_are_masks_and_cls_elsewhere(segmented: Synthetic, labelled: Synthetic) -> None:
    assert evaluate_knn(segmented.features, KnnParameters()).details["on"] == "patches"
    assert evaluate_knn(labelled.features, KnnParameters()).details["on"] == "cls"


def test_predict_knn_gives_what_evaluate_scores(segmented: Synthetic) -> None:
    rows = segmented.features.rows_of_split("test")
    predicted = predict_knn(segmented.features, KnnParameters(), rows)
    truths = np.stack([patch_truth(segmented.masks[row], (3, 4)).reshape(-1) for row in rows])
    counted = truths < N_CLASSES
    accuracy = (predicted == truths)[counted].mean()
    assert evaluate_knn(segmented.features, KnnParameters()).to_json()["patch_accuracy"] == pytest.approx(accuracy)


def test_predict_knn_refuses_an_invalid_row(segmented: Synthetic) -> None:
    with pytest.raises(ValueError, match="not valid"):
        predict_knn(segmented.features, KnnParameters(), np.array([0, 1]))


def test_more_neighbours_than_bank_tokens_are_refused(labelled: Synthetic) -> None:
    with pytest.raises(ValueError, match="k"):
        evaluate_knn(labelled.features, KnnParameters(k=1000))


def test_patches_without_masks_and_images_without_labels_are_refused(labelled: Synthetic) -> None:
    with pytest.raises(StoreError, match="no masks"):
        evaluate_knn(labelled.features, KnnParameters(subject=Subject(on="patches")))


def test_an_incomplete_feature_set_is_refused_and_with_partial_answered(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=20, commit=slice(0, 2))
    partial = evaluate_knn(data.features, KnnParameters())
    assert partial.n_test == 12 * sum(data.splits[row] == "test" for row in range(16))
    data.features.partial = False
    with pytest.raises(IncompleteError, match="2 of 3 shards"):
        evaluate_knn(data.features, KnnParameters())


def _made_without_type_checks(**values: Any) -> KnnParameters:
    """As a user makes them: the annotations are checked in these tests alone."""
    made = object.__new__(KnnParameters)
    for name, value in {"subject": Subject(), "k": 1, "metric": "cosine", "standardise": False, **values}.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


@pytest.mark.parametrize("k", ["x", 0, -3, 1.5, True, None])
def test_a_k_that_is_no_number_of_neighbours_is_refused(k: Any) -> None:
    with pytest.raises(ValueError, match=f"k {k!r}: give the number of neighbours that vote, a whole number of 1 or"):
        _made_without_type_checks(k=k)
    with pytest.raises(ValueError, match="k 0: give the number of neighbours that vote"):
        KnnParameters(k=0)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric 'manhattan': choose dot, cosine, l2"):
        _made_without_type_checks(metric="manhattan")
