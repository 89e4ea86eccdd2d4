from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluators import LinearParameters, Subject, evaluate_linear
from evaluators.probe_input import ProbeInput, hold_out_images

from .conftest import Synthetic


def rows_of(data: Synthetic, split: str) -> list[int]:
    return [row for row in range(len(data.splits)) if data.splits[row] == split and data.valid[row]]


def test_image_probe_at_one_strength_equals_scikit_learn(labelled: Synthetic) -> None:
    train, test = rows_of(labelled, "train"), rows_of(labelled, "test")
    scaler = StandardScaler().fit(labelled.cls[train].astype(np.float64))
    labels = np.array(labelled.labels)
    l2 = 1e-2
    model = LogisticRegression(C=1 / (len(train) * l2), tol=1e-8, max_iter=5000)
    model.fit(scaler.transform(labelled.cls[train].astype(np.float64)), labels[train])
    expected = model.score(scaler.transform(labelled.cls[test].astype(np.float64)), labels[test])
    result = evaluate_linear(labelled.features, LinearParameters(l2s=(l2,)))
    assert result.to_json()["accuracy"] == pytest.approx(expected, abs=1e-12)
    assert result.details["fitted"] == "in memory by L-BFGS"


def test_patch_probe_is_near_scikit_learn_with_void_as_a_class(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=60, invalid=(5,))
    truth = [
        np.minimum(
            m[np.ix_(*[((np.arange(s) * 2 + 1) * n // (2 * s)) for s, n in zip((3, 4), m.shape, strict=True)])], 3
        )
        for m in data.masks
        if m is not None
    ]
    train, test = rows_of(data, "train"), rows_of(data, "test")
    x, y = data.patches[train].reshape(-1, 6).astype(np.float64), np.concatenate([truth[r].reshape(-1) for r in train])
    scaler, l2 = StandardScaler().fit(x), 1e-3
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-8, max_iter=5000).fit(scaler.transform(x), y)
    queries, answers = (
        data.patches[test].reshape(-1, 6).astype(np.float64),
        np.concatenate([truth[r].reshape(-1) for r in test]),
    )
    counted = answers < 3
    expected = (model.predict(scaler.transform(queries)) == answers)[counted].mean()
    result = evaluate_linear(data.features, LinearParameters(l2s=(l2,)))
    # One patch on the edge between two classes may fall either way: float32 features against float64.
    assert result.to_json()["patch_accuracy"] == pytest.approx(expected, abs=1.5 / counted.sum())


def test_the_strength_is_the_best_on_held_out_images(segmented: Synthetic) -> None:
    result = evaluate_linear(segmented.features, LinearParameters(l2s=(1e3, 1e-2, 1e-4), held_share=0.3))
    accuracies = result.details["held_out_accuracy"]
    assert set(accuracies) == {"1000", "0.01", "0.0001"}
    best = max(accuracies.values())
    strongest_of_best = max(float(l2) for l2, value in accuracies.items() if value == best)
    assert result.details["l2"] == pytest.approx(strongest_of_best)


def test_the_strength_is_chosen_on_what_is_scored(segmented: Synthetic) -> None:
    """Held-out accuracies are shares of the held-out patches whose class is scored."""
    subject = Subject(scored=(1,), seed=2)
    result = evaluate_linear(segmented.features, LinearParameters(subject=subject, l2s=(1e-2, 1e-4), held_share=0.3))
    train = rows_of(segmented, "train")
    _, held = hold_out_images([f"{row:04d}.png" for row in train], share=0.3, seed=2)
    labels = ProbeInput(segmented.features, Subject()).labels(np.asarray(train)[held])
    n_scored, n_all = int((labels == 1).sum()), int((labels < 3).sum())
    assert 0 < n_scored < n_all
    for value in result.details["held_out_accuracy"].values():
        assert value * n_scored == pytest.approx(round(value * n_scored), abs=1e-9)
    assert result.details["scored"] == ["road"]


def test_test_labels_decide_nothing(synthetic: Callable[..., Synthetic]) -> None:
    """Two stores that differ in their test masks alone choose the same strength with the same accuracies."""
    one = synthetic(n_rows=20, seed=1)
    parameters = LinearParameters(l2s=(1e-1, 1e-3), held_share=0.3)
    other = synthetic(n_rows=20, seed=1, splits=[s if s == "train" else "val" for s in one.splits])
    details = [evaluate_linear(data.features, parameters).details for data in (one, other)]
    assert details[0] == details[1]


def test_streamed_probe_is_near_the_one_in_memory(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=300, seed=2)
    in_memory = evaluate_linear(data.features, LinearParameters(l2s=(1e-3,)))
    # 200 training rows of 12 patches and 6 float32 features are 57,600 bytes.
    streamed = evaluate_linear(data.features, LinearParameters(l2s=(1e-2, 1e-3), memory_bytes=20_000, epochs=20))
    assert str(streamed.details["fitted"]).startswith("streamed")
    difference = streamed.to_json()["patch_accuracy"] - in_memory.to_json()["patch_accuracy"]
    assert abs(difference) <= 0.02


def test_linear_repeats_to_the_last_bit(segmented: Synthetic) -> None:
    parameters = LinearParameters(subject=Subject(seed=4))
    first, second = (evaluate_linear(segmented.features, parameters).to_json() for _ in range(2))
    assert first == second
