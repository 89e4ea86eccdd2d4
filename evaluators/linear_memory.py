"""How a linear probe fits into memory: all training tokens at once, those of some images, or in passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluators.errors import AskedError
from evaluators.linear import PIECE_ROWS
from evaluators.lockstep import PAIRS_KEPT
from evaluators.parameters import LinearParameters
from evaluators.probe_input import ProbeInput
from evaluators.softmax_loss import piece_rows

_LARGEST_BLOCK, _SMALLEST_BLOCK = 32 << 20, 16 << 10
# A block is read, its columns are chosen and it is made float32, which takes twice the room, and once more beside it.
_BLOCKS_AT_ONCE = 5
# Of the logits of a piece of rows: themselves, their logarithms, what is left of them, and one more.
_LOGITS_AT_ONCE = 4
_FEATURE_BYTES, _STATE_BYTES = 4, 8
# Measured: with one thread or two, matrix products and the heap keep so much.
_LIBRARIES_BYTES = 20 << 20
# Of each pass: the label as it is kept and as a number of 64 bits while labels are read.
_LABEL_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What is held at once.

    Attributes:
        how: `in memory`; `sample`: as many training images as memory holds; `streamed`: read anew in every pass.
        block_bytes: about how much is read from the store at a time.
        room_tokens: training tokens that memory holds beside everything else.
        need_bytes: what a fit with all training tokens in memory would take.
    """

    how: Literal["in memory", "sample", "streamed"]
    block_bytes: int
    room_tokens: int
    need_bytes: int


def plan_memory(probe: ProbeInput, parameters: LinearParameters) -> MemoryPlan:
    """Decide what `parameters.memory_bytes` allow.

    Raises:
        AskedError: the fit alone, without a single training token, takes more.
    """
    budget = parameters.memory_bytes
    per_token = probe.n_features * _FEATURE_BYTES + _LABEL_BYTES
    n_tokens = len(probe.train_rows) * probe.tokens_per_row
    block = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, budget // (4 * _BLOCKS_AT_ONCE)))
    may_sample = probe.on == "patches" and not parameters.all_rows
    labels = 0 if may_sample else n_tokens * _LABEL_BYTES
    without_blocks = _fit_bytes(probe, parameters) + working_bytes(probe.n_features)
    fixed = without_blocks + _BLOCKS_AT_ONCE * min(block, n_tokens * per_token)
    wanted = labels
    if may_sample and fixed + n_tokens * per_token > budget:
        # A sample holds two images at least.
        rows_of_two = 2 * int(np.bincount(probe.images_of(probe.train_rows)).max())
        wanted = rows_of_two * probe.tokens_per_row * per_token
    if fixed + wanted > budget:
        # The usual block is a share of what is given: with a little more memory it would only be larger.
        block = _SMALLEST_BLOCK
        fixed = without_blocks + _BLOCKS_AT_ONCE * min(block, n_tokens * per_token)
    least = fixed + labels
    room = (budget - least) // per_token
    if n_tokens <= room:
        how: Literal["in memory", "sample", "streamed"] = "in memory"
    elif fixed + wanted > budget:
        raise AskedError(
            f"--memory {budget / 1e9:g} GB: fitting {len(parameters.l2s)} strengths of {probe.n_classes + 1} classes "
            f"by {probe.n_features} features takes {math.ceil((fixed + wanted) / 1e5) / 1e4:.4f} GB with the fewest "
            "training tokens; give as much, or fewer strengths with --l2."
        )
    else:
        how = "sample" if may_sample else "streamed"
    return MemoryPlan(how=how, block_bytes=block, room_tokens=int(room), need_bytes=fixed + n_tokens * per_token)


def working_bytes(n_features: int) -> int:
    """What is taken whatever the store: the libraries' own buffers, and a piece of rows in double precision."""
    return _LIBRARIES_BYTES + 2 * _STATE_BYTES * PIECE_ROWS * n_features


def _fit_bytes(probe: ProbeInput, parameters: LinearParameters) -> int:
    """What the fit of all strengths takes besides the tokens."""
    models, classes, width = len(parameters.l2s), probe.n_classes + 1, probe.n_features + 1
    # Two points for each pair, and some more while one is evaluated.
    points = models * classes * width * (2 * PAIRS_KEPT + 10)
    square = 6 * width**2 + 6 * models * classes**2
    n_tokens = len(probe.train_rows) * probe.tokens_per_row
    logits = _LOGITS_AT_ONCE * min(piece_rows(models * classes), n_tokens) * models * classes
    return (points + square) * _STATE_BYTES + logits * _FEATURE_BYTES
