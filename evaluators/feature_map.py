"""From stored tokens to what an evaluator computes on: columns chosen, features standardised, float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from evaluators.moments import Moments
from evaluators.tensors import as_tensor


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A choice of columns, then an affine map of each: `(block[:, columns] - shift) / scale`.

    Attributes:
        columns: indices of the features to keep, in the order of the result; None keeps all.
        shift: subtracted from each kept feature, in feature units; None subtracts nothing.
        scale: each kept feature is divided by it, in feature units, never zero; None divides by nothing.
    """

    columns: Int64[np.ndarray, " kept"] | None = None
    shift: Float32[np.ndarray, " kept"] | None = None
    scale: Float32[np.ndarray, " kept"] | None = None

    def apply(self, block: Float[np.ndarray, "rows features"]) -> Float32[np.ndarray, "rows kept"]:
        """Map the rows of one block.

        Args:
            block: tokens as stored, float16 or float32; may be read-only, is never changed.

        Returns:
            New contiguous float32 array, also where the map changes nothing.

        Raises:
            IndexError: a column lies outside the block's features.
        """
        stored = as_tensor(block)
        if self.columns is not None:
            _check_columns(self.columns, stored.shape[1])
            stored = stored.index_select(1, as_tensor(self.columns))
        # torch converts float16 with vector instructions on all threads, NumPy value by value.
        mapped = torch.empty(stored.shape, dtype=torch.float32).copy_(stored)
        if self.shift is not None:
            mapped.sub_(as_tensor(self.shift))
        if self.scale is not None:
            mapped.div_(as_tensor(self.scale))
        result: Float32[np.ndarray, "rows kept"] = mapped.numpy()
        return result


def standardising(moments: Moments, columns: Int64[np.ndarray, " kept"] | None = None) -> FeatureMap:
    """The map that gives every kept feature mean 0 and population variance 1 over the rows behind `moments`.

    Args:
        moments: moments over all stored features, not only over the kept ones.
        columns: features to keep; None keeps all.

    Returns:
        A map with scale 1 where a feature never varies: such a feature becomes 0 everywhere.

    Raises:
        ValueError: the moments cover no row.
    """
    kept = slice(None) if columns is None else columns
    std = moments.std[kept].astype(np.float32)
    return FeatureMap(
        columns=columns,
        shift=moments.mean[kept].astype(np.float32),
        scale=np.where(std > 0, std, np.float32(1)),
    )


def _check_columns(columns: Int64[np.ndarray, " kept"], features: int) -> None:
    """Refuse columns that the block does not have."""
    if columns.size and not 0 <= columns.min() <= columns.max() < features:
        raise IndexError(
            f"columns span {columns.min()}..{columns.max()}; the block has features 0..{features - 1}. "
            "Use a selection that was made for features of the same weights."
        )
