"""L-BFGS on several convex problems in lockstep: one pass over the data evaluates all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

# More pairs take fewer passes: on CamVid 85 with 12, 81 with 20, 71 with 40; each pair is two points in memory.
PAIRS_KEPT = 20
_SUFFICIENT_DECREASE = 1e-4
_MOST_CUTS = 20
_MOST_IDLE = 3
_STEPS_WATCHED = 10


InverseCurvature: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One problem at one point: its loss, its gradient, and what makes its approximate inverse curvature.

    None keeps the last curvature. It is made where the point is taken and nowhere else: at a point far beyond the
    minimum a curvature means nothing, and may not even be finite.
    """

    loss: float
    gradient: Float64[Tensor, "classes parameters"]
    inverse_curvature: Callable[[], InverseCurvature] | None


class Problem:
    """The state of L-BFGS on one problem, advanced by one evaluation at a time.

    The inverse curvature that comes with an evaluation takes the place of the usual identity. As the identity is, it is
    scaled by what the last step showed: a curvature that is an approximation can be ten times too small, and without
    the scale nearly every step is too long and is evaluated twice.

    Args:
        start: the point to evaluate first.
        tolerance: converged when the loss can, to second order, still fall by this share of itself at most.
        noise: share of the first loss up to which rounding moves a loss; no less is ever asked for.
        most_fall: converged only when, besides, the last ten steps have lowered the loss by this share of itself at
            most. The curvature is an approximation, and now and then tells of a hundredth of what is left; what the
            loss really did does not. None asks for the tolerance alone.

    Source: Nocedal & Wright (2006), Numerical Optimization, algorithms 7.4 and 3.1, and equation 7.20 for the scale.
    """

    def __init__(
        self,
        start: Float64[Tensor, "classes parameters"],
        *,
        tolerance: float,
        noise: float,
        most_fall: float | None = None,
    ) -> None:
        self.point = start
        self.trial = start
        self.loss = float("inf")
        self.iterations = 0
        self.converged = False
        self.done = False
        self._tolerance = tolerance
        self._noise_share, self._noise = noise, 0.0
        self._most_fall = most_fall
        self._losses: deque[float] = deque(maxlen=_STEPS_WATCHED + 1)
        self._gradient = torch.zeros_like(start)
        self._direction = torch.zeros_like(start)
        self._slope = 0.0
        self._step = 1.0
        self._cuts = self._idle = 0
        self._pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=PAIRS_KEPT)
        self._solve: InverseCurvature = torch.Tensor.clone
        self._renewed = 0

    @property
    def wants_curvature(self) -> bool:
        """Whether the curvature at `trial` is wanted: at the start, then whenever the steps have doubled."""
        return self.iterations + 1 >= 2 * self._renewed

    def receive(self, evaluation: Evaluation) -> None:
        """Take the evaluation at `trial`; afterwards `trial` is the next point to evaluate, or `done` is set."""
        enough = self.loss + _SUFFICIENT_DECREASE * self._step * self._slope + self._noise
        if self.loss == float("inf"):
            self._noise = self._noise_share * abs(evaluation.loss)
            self._move_to(self.trial, evaluation)
        elif evaluation.loss <= enough:
            self.iterations += 1
            idle = self._idle + 1 if evaluation.loss >= self.loss - self._noise else 0
            self._remember(self.trial - self.point, evaluation.gradient - self._gradient)
            self._move_to(self.trial, evaluation)
            self._idle, self.done = idle, self.done or idle >= _MOST_IDLE
        else:
            self._cut(evaluation.loss)
        self.trial = self.point + self._step * self._direction

    def _move_to(self, point: Tensor, evaluation: Evaluation) -> None:
        """Stand at a new point and choose the direction that leads on from there."""
        self.point, self.loss, self._gradient = point, evaluation.loss, evaluation.gradient
        if evaluation.inverse_curvature is not None:
            self._solve, self._renewed = evaluation.inverse_curvature(), self.iterations
        self._direction = -self._times_inverse(evaluation.gradient)
        self._slope = _dot(evaluation.gradient, self._direction)
        self._step, self._cuts = 1.0, 0
        # To second order the loss can still fall by half the slope.
        left = -self._slope / 2
        self._losses.append(self.loss)
        self.converged = self.done = left <= self._noise or (left <= self._tolerance * self.loss and self._settled())

    def _settled(self) -> bool:
        """Whether the last steps lowered the loss by next to nothing."""
        if self._most_fall is None:
            return True
        watched = len(self._losses) == self._losses.maxlen
        return watched and self._losses[0] - self.loss <= self._most_fall * self.loss

    def _cut(self, trial_loss: float) -> None:
        """Shorten the step to the minimum of the parabola through what is known, within bounds."""
        excess = trial_loss - self.loss - self._step * self._slope
        shrink = -self._slope * self._step / (2 * excess) if excess > 0 else 0.5
        self._step *= min(0.5, max(0.1, shrink))
        self._cuts += 1
        self.done = self._cuts >= _MOST_CUTS

    def _remember(self, moved: Tensor, change: Tensor) -> None:
        """Keep a pair of step and change of gradient, where it shows positive curvature."""
        product = _dot(moved, change)
        if product > 1e-12 * _dot(change, change) ** 0.5 * _dot(moved, moved) ** 0.5:
            self._pairs.append((moved, change, 1 / product))

    def _times_inverse(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian as the remembered pairs know it, applied to a gradient: the two-loop recursion."""
        rest = gradient.clone()
        shares = []
        for moved, change, scale in reversed(self._pairs):
            shares.append(scale * _dot(moved, rest))
            rest -= shares[-1] * change
        rest = self._solve(rest) * self._scale()
        for (moved, change, scale), share in zip(self._pairs, reversed(shares), strict=True):
            rest += (share - scale * _dot(change, rest)) * moved
        return rest

    def _scale(self) -> float:
        """How much less or more the loss curves along the last change of the gradient than the curvature says."""
        if not self._pairs:
            return 1.0
        _, change, scale = self._pairs[-1]
        seen = scale * _dot(change, self._solve(change))
        return 1 / seen if seen > 0 else 1.0


def minimise(
    problems: Sequence[Problem],
    evaluate: Callable[[Sequence[int], Float64[Tensor, "active classes parameters"]], Sequence[Evaluation]],
    *,
    max_iterations: int,
    max_evaluations: int | None = None,
) -> None:
    """Run problems until each has converged, stalled, or taken `max_iterations` steps.

    Args:
        problems: fresh problems, advanced in place.
        evaluate: gives one evaluation for each of the points of the problems at the given positions.
        max_iterations: bound on the accepted steps of each problem.
        max_evaluations: bound on the calls of `evaluate`; each problem then stands at the last point it accepted.
    """
    evaluations = 0
    while (max_evaluations is None or evaluations < max_evaluations) and (
        active := [i for i, problem in enumerate(problems) if not problem.done and problem.iterations < max_iterations]
    ):
        points = torch.stack([problems[i].trial for i in active])
        for i, evaluation in zip(active, evaluate(active, points), strict=True):
            problems[i].receive(evaluation)
        evaluations += 1


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors of one shape."""
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
