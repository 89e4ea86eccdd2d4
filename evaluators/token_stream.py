"""Tokens of some rows as a stream of matrices: patches one by one, or whole images by cls or by their mean patch."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

from evaluators.feature_map import FeatureMap
from evaluators.subject import KIND_READ
from evaluators.tensors import as_tensor
from feature_store import FeatureSet

TokensOn = Literal["patches", "cls", "mean"]

# Sixty-four thousand bank tokens against sixteen thousand queries: the sizes at which the matrix product is fastest.
BANK_BLOCK_TOKENS = 65_536
QUERY_BLOCK_TOKENS = 16_384


def stored_tokens(
    features: FeatureSet,
    rows: Int64[np.ndarray, " rows"],
    *,
    on: str,
    layer: int | str,
    block_bytes: int = 32 << 20,
) -> Iterator[tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "tokens features"]]]:
    """The tokens of some rows, as stored, block by block; rows without tokens are left out.

    Args:
        features: the feature set.
        rows: ascending row numbers.
        on: `patches`, `cls`, or `mean`, the mean patch of each row in float32.
        layer: a block number or `last`.
        block_bytes: about how much is read at a time.

    Yields:
        (rows of the block, tokens [rows * tokens of a row, features]).
    """
    for block_rows, block in features.iter_blocks(layer, KIND_READ[on], rows=rows, block_bytes=block_bytes):
        if on == "mean":
            yield block_rows, mean_over_patches(block)
        else:
            yield block_rows, block.reshape(-1, block.shape[-1])


def mean_over_patches(block: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The mean patch of each row, in float32."""
    mean: np.ndarray[Any, np.dtype[np.float32]] = as_tensor(block).to(torch.float32).mean(dim=1).numpy()
    return mean


def joined_blocks(
    stored: Iterable[tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "tokens features"]]],
    mapping: FeatureMap,
    block_tokens: int,
) -> Iterator[Float32[np.ndarray, "tokens features"]]:
    """Tokens ready for a search, in blocks of `block_tokens`, the last one perhaps shorter."""
    waiting: list[np.ndarray[Any, Any]] = []
    n_waiting = 0
    for _, block in stored:
        mapped = mapping.apply(block)
        while n_waiting + len(mapped) >= block_tokens:
            taken = block_tokens - n_waiting
            yield np.concatenate([*waiting, mapped[:taken]]) if waiting else mapped[:taken]
            waiting, n_waiting, mapped = [], 0, mapped[taken:]
        if len(mapped):
            waiting.append(mapped)
            n_waiting += len(mapped)
    if waiting:
        yield np.concatenate(waiting)
