"""Tokens as Arrow has them: nested lists of fixed lengths over one run of values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def fixed_lists_type(item_shape: Sequence[int], dtype: np.dtype[Any]) -> pa.DataType:
    """The type of `fixed_lists` of values [rows, *item_shape]."""
    kind = pa.from_numpy_dtype(dtype)
    for length in reversed(item_shape):
        kind = pa.list_(kind, length)
    return kind


def fixed_lists(values: np.ndarray[Any, Any]) -> pa.Array:
    """[rows, ...] as an array of lists of fixed lengths; shares the memory of values that are contiguous."""
    lists = pa.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        lists = pa.FixedSizeListArray.from_arrays(lists, length)
    return lists
