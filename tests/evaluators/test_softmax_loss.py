"""Loss, gradient and curvature against automatic differentiation in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluators import softmax_loss
from evaluators.softmax_loss import Curvature, decompose, sum_losses

ROWS, FEATURES, CLASSES, MODELS = 700, 5, 4, 3


def random_rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, dtype=torch.float64, generator=generator)
    features = torch.randn(ROWS, FEATURES, dtype=torch.float64, generator=generator) @ mixing + 2
    return features, torch.randint(CLASSES, (ROWS,), generator=generator)


def random_parameters() -> Tensor:
    return torch.randn(MODELS, CLASSES, FEATURES + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def logits(point: Tensor, features: Tensor, mean: Tensor) -> Tensor:
    return (features - mean) @ point[:, :-1].T + point[:, -1]


def loss_of(point: Tensor, features: Tensor, labels: Tensor, mean: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits(point, features, mean), labels, reduction="sum")


@pytest.mark.parametrize("piece_rows", [256, 8_192])
@pytest.mark.parametrize("batch_rows", [97, ROWS])
def test_loss_and_gradient_are_those_of_automatic_differentiation(
    piece_rows: int, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax_loss, "_PIECE_ROWS", piece_rows)
    features, labels = random_rows()
    mean = features.mean(dim=0)
    parameters = random_parameters().requires_grad_()
    losses = torch.stack([loss_of(point, features, labels, mean) for point in parameters])
    losses.sum().backward()
    batches = zip(torch.split(features, batch_rows), torch.split(labels, batch_rows), strict=True)
    sums = sum_losses(parameters.detach(), mean, batches)
    assert sums.rows == ROWS
    assert sums.spread is None
    torch.testing.assert_close(sums.loss, losses.detach(), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(sums.gradient, parameters.grad, rtol=1e-11, atol=1e-9)


def test_single_precision_features_lose_single_precision_only() -> None:
    features, labels = random_rows()
    mean, parameters = features.mean(dim=0), random_parameters()
    exact = sum_losses(parameters, mean, [(features, labels)])
    single = sum_losses(parameters, mean, [(features.float(), labels)])
    torch.testing.assert_close(single.loss, exact.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(single.gradient, exact.gradient, rtol=1e-4, atol=1e-3)


def test_the_spread_is_the_covariance_of_the_predicted_classes() -> None:
    features, labels = random_rows()
    mean, parameters = features.mean(dim=0), random_parameters()
    sums = sum_losses(parameters, mean, [(features, labels)], with_spread=True)
    shares = torch.softmax(logits(parameters[1], features, mean), dim=1)
    expected = sum((torch.diag(p) - torch.outer(p, p) for p in shares), torch.zeros(CLASSES, CLASSES).double())
    assert sums.spread is not None
    torch.testing.assert_close(sums.spread[1], expected)


def test_the_curvature_is_the_hessian_where_all_rows_are_predicted_alike() -> None:
    features, labels = random_rows()
    mean, l2 = features.mean(dim=0), 0.03
    point = torch.zeros(CLASSES, FEATURES + 1, dtype=torch.float64)
    point[:, -1] = torch.tensor([0.1, -2.0, 1.0, 0.5])
    shares = torch.softmax(point[:, -1], dim=0)
    covariance = decompose((features - mean).T @ (features - mean) / ROWS)
    curvature = Curvature(torch.diag(shares) - torch.outer(shares, shares), covariance, l2)

    def objective(values: Tensor) -> Tensor:
        return loss_of(values, features, labels, mean) / ROWS + l2 / 2 * values[:, :-1].square().sum()

    size = point.numel()
    hessian = torch.autograd.functional.hessian(objective, point).reshape(size, size)
    gradient = random_parameters()[0]
    gradient -= gradient.mean(dim=0)  # no loss changes when all classes move alike
    step = curvature.solve(gradient)
    torch.testing.assert_close((hessian @ step.reshape(-1)).reshape(gradient.shape), gradient)


def test_what_rounding_made_negative_is_no_variance() -> None:
    covariance = decompose(torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-15]], dtype=torch.float64))
    assert (covariance.values >= 0).all()
