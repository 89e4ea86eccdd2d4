"""The way from NumPy arrays to torch tensors: without a copy, from read-only memory too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class _Unlocked:
    """The memory of an array, described as writable; holds the array, so that the memory outlives every view."""

    def __init__(self, array: np.ndarray) -> None:
        interface: dict[str, Any] = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.array = array


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """See an array as a tensor that shares its memory and must only be read.

    Blocks of a store are read-only maps of a file. `torch.from_numpy` warns about those, because a tensor cannot be
    marked read-only; writing into such a tensor would end the process. Callers therefore never write to the result.

    Args:
        array: any array of a dtype that torch knows; negative strides are copied.

    Returns:
        A tensor on the CPU with the array's dtype and shape.
    """
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Unlocked(array)))
