import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluators import LinearParameters, Subject, evaluate_linear, linear_memory
from evaluators.errors import AskedError
from evaluators.held_out import hold_out_images
from evaluators.linear_memory import plan_memory
from evaluators.probe_input import ProbeInput
from feature_store import StoreError

from .conftest import Synthetic, build


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


@pytest.fixture
def beyond_memory(synthetic: Callable[..., Synthetic]) -> Synthetic:
    """360 rows sorted by class; the 240 that train have 15,360 patches, 2.9 MB as float32."""
    return synthetic(n_rows=360, grid=(8, 8), n_features=48, by_class=True, seed=2)


# It holds what a fit of three strengths takes, and a fourth of the patches.
LITTLE = 3_200_000


@pytest.fixture
def _small_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what libraries take whatever the store: small stores are beyond little memory then."""
    monkeypatch.setattr(linear_memory, "working_bytes", lambda _n_features: 0)


@pytest.mark.usefixtures("_small_libraries")
def test_in_passes_a_probe_of_rows_sorted_by_class_is_the_one_in_memory(beyond_memory: Synthetic) -> None:
    l2s = (1e-1, 1e-2, 1e-3)
    in_memory = evaluate_linear(beyond_memory.features, LinearParameters(l2s=l2s))
    said: list[str] = []
    streamed = evaluate_linear(
        beyond_memory.features,
        LinearParameters(l2s=l2s, memory_bytes=LITTLE, all_rows=True),
        say=said.append,
    )
    assert (in_memory.details["fitted"], streamed.details["fitted"]) == (
        "in memory by L-BFGS",
        "in passes over the store by L-BFGS",
    )
    assert streamed.details["converged"] is in_memory.details["converged"] is True
    assert streamed.details["l2"] == in_memory.details["l2"]
    assert streamed.details["loss"] == pytest.approx(in_memory.details["loss"], rel=1e-3)
    assert streamed.n_train == in_memory.n_train
    assert streamed.details["sample"] is in_memory.details["sample"] is None
    for l2, accuracy in in_memory.details["held_out_accuracy"].items():
        assert streamed.details["held_out_accuracy"][l2] == pytest.approx(accuracy, abs=2e-3)
    accuracies = [result.to_json()["patch_accuracy"] for result in (streamed, in_memory)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=2e-3)
    assert len(said) == 1
    assert "in passes" in said[0]
    assert "minutes" in said[0]


@pytest.mark.usefixtures("_small_libraries")
def test_the_size_of_what_is_read_at_a_time_does_not_decide_the_model(beyond_memory: Synthetic) -> None:
    losses = [
        evaluate_linear(
            beyond_memory.features, LinearParameters(l2s=(1e-3,), memory_bytes=memory_bytes, all_rows=True)
        ).details["loss"]
        for memory_bytes in (1_400_000, LITTLE)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.usefixtures("_small_libraries")
def test_patches_beyond_memory_are_a_stated_sample_of_whole_images(beyond_memory: Synthetic) -> None:
    said: list[str] = []
    parameters = LinearParameters(subject=Subject(seed=5), l2s=(1e-1, 1e-2, 1e-3), memory_bytes=LITTLE)
    result = evaluate_linear(beyond_memory.features, parameters, say=said.append)
    sample = result.details["sample"]
    assert (sample["of"], sample["seed"]) == (240, 5)
    assert 2 <= sample["images"] < 240
    assert result.n_train == sample["images"] * 64
    assert f"{sample['images']} of 240 training images" in said[0]
    assert "--all-rows" in said[0]
    again = evaluate_linear(beyond_memory.features, parameters)
    assert again.to_json() == result.to_json()
    other = evaluate_linear(beyond_memory.features, replace(parameters, subject=Subject(seed=6)))
    assert other.details["loss"] != result.details["loss"]


@pytest.mark.usefixtures("_small_libraries")
def test_whole_images_beyond_memory_are_never_a_sample(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=300, grid=(1, 1), n_features=24, with_masks=False)
    parameters = LinearParameters(subject=Subject(on="cls"), l2s=(1e-2,))
    in_memory = evaluate_linear(data.features, parameters)
    tight = evaluate_linear(data.features, replace(parameters, memory_bytes=175_000))
    assert str(tight.details["fitted"]).startswith("in passes")
    assert tight.n_train == in_memory.n_train == 200
    assert tight.details["loss"] == pytest.approx(in_memory.details["loss"], rel=1e-3)


@pytest.mark.usefixtures("_small_libraries")
def test_max_passes_ends_a_fit_and_the_record_says_that_it_did_not_converge(beyond_memory: Synthetic) -> None:
    parameters = LinearParameters(l2s=(1e-4,), memory_bytes=LITTLE, all_rows=True, max_passes=3)
    result = evaluate_linear(beyond_memory.features, parameters)
    assert (result.details["converged"], result.details["passes"]) == (False, 3)


@pytest.mark.usefixtures("_small_libraries")
def test_a_choice_of_strength_that_max_passes_cuts_short_is_refused(beyond_memory: Synthetic) -> None:
    parameters = LinearParameters(l2s=(1e-2, 1e-4), memory_bytes=LITTLE, all_rows=True, max_passes=7)
    with pytest.raises(StoreError, match=r"--max-passes 7: .* one strength with --l2"):
        evaluate_linear(beyond_memory.features, parameters)
    with pytest.raises(StoreError, match=r"--max-passes 3: .* one strength with --l2"):
        evaluate_linear(beyond_memory.features, replace(parameters, max_passes=3))


def test_less_memory_than_any_fit_takes_is_refused_and_says_how_much_it_takes(beyond_memory: Synthetic) -> None:
    with pytest.raises(StoreError, match=r"--memory 0.0001 GB: .* takes 0.0\d+ GB"):
        evaluate_linear(beyond_memory.features, LinearParameters(memory_bytes=100_000, all_rows=True))


@pytest.mark.parametrize("all_rows", [True, False])
def test_the_memory_that_a_refusal_names_is_enough(beyond_memory: Synthetic, all_rows: bool) -> None:
    little = LinearParameters(l2s=(1.0,), memory_bytes=100_000, all_rows=all_rows)
    probe = ProbeInput(beyond_memory.features, Subject())
    with pytest.raises(AskedError) as refused:
        plan_memory(probe, little)
    (named,) = re.findall(r"takes ([\d.]+) GB", str(refused.value))
    plan = plan_memory(probe, replace(little, memory_bytes=round(float(named) * 1e9)))
    assert plan.how == ("streamed" if all_rows else "sample")
    assert all_rows or plan.room_tokens >= 2 * probe.tokens_per_row


def test_linear_repeats_to_the_last_bit(segmented: Synthetic) -> None:
    parameters = LinearParameters(subject=Subject(seed=4))
    first, second = (evaluate_linear(segmented.features, parameters).to_json() for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny store, and one whose training patches are 105 MB as float32."""
    tiny, large = (tmp_path_factory.mktemp("memory") / name for name in ("tiny", "large"))
    build(tiny, n_rows=16)
    build(large, n_rows=400, grid=(32, 32), n_features=96)
    return tiny, large


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's to tell")
@pytest.mark.parametrize(
    ("options", "fitted"),
    [
        ({"all_rows": True, "l2s": [0.01], "max_passes": 4}, "in passes over the store by L-BFGS"),
        ({"l2s": [0.1, 0.01]}, "in memory by L-BFGS"),  # a sample
    ],
)
def test_the_memory_that_is_named_bounds_what_is_really_used(
    large: tuple[Path, Path], options: dict[str, object], fitted: str
) -> None:
    """By the peak of resident memory over what imports take; that needs a process of its own, hence its time."""
    words = json.dumps({"memory_bytes": 70_000_000, **options})
    code = [sys.executable, "-m", "tests.evaluators.memory_process", *map(str, large), words]
    told = json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)
    assert told["fitted"] == fitted
    assert (told["sample"] is None) == ("all_rows" in options)
    assert told["rise"] <= 70_000_000
