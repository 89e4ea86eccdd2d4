"""What is asked of each probe, with its revision: all that the key of an answer needs.

Nothing here computes, and nothing loads torch, so that an answer that the store has is given within a fraction of a
second. What computes an answer is imported when there is none.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from evaluators.subject import Subject
from feature_store import TokenKind

# Raised whenever the numbers that an evaluator gives may change: answers of before are then no longer taken.
KNN_REVISION = 2
LINEAR_REVISION = 3
VARIANCE_REVISION = 1

Metric = Literal["dot", "cosine", "l2"]
Backend = Literal["auto", "faiss", "torch"]
# A weaker penalty is lost in the rounding of a loss near 1, and separable classes then have no best weights.
LEAST_L2 = 1e-15
DEFAULT_L2S = (1.0, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True, kw_only=True)
class KnnParameters:
    """One k-NN question.

    Attributes:
        subject: which tokens.
        k: neighbours that vote; the majority wins, of tied classes the one whose nearest member is nearer.
        metric: `cosine`, `dot` or `l2`.
        standardise: give every feature mean 0 and variance 1 over the bank first.

    Raises:
        ValueError: k is no whole number of 1 or more, or the metric is unknown.
    """

    subject: Subject = field(default_factory=Subject)
    k: int = 1
    metric: Metric = "cosine"
    standardise: bool = False

    def __post_init__(self) -> None:
        # Any, since the annotation is no check outside of the tests.
        k: Any = self.k
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k {k!r}: give the number of neighbours that vote, a whole number of 1 or more.")
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric {self.metric!r}: choose {', '.join(get_args(Metric))}.")


@dataclass(frozen=True, kw_only=True)
class LinearParameters:
    """One linear-probe question.

    Attributes:
        subject: which tokens.
        l2s: strengths of the penalty to choose among; one alone is taken. `evaluators.linear` states the loss.
        held_share: share of the training images on which the strength is chosen; they train the final model too.
        memory_bytes: bound on what is held at once. Patches that need more are sampled by image, as many as there is
            room for; whole images, and patches with `all_rows`, are read from the store anew for every pass.
        all_rows: train on every training token, whatever it takes.
        max_passes: bound on how often the training tokens are read from the store; None for none.

    Raises:
        ValueError: no strength, or one below `LEAST_L2`.
    """

    subject: Subject = field(default_factory=Subject)
    l2s: tuple[float, ...] = DEFAULT_L2S
    held_share: float = 0.2
    memory_bytes: int = 4_000_000_000
    all_rows: bool = False
    max_passes: int | None = None

    def __post_init__(self) -> None:
        if not self.l2s or min(self.l2s) < LEAST_L2:
            raise ValueError(
                f"--l2 {', '.join(f'{l2:g}' for l2 in self.l2s)}: give strengths of {LEAST_L2:g} or more; a weaker "
                "penalty is lost in the rounding of the loss. 1e-8 is next to none."
            )


@dataclass(frozen=True, kw_only=True)
class VarianceParameters:
    """Which tokens to take the variance of.

    Attributes:
        kind: `patches`, `cls` or `registers`.
        layer: block number or `last`.
        split: rows to take; `auto` is `train` where there is such a split, else all rows; None is all rows.
    """

    kind: TokenKind = "patches"
    layer: int | str = "last"
    split: str | None = "auto"
