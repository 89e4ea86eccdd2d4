"""The loss of multinomial logistic regression with its gradient and curvature, for many models in one pass.

Parameters of all models are one tensor [models, classes, features + 1]. Its last column is the bias **about the mean
of the features**: logits are `w (x - mean) + b`. So weights and bias do not interact in the curvature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

# Logits of a piece of rows stay in cache; larger pieces read slower, smaller ones synchronise threads too often.
_PIECE_LOGITS = 2**18
_PIECE_ROWS = 8_192


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over rows, not means: of cross-entropy, of its gradient, and of the spread of the predicted classes.

    Attributes:
        rows: number of rows summed.
        loss: cross-entropy of each model, in nats.
        gradient: by weights and bias about the mean.
        spread: sum of diag(p) - p p^T over the rows' class probabilities p; None where it was not asked for.
    """

    rows: int
    loss: Float64[Tensor, " models"]
    gradient: Float64[Tensor, "models classes features_and_bias"]
    spread: Float64[Tensor, "models classes classes"] | None


def sum_losses(
    parameters: Float64[Tensor, "models classes features_and_bias"],
    mean: Float64[Tensor, " features"],
    batches: Iterable[tuple[Float[Tensor, "_ features"], Int64[Tensor, " _"]]],
    *,
    with_spread: bool = False,
) -> LossSums:
    """Sum loss and gradient of every model over batches of rows.

    Products are taken in the dtype of the features and added up in double precision, piece by piece.

    Args:
        parameters: as the module says.
        mean: mean of the features, about which the bias is held.
        batches: features and labels; labels lie in 0..classes-1.
        with_spread: sum the spread as well.

    Returns:
        The sums, without any penalty.
    """
    models, classes, width = parameters.shape
    gradient = torch.zeros((models * classes, width), dtype=torch.float64)
    loss = torch.zeros(models, dtype=torch.float64)
    spread = torch.zeros((models, classes, classes), dtype=torch.float64) if with_spread else None
    weights = parameters[..., :-1].reshape(models * classes, width - 1)
    offsets = parameters[..., -1].reshape(-1) - weights @ mean
    rows = 0
    for features, labels in _pieces(batches, models * classes):
        logits = torch.addmm(offsets.to(features.dtype)[:, None], weights.to(features.dtype), features.T)
        log_shares = torch.log_softmax(logits.view(models, classes, -1), dim=1)
        index = labels.expand(models, 1, -1)
        loss -= log_shares.gather(1, index).sum(dim=(1, 2), dtype=torch.float64)
        shares = log_shares.exp_()
        if spread is not None:
            spread -= torch.bmm(shares, shares.transpose(1, 2))
            spread.diagonal(dim1=1, dim2=2).add_(shares.sum(dim=2))
        residuals = shares.scatter_add_(1, index, -torch.ones((), dtype=shares.dtype).expand(index.shape))
        residuals = residuals.view(models * classes, -1)
        gradient[:, :-1] += residuals @ features
        gradient[:, -1] += residuals.sum(dim=1, dtype=torch.float64)
        rows += len(labels)
    gradient[:, :-1] -= gradient[:, -1:] * mean
    return LossSums(rows=rows, loss=loss, gradient=gradient.view(models, classes, width), spread=spread)


def piece_rows(logits_per_row: int) -> int:
    """How many rows are taken at a time."""
    return max(256, min(_PIECE_ROWS, _PIECE_LOGITS // logits_per_row))


def _pieces(batches: Iterable[tuple[Tensor, Tensor]], logits_per_row: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches cut into pieces of rows that suit the cache."""
    size = piece_rows(logits_per_row)
    for features, labels in batches:
        for start in range(0, len(labels), size):
            yield features[start : start + size], labels[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """Covariance of the features, by its eigenvectors: `vectors @ diag(values) @ vectors.T`."""

    values: Float64[Tensor, " features"]
    vectors: Float64[Tensor, "features features"]


def decompose(covariance: Float64[Tensor, "features features"]) -> Covariance:
    """Eigenvalues and eigenvectors of a covariance; what rounding made negative counts as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return Covariance(values=values.clamp_min(0), vectors=vectors)


class Curvature:
    """The Hessian of one model's loss, approximated by (spread of classes) x (covariance of features) + penalty.

    Exact where all rows have the same class probabilities, which is where a fit starts. Böhning (1992) bounds the
    Hessian by the same product with a fixed matrix for the spread; the spread as it is follows rare classes, too.
    """

    def __init__(self, spread: Float64[Tensor, "classes classes"], covariance: Covariance, l2: float) -> None:
        values, self._classes = torch.linalg.eigh(spread)
        values = values.clamp_min(0)
        self._features = covariance.vectors
        self._weights = values[:, None] * covariance.values + l2
        # Adding a constant to every bias changes nothing: no curvature there, and no step is taken.
        flat = values <= 1e-9 * values.max()
        self._bias = torch.where(flat, torch.inf, values)

    def solve(
        self, gradient: Float64[Tensor, "classes features_and_bias"]
    ) -> Float64[Tensor, "classes features_and_bias"]:
        """The step of Newton's method: the inverse of the curvature, applied to a gradient."""
        rotated = self._classes.T @ gradient
        weights = ((rotated[:, :-1] @ self._features) / self._weights) @ self._features.T
        step: Tensor = self._classes @ torch.cat([weights, rotated[:, -1:] / self._bias[:, None]], dim=1)
        return step
