"""Multinomial logistic regression: in memory by preconditioned L-BFGS, beyond memory by mini-batches.

The loss is mean cross-entropy + l2 / 2 * ||weights||^2, in nats; the bias is not penalised. It is the loss that
scikit-learn's LogisticRegression minimises with C = 1 / (rows * l2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from evaluators.lockstep import Evaluation, InverseCurvature, Problem, minimise
from evaluators.softmax_loss import Covariance, Curvature, LossSums, decompose, sum_losses
from evaluators.tensors import as_tensor

# A class without a training row has no finite best bias; this one is never predicted and adds nothing to a softmax.
_ABSENT_BIAS = -1e9
_PIECE_ROWS = 8_192
_BATCH_ROWS = 4_096
# The curvature is an approximation: a full step of Newton's could overshoot.
_LONGEST_STEP = 0.5
_DAMPING = 0.1
_STREAMED_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A fitted linear classifier: logits are `features @ weights + bias`.

    Attributes:
        weights: one column for each class; 0 for a class without training rows.
        bias: very negative for a class without training rows. Over the other classes weights and bias average to 0.
        l2: strength of the penalty.
        iterations: accepted L-BFGS steps, or epochs of mini-batches.
        loss: penalised loss of this model over all training rows, in nats.
        converged: the loss can fall no further than the tolerance, to second order.
    """

    weights: Float32[np.ndarray, "features classes"]
    bias: Float32[np.ndarray, " classes"]
    l2: float
    iterations: int
    loss: float
    converged: bool


def fit(
    features: Float[np.ndarray, "rows features"],
    labels: Int64[np.ndarray, " rows"],
    *,
    n_classes: int,
    l2: float,
    start: LinearModel | None = None,
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> LinearModel:
    """Fit one model to rows in memory.

    Args:
        features: finite, best standardised; float32 (float64 is computed in double precision throughout).
        labels: classes in 0..n_classes-1; classes may be absent.
        n_classes: number of classes of the model.
        l2: strength of the penalty, positive.
        start: a model to start from.
        max_iterations: bound on the steps.
        tolerance: stop when the loss can still fall by this share of itself at most (or by less than rounding).

    Returns:
        The model; `converged` says whether the tolerance was reached.

    Raises:
        ValueError: no rows, a label outside the classes, or a strength that is not positive.
    """
    return _fit(features, labels, n_classes, [l2], start=start, max_iterations=max_iterations, tolerance=tolerance)[0]


def fit_path(
    features: Float[np.ndarray, "rows features"],
    labels: Int64[np.ndarray, " rows"],
    *,
    n_classes: int,
    l2s: Sequence[float],
    max_iterations: int = 500,
    tolerance: float = 1e-6,
) -> list[LinearModel]:
    """Fit one model for each strength of the penalty, all of them in lockstep: each pass over the rows serves all.

    Args:
        features, labels, n_classes, max_iterations, tolerance: as for `fit`.
        l2s: strengths, positive, in any order.

    Returns:
        One model for each strength, in the order given.

    Raises:
        ValueError: as for `fit`, or there is no strength.
    """
    return _fit(features, labels, n_classes, l2s, start=None, max_iterations=max_iterations, tolerance=tolerance)


def fit_streamed(
    blocks: Callable[[int], Iterable[tuple[Float32[np.ndarray, "_ features"], Int64[np.ndarray, " _"]]]],
    *,
    n_features: int,
    n_classes: int,
    l2: float,
    epochs: int = 5,
    seed: int = 0,
) -> LinearModel:
    """Fit one model by mini-batches, with memory for one block of rows.

    One epoch surveys the rows (mean, covariance, class counts), `epochs` epochs learn, and one sums the loss. Each
    step is Newton's with the curvature of `Curvature`, shortened in proportion to what remains of the epochs, so that
    the noise of the batches averages out. Rows are shuffled within a block only: a block should mix many images.

    Args:
        blocks: gives features and labels, as for `fit`, for the epoch with the given number: 0 surveys, 1 to
            `epochs` learn, `epochs + 1` sums the loss. Every epoch holds the same rows, in any order of blocks.
        n_features, n_classes: size of the model.
        l2: strength of the penalty, positive.
        epochs: how often each row is learnt from.
        seed: of the shuffling; the same seed over the same blocks gives the same model.

    Returns:
        The model, with the loss over all rows; `converged` where it can still fall by 1e-3 of itself at most.

    Raises:
        ValueError: no rows, a label outside the classes, a strength that is not positive, or no epoch.
    """
    _check_strengths([l2])
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; a fit learns from each row at least once. Give 1 or more.")
    counts = torch.zeros(n_classes, dtype=torch.int64)
    mean, covariance = _mean_and_covariance(_counted(blocks(0), counts), n_features)
    present = counts.nonzero()[:, 0].numpy()
    rows_ahead = epochs * int(counts.sum())
    learner = _Learner(_prior(counts[present], n_features), mean, covariance, l2=l2, rows_ahead=rows_ahead)
    shuffle = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        for features, labels in _batches(_tensors(blocks(epoch), present), shuffle):
            learner.learn(features, labels)
    sums = sum_losses(learner.point[None], mean, _tensors(blocks(epochs + 1), present), with_spread=True)
    final = _penalised(sums, 0, learner.point, l2, covariance)
    problem = Problem(learner.point, tolerance=_STREAMED_TOLERANCE, noise=0.0)
    problem.receive(final)
    return LinearModel(
        **_weights_and_bias(learner.point, mean, present, n_classes),
        l2=l2,
        iterations=epochs,
        loss=final.loss,
        converged=problem.converged,
    )


def predict(model: LinearModel, block: Float32[np.ndarray, "rows features"]) -> Int64[np.ndarray, " rows"]:
    """The most likely class of each row; of equal logits the lower class."""
    logits = torch.addmm(as_tensor(model.bias), as_tensor(block), as_tensor(model.weights))
    classes: Int64[np.ndarray, " rows"] = logits.argmax(dim=1).numpy()
    return classes


def _fit(
    features: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    l2s: Sequence[float],
    *,
    start: LinearModel | None,
    max_iterations: int,
    tolerance: float,
) -> list[LinearModel]:
    """Fit every strength in lockstep on the classes that occur."""
    _check(features, labels, n_classes, l2s)
    present = np.unique(labels)
    rows, positions = as_tensor(features), torch.from_numpy(np.searchsorted(present, labels))
    mean, covariance = _mean_and_covariance([rows], rows.shape[1])
    data = _Data(features=rows.contiguous(), labels=positions, mean=mean, covariance=covariance)
    point = _prior(positions.bincount(), rows.shape[1]) if start is None else _parameters(start, present, mean)
    noise = torch.finfo(rows.dtype).eps / 10  # rounding errors of many rows mostly cancel in their mean
    problems = [Problem(point, tolerance=tolerance, noise=noise) for _ in l2s]
    _solve(data, problems, l2s, max_iterations)
    return [
        LinearModel(
            **_weights_and_bias(problem.point, mean, present, n_classes),
            l2=l2,
            iterations=problem.iterations,
            loss=problem.loss,
            converged=problem.converged,
        )
        for problem, l2 in zip(problems, l2s, strict=True)
    ]


def log_losses(
    model: LinearModel, block: Float32[np.ndarray, "rows features"], labels: Int64[np.ndarray, " rows"]
) -> Float32[np.ndarray, " rows"]:
    """Cross-entropy of each row in nats; very large where the label's class had no training row."""
    logits = torch.addmm(as_tensor(model.bias), as_tensor(block), as_tensor(model.weights))
    losses: Float32[np.ndarray, " rows"] = torch.nn.functional.cross_entropy(
        logits, as_tensor(labels), reduction="none"
    ).numpy()
    return losses


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Rows in memory, and what a fit knows of them beforehand; labels count the classes that occur."""

    features: Tensor
    labels: Tensor
    mean: Tensor
    covariance: Covariance


def _solve(data: _Data, problems: Sequence[Problem], l2s: Sequence[float], max_iterations: int) -> None:
    """Minimise the loss of every strength, each from its problem's start."""

    def evaluate(active: Sequence[int], trials: Tensor) -> list[Evaluation]:
        with_spread = any(problems[i].wants_curvature for i in active)
        sums = sum_losses(trials, data.mean, [(data.features, data.labels)], with_spread=with_spread)
        return [_penalised(sums, n, trials[n], l2s[i], data.covariance) for n, i in enumerate(active)]

    minimise(problems, evaluate, max_iterations=max_iterations)


class _Learner:
    """One model that learns from mini-batches."""

    def __init__(self, start: Tensor, mean: Tensor, covariance: Covariance, *, l2: float, rows_ahead: int) -> None:
        self.point = start
        self._mean, self._covariance, self._l2 = mean, covariance, l2
        self._rows_ahead, self._rows_seen, self._batches = rows_ahead, 0, 0
        shares = torch.softmax(start[:, -1], dim=0)
        self._first_spread = torch.diag(shares) - torch.outer(shares, shares)
        self._spread = self._first_spread
        self._curvature = Curvature(self._spread, covariance, l2)

    def learn(self, features: Tensor, labels: Tensor) -> None:
        """Take one step along the gradient of one batch."""
        sums = sum_losses(self.point[None], self._mean, [(features, labels)], with_spread=True)
        gradient = _penalised(sums, 0, self.point, self._l2).gradient
        self._follow_spread(sums)
        # A batch of few rows for each feature overstates some directions: such steps are shorter.
        share = len(labels) / (len(labels) + features.shape[1])
        remaining = 1 - self._rows_seen / self._rows_ahead
        self.point = self.point - _LONGEST_STEP * share * remaining * self._curvature.solve(gradient)
        self._rows_seen += len(labels)

    def _follow_spread(self, sums: LossSums) -> None:
        """Average the spread of the classes over the last batches, and renew the curvature now and then."""
        assert sums.spread is not None
        self._batches += 1
        newest = max(1 / (self._batches + 1), 0.05)
        self._spread = (1 - newest) * self._spread + newest * sums.spread[0] / sums.rows
        if self._batches & (self._batches - 1) == 0 or self._batches % 16 == 0:
            # Confident predictions have next to no curvature until one of them is wrong: keep some of the first.
            damped = self._spread + _DAMPING * self._first_spread
            self._curvature = Curvature(damped, self._covariance, self._l2)


def _counted(blocks: Iterable[tuple[np.ndarray, np.ndarray]], counts: Tensor) -> Iterator[Tensor]:
    """The features of blocks, while their labels are counted into `counts`."""
    for features, labels in blocks:
        if len(labels):
            _check_labels(labels, len(counts))
            counts += as_tensor(labels).bincount(minlength=len(counts))
            yield as_tensor(features)


def _batches(blocks: Iterable[tuple[Tensor, Tensor]], shuffle: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of blocks, shuffled within each, in batches of one size; what is left of a block joins the next."""
    left: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        order = torch.randperm(len(block[1]), generator=shuffle)
        left.append((block[0][order], block[1][order]))
        if sum(len(labels) for _, labels in left) < _BATCH_ROWS:
            continue
        features, labels = (torch.cat(parts) for parts in zip(*left, strict=True))
        whole = len(labels) // _BATCH_ROWS * _BATCH_ROWS
        for start in range(0, whole, _BATCH_ROWS):
            yield features[start : start + _BATCH_ROWS], labels[start : start + _BATCH_ROWS]
        left = [(features[whole:].clone(), labels[whole:].clone())]
    if sum(len(labels) for _, labels in left):
        features, labels = (torch.cat(parts) for parts in zip(*left, strict=True))
        yield features, labels


def _tensors(blocks: Iterable[tuple[np.ndarray, np.ndarray]], present: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks as tensors, with labels that count the `present` classes."""
    for features, labels in blocks:
        yield as_tensor(features), torch.from_numpy(np.searchsorted(present, labels))


def _penalised(
    sums: LossSums, which: int, point: Tensor, l2: float, covariance: Covariance | None = None
) -> Evaluation:
    """One model's mean loss with penalty, its gradient, and its curvature where all it takes is known."""
    weights = point[:, :-1]
    gradient = sums.gradient[which] / sums.rows
    gradient[:, :-1] += l2 * weights
    # The same for all classes is no change of the model; what rounding leaves of it would only be amplified.
    gradient -= gradient.mean(dim=0)
    inverse = None
    if sums.spread is not None and covariance is not None:
        spread, known = sums.spread[which] / sums.rows, covariance

        def inverse() -> InverseCurvature:
            return Curvature(spread, known, l2).solve

    loss = float(sums.loss[which]) / sums.rows + l2 / 2 * float(weights.square().sum())
    return Evaluation(loss=loss, gradient=gradient, inverse_curvature=inverse)


def _mean_and_covariance(batches: Iterable[Tensor], features: int) -> tuple[Tensor, Covariance]:
    """Mean and covariance of the rows of all batches, merged as moments are."""
    count, mean = 0, torch.zeros(features, dtype=torch.float64)
    scatter = torch.zeros((features, features), dtype=torch.float64)
    for batch in batches:
        for rows in torch.split(batch, _PIECE_ROWS):
            of_piece = rows.mean(dim=0, dtype=torch.float64)
            centred = rows - of_piece.to(rows.dtype)
            difference = of_piece - mean
            count += len(rows)
            mean += difference * (len(rows) / count)
            scatter += centred.T @ centred
            scatter += torch.outer(difference, difference) * (len(rows) * (count - len(rows)) / count)
    if count == 0:
        raise ValueError("there are 0 rows; a fit needs at least one. Check that the split holds valid, labelled rows.")
    return mean, decompose(scatter / count)


def _prior(counts: Tensor, features: int) -> Tensor:
    """Parameters that predict each class as often as it occurs, whatever the features."""
    parameters = torch.zeros((len(counts), features + 1), dtype=torch.float64)
    logarithms = counts.double().log()
    parameters[:, -1] = logarithms - logarithms.mean()
    return parameters


def _parameters(model: LinearModel, present: np.ndarray, mean: Tensor) -> Tensor:
    """The parameters of a model's `present` classes, centred over them, with the bias about the mean."""
    weights = torch.from_numpy(model.weights[:, present].astype(np.float64)).T
    bias = torch.from_numpy(model.bias[present].astype(np.float64)) + weights @ mean
    parameters = torch.cat([weights, bias[:, None]], dim=1)
    return parameters - parameters.mean(dim=0)


class _Arrays(TypedDict):
    """The arrays of a model."""

    weights: np.ndarray
    bias: np.ndarray


def _weights_and_bias(point: Tensor, mean: Tensor, present: np.ndarray, n_classes: int) -> _Arrays:
    """The arrays of a model over all classes, from the parameters of the `present` ones."""
    weights = np.zeros((point.shape[1] - 1, n_classes), dtype=np.float32)
    bias = np.full(n_classes, _ABSENT_BIAS, dtype=np.float32)
    point = point - point.mean(dim=0)  # moves all classes alike, which no prediction shows
    weights[:, present] = point[:, :-1].T.numpy()
    bias[present] = (point[:, -1] - point[:, :-1] @ mean).numpy()
    return {"weights": weights, "bias": bias}


def _check(features: np.ndarray, labels: np.ndarray, n_classes: int, l2s: Sequence[float]) -> None:
    """Refuse what no fit in memory can use."""
    if len(features) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{len(features)} rows of features with {len(labels)} labels; a fit needs a row, and a label for each. "
            "Read features and labels of the same split."
        )
    _check_labels(labels, n_classes)
    _check_strengths(l2s)


def _check_strengths(l2s: Sequence[float]) -> None:
    """Refuse strengths without which the best weights may not exist."""
    if not len(l2s) or min(l2s) <= 0:
        raise ValueError(
            f"strengths {list(l2s)}; a fit needs at least one, and each above 0, or separable classes have no best "
            "weights. Give 1e-8 for next to no penalty."
        )


def _check_labels(labels: np.ndarray, n_classes: int) -> None:
    """Refuse labels outside the classes."""
    if not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"labels span {labels.min()}..{labels.max()}; with {n_classes} classes they must lie in "
            f"0..{n_classes - 1}. Count void as a class of its own, or leave void rows out."
        )
