"""Logistic regression against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from evaluators.linear import Goal, LinearModel, fit, fit_blocks, fit_path, log_losses, predict

Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]

STRENGTHS = [1e-1, 1e-2, 1e-4]


def tokens(rows: int, *, features: int = 8, n_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of unequal scale and overlapping, unbalanced classes, much as patch tokens are."""
    world = np.random.default_rng(0)
    mixing = world.normal(size=(features, features)) * np.geomspace(2, 0.1, features)[:, None]
    centres = 0.7 * world.normal(size=(n_classes, features))
    rng = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(n_classes)
    labels = rng.choice(n_classes, size=rows, p=shares / shares.sum())
    values = (rng.normal(size=(rows, features)) + centres[labels]) @ mixing + 0.5
    return values.astype(np.float32), labels.astype(np.int64)


def loss_of(weights: np.ndarray, bias: np.ndarray, l2: float, features: np.ndarray, labels: np.ndarray) -> float:
    """The penalised loss, in double precision."""
    weights = weights.astype(np.float64)
    logits = features.astype(np.float64) @ weights + bias
    # Scikit-learn's log_loss takes no row's loss for more than 36 nats.
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(losses.mean() + l2 / 2 * (weights**2).sum())


def penalised_loss(model: LinearModel, features: np.ndarray, labels: np.ndarray) -> float:
    return loss_of(model.weights, model.bias, model.l2, features, labels)


def assert_same_model(left: LinearModel, right: LinearModel, *, atol: float) -> None:
    np.testing.assert_allclose(left.weights, right.weights, atol=atol)
    np.testing.assert_allclose(left.bias, right.bias, atol=atol)


def in_blocks(features: np.ndarray, labels: np.ndarray, size: int) -> Blocks:
    return lambda: (
        (features[start : start + size], labels[start : start + size]) for start in range(0, len(labels), size)
    )


@pytest.mark.parametrize("l2", STRENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_fit_is_that_of_scikit_learn(l2: float, dtype: type, shift: float) -> None:
    rows, labels = tokens(1_000)
    features: np.ndarray = (rows + shift).astype(dtype)
    oracle = LogisticRegression(C=1 / (len(labels) * l2), solver="newton-cholesky", tol=1e-12)
    oracle.fit(features.astype(np.float64), labels)
    weights, bias = oracle.coef_.T, oracle.intercept_
    model = fit(features, labels, n_classes=4, l2=l2, goal=Goal(tolerance=1e-15))
    # Moving all classes alike changes no prediction, so both sides are compared centred over the classes.
    close = {"atol": (3e-6 if dtype is np.float64 else 1e-2) * np.abs(weights).max()}
    np.testing.assert_allclose(model.weights, weights - weights.mean(axis=1, keepdims=True), **close)
    np.testing.assert_allclose(model.bias, bias - bias.mean(), atol=10 * close["atol"])
    assert model.loss == pytest.approx(loss_of(weights, bias, l2, features, labels), rel=1e-6)
    assert model.loss == pytest.approx(penalised_loss(model, features, labels), rel=1e-6)


def test_a_path_is_the_fits_of_its_strengths_in_the_order_given() -> None:
    features, labels = tokens(2_000)
    strengths = [STRENGTHS[1], STRENGTHS[2], STRENGTHS[0]]
    path = fit_path(features, labels, n_classes=4, l2s=strengths, goal=Goal(tolerance=1e-9))
    assert [model.l2 for model in path] == strengths
    for model in path:
        alone = fit(features, labels, n_classes=4, l2=model.l2, goal=Goal(tolerance=1e-9))
        assert model.converged
        assert model.loss == pytest.approx(alone.loss, rel=1e-6)
        assert_same_model(model, alone, atol=1e-2 * float(np.abs(alone.weights).max()))


def test_a_fit_is_the_same_every_time() -> None:
    features, labels = tokens(2_000)
    first, second = (fit(features, labels, n_classes=4, l2=1e-3) for _ in range(2))
    assert_same_model(first, second, atol=0)
    assert first.loss == second.loss


def test_absent_classes_change_nothing_and_are_never_predicted() -> None:
    features, labels = tokens(1_500, n_classes=3)
    spread_out = np.array([1, 4, 6])[labels]
    model = fit(features, spread_out, n_classes=8, l2=1e-3)
    compact = fit(features, labels, n_classes=3, l2=1e-3)
    np.testing.assert_array_equal(model.weights[:, [1, 4, 6]], compact.weights)
    np.testing.assert_array_equal(model.bias[[1, 4, 6]], compact.bias)
    np.testing.assert_array_equal(model.weights[:, [0, 2, 3, 5, 7]], 0)
    np.testing.assert_array_equal(predict(model, features * 100), np.array([1, 4, 6])[predict(compact, features * 100)])
    assert np.isfinite(model.bias).all()
    np.testing.assert_array_equal(log_losses(model, features, spread_out), log_losses(compact, features, labels))


def test_one_class_alone_is_always_predicted() -> None:
    features, _ = tokens(50)
    model = fit(features, np.full(50, 2), n_classes=4, l2=1e-3)
    assert (model.loss, model.iterations, model.converged) == (0, 0, True)
    np.testing.assert_array_equal(predict(model, features), 2)


def test_classes_that_a_line_separates_are_fitted() -> None:
    features = np.array([[-1.0], [-2.0], [1.0], [2.0]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1])
    model = fit(features, labels, n_classes=2, l2=1e-6)
    assert model.converged
    np.testing.assert_array_equal(predict(model, features), labels)


def test_constant_and_repeated_features_do_no_harm() -> None:
    features, labels = tokens(800, features=6)
    doubled = np.concatenate([features, features, np.ones((800, 1), dtype=np.float32)], axis=1)
    # Two equal columns share a weight w as w/2 + w/2, at half the penalty: the fit of one column with half the l2.
    model = fit(doubled, labels, n_classes=4, l2=1e-2, goal=Goal(tolerance=1e-10))
    single = fit(features, labels, n_classes=4, l2=5e-3, goal=Goal(tolerance=1e-10))
    assert model.loss == pytest.approx(single.loss, rel=1e-6)
    np.testing.assert_allclose(model.weights[:6] + model.weights[6:12], single.weights, atol=1e-3)


def test_a_start_at_the_solution_takes_no_step() -> None:
    features, labels = tokens(2_000)
    solution = fit(features, labels, n_classes=5, l2=1e-3, goal=Goal(tolerance=1e-7))
    again = fit(features, labels, n_classes=5, l2=1e-3, goal=Goal(tolerance=1e-5), start=solution)
    assert again.iterations == 0
    assert_same_model(again, solution, atol=1e-5)


def test_a_bound_on_the_iterations_is_kept_and_told() -> None:
    features, labels = tokens(2_000)
    model = fit(features, labels, n_classes=4, l2=1e-5, goal=Goal(tolerance=1e-10, max_iterations=2))
    assert model.iterations == 2
    assert not model.converged
    assert model.loss == pytest.approx(penalised_loss(model, features, labels), rel=1e-5)


def in_images(rows: int, *, features: int = 48, n_classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Standardised tokens that are alike within an image, of classes that spread differently: what makes a fit slow."""
    rng = np.random.default_rng(1)
    shares = np.arange(1.0, n_classes + 1) ** -2
    labels = rng.choice(n_classes, size=rows, p=shares / shares.sum()).astype(np.int64)
    centres = 2 * rng.normal(size=(n_classes, features)) * np.arange(1.0, features + 1) ** -0.8
    values = rng.normal(size=(rows, features)) + centres[labels]
    values += rng.normal(size=(rows // 64 + 1, features))[np.arange(rows) // 64]
    values *= np.exp(2 * rng.normal(size=(n_classes, features)))[labels]
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32), labels


@pytest.mark.parametrize("order", ["mixed", "sorted by class"])
def test_passes_over_blocks_reach_the_loss_in_memory_whatever_the_order_of_rows(order: str) -> None:
    features, labels = in_images(6_000)
    in_memory = fit(features, labels, n_classes=9, l2=1e-3)
    if order == "sorted by class":
        sorted_rows = np.argsort(labels, kind="stable")
        features, labels = features[sorted_rows], labels[sorted_rows]
    for size in (250, 6_000):
        (model,) = fit_blocks(
            in_blocks(features, labels, size), n_classes=9, l2s=[1e-3], goal=Goal(tolerance=1e-5, most_fall=3e-4)
        )
        assert model.converged
        assert model.loss == pytest.approx(in_memory.loss, rel=1e-3)
        assert model.loss == pytest.approx(penalised_loss(model, features, labels), rel=1e-5)


def test_a_fit_in_passes_is_that_of_scikit_learn() -> None:
    features, labels = in_images(4_000, features=24)
    oracle = LogisticRegression(C=1 / (len(labels) * 1e-3), solver="newton-cholesky", tol=1e-8)
    oracle.fit(features.astype(np.float64), labels)
    best = loss_of(oracle.coef_.T, oracle.intercept_, 1e-3, features, labels)
    (model,) = fit_blocks(
        in_blocks(features, labels, 300), n_classes=8, l2s=[1e-3], goal=Goal(tolerance=1e-5, most_fall=3e-4)
    )
    assert best <= model.loss + 1e-6 <= best * (1 + 1e-3)


def test_nearly_every_step_of_a_fit_is_evaluated_once() -> None:
    features, labels = in_images(6_000, n_classes=12)
    passes = 0

    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal passes
        passes += 1
        yield features, labels

    (model,) = fit_blocks(counted, n_classes=12, l2s=[1e-4])
    assert model.converged
    assert passes <= 1.25 * model.iterations  # one of them surveys the rows; twice as many before


def test_a_bound_on_the_passes_is_kept_and_told() -> None:
    features, labels = in_images(2_000)
    passes = 0

    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal passes
        passes += 1
        yield features, labels

    model, other = fit_blocks(counted, n_classes=8, l2s=[1e-4, 1e-5], goal=Goal(max_passes=7))
    assert passes == 7
    assert not model.converged
    assert not other.converged
    assert model.loss == pytest.approx(penalised_loss(model, features, labels), rel=1e-5)


def test_a_class_that_the_start_has_never_seen_is_learnt() -> None:
    features, labels = tokens(3_000)
    start = fit(features[labels < 3], labels[labels < 3], n_classes=4, l2=1e-3)
    (model,) = fit_blocks(in_blocks(features, labels, 500), n_classes=4, l2s=[1e-3], starts=[start])
    assert model.converged
    assert model.loss == pytest.approx(fit(features, labels, n_classes=4, l2=1e-3).loss, rel=1e-5)


def test_a_pass_holds_one_block_at_a_time() -> None:
    features, labels = tokens(1_000)
    alive = most = 0

    class Counted(np.ndarray):
        """A block that is counted while anything refers to its memory."""

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal alive, most
        for start in range(0, 1_000, 100):
            alive += 1
            most = max(most, alive)
            yield features[start : start + 100].copy().view(Counted), labels[start : start + 100]

    fit_blocks(blocks, n_classes=4, l2s=[1e-3])
    assert most <= 2  # the one in hand, and the next while it is made


def test_predict_breaks_ties_towards_the_lower_class() -> None:
    model = LinearModel(
        weights=np.zeros((2, 3), dtype=np.float32),
        bias=np.array([0, 1, 1], dtype=np.float32),
        l2=1.0,
        iterations=0,
        loss=0.0,
        converged=True,
    )
    np.testing.assert_array_equal(predict(model, np.ones((4, 2), dtype=np.float32)), 1)


def test_log_losses_are_those_of_scikit_learn() -> None:
    features, labels = tokens(500)
    model = fit(features, labels, n_classes=4, l2=1e-2)
    unpenalised = penalised_loss(replace(model, l2=0.0), features, labels)
    assert log_losses(model, features, labels).mean(dtype=np.float64) == pytest.approx(unpenalised, rel=1e-5)
    assert model.loss == pytest.approx(unpenalised + 5e-3 * float((model.weights**2).sum()), rel=1e-5)


def test_read_only_rows_are_fitted_without_a_warning() -> None:
    features, labels = tokens(300)
    expected = fit(features, labels, n_classes=4, l2=1e-2)
    features.flags.writeable = labels.flags.writeable = False
    assert_same_model(fit(features, labels, n_classes=4, l2=1e-2), expected, atol=0)
    predict(expected, features)


def test_rows_and_labels_that_do_not_fit_are_refused() -> None:
    features, labels = tokens(10)
    with pytest.raises(ValueError, match="0 rows of features with 0 labels"):
        fit(features[:0], labels[:0], n_classes=4, l2=1.0)
    with pytest.raises(ValueError, match="with 2 classes they must lie in"):
        fit(features, np.full(10, 2), n_classes=2, l2=1.0)
    with pytest.raises(ValueError, match="with 2 classes they must lie in"):
        fit_blocks(in_blocks(features, np.full(10, -1), 5), n_classes=2, l2s=[1.0])
    with pytest.raises(ValueError, match="there are 0 rows"):
        fit_blocks(list, n_classes=2, l2s=[1.0])


@pytest.mark.parametrize("strengths", [[], [1e-3, 0.0], [-1.0]])
def test_strengths_without_a_best_fit_are_refused(strengths: list[float]) -> None:
    features, labels = tokens(10)
    with pytest.raises(ValueError, match="each above 0"):
        fit_path(features, labels, n_classes=4, l2s=strengths)


def test_fewer_passes_than_any_fit_takes_are_refused() -> None:
    features, labels = tokens(10)
    with pytest.raises(ValueError, match="max_passes is 1"):
        fit_blocks(in_blocks(features, labels, 5), n_classes=4, l2s=[1.0], goal=Goal(max_passes=1))


def test_the_number_of_threads_is_left_alone() -> None:
    threads = torch.get_num_threads()
    features, labels = tokens(300)
    fit(features, labels, n_classes=4, l2=1e-2)
    assert torch.get_num_threads() == threads
