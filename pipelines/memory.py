"""How much memory a worker will take, worked out from sizes alone: no model is loaded for it."""

import math
from pathlib import Path

from feature_store.arrays import row_bytes
from pipelines.plan import ExtractionPlan

# Python with torch, timm, Pillow, zarr and Beam loaded, before any model: measured as 910 MB.
_PROCESS_BYTES = 910_000_000
_VALUE_BYTES = 4
# The widest tensors of a block are the four-fold hidden ones of its MLP; six of them at a time were measured on ViT-S
# and ViT-B at batches of 16 and 64, with what the block reads and writes beside them.
_HIDDEN_WIDTH, _HIDDEN_TENSORS = 4, 6
# Batches of decoded pixels in flight: one in the model, and two read ahead.
_PIXEL_BATCHES = 3


def estimated_worker_bytes(plan: ExtractionPlan) -> int:
    """The most memory that one worker is expected to hold at once, in bytes.

    A checkpoint is read whole and then copied into the model, so two copies stand there while it loads. While it runs,
    one does, with a batch's activations, the tokens kept of it, and the arrays of a shard.
    """
    weights = Path(plan.backbone.weights)
    weight_bytes = weights.stat().st_size if plan.backbone.weights and weights.is_file() else 0
    return _PROCESS_BYTES + max(2 * weight_bytes, weight_bytes + _batch_bytes(plan) + shard_bytes(plan))


def _batch_bytes(plan: ExtractionPlan) -> int:
    spec = plan.spec
    # With windows the model sees one window of each view at a time; the tokens that are kept are of the whole grid.
    n_tokens = 1 + spec.n_registers + math.prod(spec.grid)
    token_bytes = spec.batch_size * n_tokens * spec.n_features * _VALUE_BYTES
    height, width = spec.identity.preprocessing["image_size"]
    pixels = int(height) * int(width) * 3
    kept = len(spec.identity.layers) * token_bytes
    return _HIDDEN_TENSORS * _HIDDEN_WIDTH * token_bytes + kept + _PIXEL_BATCHES * spec.batch_size * pixels


def shard_bytes(plan: ExtractionPlan) -> int:
    """What the arrays of one shard hold, in bytes."""
    return plan.spec.rows_per_shard * row_bytes(plan.spec)
