"""Multinomial logistic regression by preconditioned L-BFGS, over rows in memory or read anew for every pass.

The loss is mean cross-entropy + l2 / 2 * ||weights||^2, in nats; the bias is not penalised. It is the loss that
scikit-learn's LogisticRegression minimises with C = 1 / (rows * l2). Loss and gradient are sums over rows, so a fit
needs no row twice at a time, and neither the order of the rows nor how they are cut into blocks decides the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from evaluators.lockstep import Evaluation, InverseCurvature, Problem, minimise
from evaluators.softmax_loss import Covariance, Curvature, LossSums, decompose, sum_losses
from evaluators.tensors import as_tensor

# A class without a training row has no finite best bias; this one is never predicted and adds nothing to a softmax.
_ABSENT_BIAS = -1e9
PIECE_ROWS = 8_192

Block: TypeAlias = tuple[Float[np.ndarray, "_ features"], Int64[np.ndarray, " _"]]
# One pass over the rows: features and labels, block by block.
Blocks: TypeAlias = Callable[[], Iterable[Block]]


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A fitted linear classifier: logits are `features @ weights + bias`.

    Attributes:
        weights: one column for each class; 0 for a class without training rows.
        bias: very negative for a class without training rows. Over the other classes weights and bias average to 0.
        l2: strength of the penalty.
        iterations: accepted L-BFGS steps.
        loss: penalised loss of this model over all training rows, in nats.
        converged: the loss can fall no further than the tolerance, to second order.
    """

    weights: Float32[np.ndarray, "features classes"]
    bias: Float32[np.ndarray, " classes"]
    l2: float
    iterations: int
    loss: float
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When a fit ends.

    Attributes:
        tolerance: when the loss can still fall by this share of itself at most (or by less than rounding), as far as
            the curvature is known. It is known roughly: the true share has been 3 to 30 times as much.
        most_fall: only when the last ten steps, besides, lowered the loss by this share at most; None asks nothing.
        max_iterations: bound on the steps.
        max_passes: bound on the passes over the rows, 2 or more; None for none.
    """

    tolerance: float = 1e-7
    most_fall: float | None = None
    max_iterations: int = 500
    max_passes: int | None = None

    def __post_init__(self) -> None:
        if self.max_passes is not None and self.max_passes < 2:
            raise ValueError(
                f"max_passes is {self.max_passes}; a fit surveys the rows and evaluates a model. Give 2 or more."
            )


_CLOSE = Goal()


def fit(
    features: Float[np.ndarray, "rows features"],
    labels: Int64[np.ndarray, " rows"],
    *,
    n_classes: int,
    l2: float,
    start: LinearModel | None = None,
    goal: Goal = _CLOSE,
) -> LinearModel:
    """Fit one model to rows in memory.

    Args:
        features: finite, best standardised; float32 (float64 is computed in double precision throughout).
        labels: classes in 0..n_classes-1; classes may be absent.
        n_classes: number of classes of the model.
        l2: strength of the penalty, positive.
        start: a model to start from.
        goal: when to end.

    Returns:
        The model; `converged` says whether the tolerance was reached.

    Raises:
        ValueError: no rows, a label outside the classes, or a strength that is not positive.
    """
    _check_lengths(features, labels)
    starts = None if start is None else [start]
    (model,) = fit_blocks(lambda: [(features, labels)], n_classes=n_classes, l2s=[l2], starts=starts, goal=goal)
    return model


def fit_path(
    features: Float[np.ndarray, "rows features"],
    labels: Int64[np.ndarray, " rows"],
    *,
    n_classes: int,
    l2s: Sequence[float],
    goal: Goal = _CLOSE,
) -> list[LinearModel]:
    """Fit one model for each strength of the penalty to rows in memory: `fit_blocks` of one block."""
    _check_lengths(features, labels)
    return fit_blocks(lambda: [(features, labels)], n_classes=n_classes, l2s=l2s, goal=goal)


def fit_blocks(
    blocks: Blocks,
    *,
    n_classes: int,
    l2s: Sequence[float],
    starts: Sequence[LinearModel] | None = None,
    goal: Goal = _CLOSE,
) -> list[LinearModel]:
    """Fit one model for each strength of the penalty, all of them in lockstep: each pass over the rows serves all.

    Args:
        blocks: makes one pass over the rows, as for `fit`, block by block; called once to survey the rows (mean,
            covariance, class counts), then once for every evaluation. Every pass holds the same rows.
        n_classes: as for `fit`.
        l2s: strengths, positive, in any order.
        starts: a model to start from for each strength.
        goal: when to end; a model that its bounds stop says that it has not converged.

    Returns:
        One model for each strength, in the order given.

    Raises:
        ValueError: as for `fit`, or there is no strength.
    """
    _check_strengths(l2s)
    survey = _survey(blocks, n_classes)
    prior = _prior(survey.counts, len(survey.mean))
    points = [prior] * len(l2s) if starts is None else [_parameters(start, survey, prior) for start in starts]
    noise = torch.finfo(survey.dtype).eps / 10  # rounding errors of many rows mostly cancel in their mean
    problems = [Problem(point, tolerance=goal.tolerance, noise=noise, most_fall=goal.most_fall) for point in points]

    def evaluate(active: Sequence[int], trials: Tensor) -> list[Evaluation]:
        with_spread = any(problems[i].wants_curvature for i in active)
        sums = sum_losses(trials, survey.mean, _tensors(blocks(), survey.present), with_spread=with_spread)
        return [_penalised(sums, n, trials[n], l2s[i], survey.covariance) for n, i in enumerate(active)]

    minimise(
        problems,
        evaluate,
        max_iterations=goal.max_iterations,
        max_evaluations=None if goal.max_passes is None else goal.max_passes - 1,
    )
    return [
        LinearModel(
            **_weights_and_bias(problem.point, survey.mean, survey.present, n_classes),
            l2=l2,
            iterations=problem.iterations,
            loss=problem.loss,
            converged=problem.converged,
        )
        for problem, l2 in zip(problems, l2s, strict=True)
    ]


def predict(model: LinearModel, block: Float32[np.ndarray, "rows features"]) -> Int64[np.ndarray, " rows"]:
    """The most likely class of each row; of equal logits the lower class."""
    weights, bias, classes = as_tensor(model.weights), as_tensor(model.bias), np.empty(len(block), dtype=np.int64)
    for first in range(0, len(block), PIECE_ROWS):
        piece = slice(first, first + PIECE_ROWS)
        classes[piece] = torch.addmm(bias, as_tensor(block[piece]), weights).argmax(dim=1).numpy()
    return classes


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
class _Survey:
    """What a fit knows of the rows beforehand.

    Attributes:
        present: the classes that occur, ascending; all else counts these alone.
        counts: rows of each class that occurs.
        mean, covariance: of the features.
        dtype: of the features.
    """

    present: np.ndarray
    counts: Tensor
    mean: Tensor
    covariance: Covariance
    dtype: torch.dtype


def _survey(blocks: Blocks, n_classes: int) -> _Survey:
    """One pass over the rows.

    Raises:
        ValueError: no rows, or a label outside the classes.
    """
    counts = torch.zeros(n_classes, dtype=torch.int64)
    dtypes: set[torch.dtype] = set()

    def features() -> Iterator[Tensor]:
        for block, labels in blocks():
            if len(labels):
                _check_labels(labels, n_classes)
                counts.add_(as_tensor(labels).bincount(minlength=n_classes))
                dtypes.add(as_tensor(block).dtype)
                yield as_tensor(block)

    mean, covariance = _mean_and_covariance(features())
    present = counts.nonzero()[:, 0]
    return _Survey(
        present=present.numpy(), counts=counts[present], mean=mean, covariance=covariance, dtype=dtypes.pop()
    )


def _tensors(blocks: Iterable[Block], present: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks as tensors, with labels that count the `present` classes."""
    for features, labels in blocks:
        yield as_tensor(features).contiguous(), torch.from_numpy(np.searchsorted(present, labels))


def _penalised(sums: LossSums, which: int, point: Tensor, l2: float, covariance: Covariance) -> Evaluation:
    """One model's mean loss with penalty, its gradient, and its curvature where the spread was summed."""
    weights = point[:, :-1]
    gradient = sums.gradient[which] / sums.rows
    gradient[:, :-1] += l2 * weights
    # The same for all classes is no change of the model; what rounding leaves of it would only be amplified.
    gradient -= gradient.mean(dim=0)
    inverse = None
    if sums.spread is not None:
        spread = sums.spread[which] / sums.rows

        def inverse() -> InverseCurvature:
            return Curvature(spread, covariance, l2).solve

    loss = float(sums.loss[which]) / sums.rows + l2 / 2 * float(weights.square().sum())
    return Evaluation(loss=loss, gradient=gradient, inverse_curvature=inverse)


def _mean_and_covariance(batches: Iterable[Tensor]) -> tuple[Tensor, Covariance]:
    """Mean and covariance of the rows of all batches, merged as moments are."""
    count, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
    for batch in batches:
        if not count:
            mean = torch.zeros(batch.shape[1], dtype=torch.float64)
            scatter = torch.zeros((batch.shape[1], batch.shape[1]), dtype=torch.float64)
        for rows in torch.split(batch, PIECE_ROWS):
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


def _parameters(model: LinearModel, survey: _Survey, prior: Tensor) -> Tensor:
    """The parameters of a model's classes that occur, centred over them, with the bias about the mean.

    A class that the model has never seen starts from how often it occurs, beside those that the model knows.
    """
    weights = torch.from_numpy(model.weights[:, survey.present].astype(np.float64)).T
    bias = torch.from_numpy(model.bias[survey.present].astype(np.float64)) + weights @ survey.mean
    unseen = torch.from_numpy(model.bias[survey.present] <= _ABSENT_BIAS)
    bias[unseen] = prior[unseen, -1] + (bias - prior[:, -1])[~unseen].mean()
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


def _check_lengths(features: np.ndarray, labels: np.ndarray) -> None:
    """Refuse rows and labels that do not go together."""
    if len(features) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"{len(features)} rows of features with {len(labels)} labels; a fit needs a row, and a label for each. "
            "Read features and labels of the same split."
        )


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
