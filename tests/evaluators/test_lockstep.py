"""L-BFGS in lockstep against closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from evaluators.lockstep import Evaluation, Problem, minimise

SCALES = torch.logspace(-3, 3, 8, dtype=torch.float64)[None]
TARGET = torch.arange(8, dtype=torch.float64)[None]


def bowl(point: Tensor) -> Evaluation:
    """A quadratic of condition 1e6 with its minimum, 1, at TARGET."""
    away = point - TARGET
    return Evaluation(loss=1 + float((SCALES * away**2).sum()) / 2, gradient=SCALES * away, inverse_curvature=None)


def funnel(point: Tensor) -> Evaluation:
    """A convex function that is no quadratic: the sum of cosh(s x - 1)."""
    inner = SCALES.sqrt() * point - 1
    return Evaluation(loss=float(inner.cosh().sum()), gradient=SCALES.sqrt() * inner.sinh(), inverse_curvature=None)


def run(problems: Sequence[Problem], functions: Sequence[object], max_iterations: int = 300) -> list[list[int]]:
    asked: list[list[int]] = []

    def evaluate(active: Sequence[int], points: Tensor) -> list[Evaluation]:
        asked.append(list(active))
        return [functions[i](point) for i, point in zip(active, points, strict=True)]  # type: ignore[operator]

    minimise(problems, evaluate, max_iterations=max_iterations)
    return asked


def test_problems_of_different_difficulty_each_find_their_minimum() -> None:
    problems = [Problem(torch.zeros_like(TARGET), tolerance=1e-13, noise=1e-16) for _ in range(2)]
    asked = run(problems, [bowl, funnel])
    assert [problem.converged for problem in problems] == [True, True]
    torch.testing.assert_close(problems[0].point, TARGET, rtol=0, atol=1e-4)
    torch.testing.assert_close(problems[1].point, SCALES.rsqrt(), rtol=1e-4, atol=0)
    assert problems[1].loss == pytest.approx(8, rel=1e-12)  # eight terms of cosh(0)
    assert asked[0] == [0, 1]
    assert len(asked[-1]) == 1  # the one that converged first is asked no more


def test_the_inverse_curvature_makes_one_step_of_a_quadratic() -> None:
    problem = Problem(torch.zeros_like(TARGET), tolerance=1e-13, noise=1e-16)

    def newton(point: Tensor) -> Evaluation:
        plain = bowl(point)
        return Evaluation(
            loss=plain.loss, gradient=plain.gradient, inverse_curvature=lambda: lambda gradient: gradient / SCALES
        )

    run([problem], [newton])
    assert problem.iterations == 1
    torch.testing.assert_close(problem.point, TARGET)


def test_curvature_is_made_at_points_that_are_taken_alone() -> None:
    # Steps of 50 gradients overshoot: cosh explodes there, as a softmax's overconfident loss does.
    problem = Problem(torch.full_like(TARGET, 2.0), tolerance=1e-13, noise=1e-16)
    evaluated: list[float] = []
    made: list[float] = []

    def steep(point: Tensor) -> Evaluation:
        plain = funnel(point)
        evaluated.append(plain.loss)

        def inverse() -> Callable[[Tensor], Tensor]:
            made.append(plain.loss)
            return lambda gradient: 50 * gradient

        return Evaluation(loss=plain.loss, gradient=plain.gradient, inverse_curvature=inverse)

    run([problem], [steep], max_iterations=8)
    assert max(evaluated[1:]) > evaluated[0]  # some trials went too far
    assert made == sorted(made, reverse=True)
    assert made[0] == evaluated[0]


def test_curvature_is_wanted_at_the_start_and_whenever_the_steps_have_doubled() -> None:
    problem = Problem(torch.zeros_like(TARGET), tolerance=1e-13, noise=1e-16)
    wanted: list[int] = []

    def counted(point: Tensor) -> Evaluation:
        plain = funnel(point)
        if not problem.wants_curvature:
            return plain
        wanted.append(problem.iterations)
        return Evaluation(
            loss=plain.loss, gradient=plain.gradient, inverse_curvature=lambda: lambda rest: rest / SCALES
        )

    run([problem], [counted])
    # Before each of the steps 1, 2, 4, 8 ..., and again while a step is being cut short.
    assert sorted(set(wanted)) == [n for n in (0, 1, 3, 7, 15, 31, 63) if n <= problem.iterations]


def test_a_bound_on_the_iterations_stops_before_convergence() -> None:
    problem = Problem(torch.zeros_like(TARGET), tolerance=1e-13, noise=1e-16)
    run([problem], [funnel], max_iterations=3)
    assert problem.iterations == 3
    assert not problem.converged


def test_a_start_at_the_minimum_is_converged_without_a_step() -> None:
    problem = Problem(TARGET.clone(), tolerance=1e-13, noise=1e-16)
    run([problem], [bowl])
    assert (problem.iterations, problem.converged) == (0, True)


def test_a_gradient_that_points_nowhere_ends_as_not_converged() -> None:
    # The loss rises along its own negative gradient: only a wrong function does that, and it must not run for ever.
    problem = Problem(torch.zeros_like(TARGET), tolerance=1e-13, noise=1e-16)
    run([problem], [lambda p: Evaluation(loss=bowl(p).loss, gradient=-bowl(p).gradient, inverse_curvature=None)])
    assert problem.done
    assert not problem.converged
