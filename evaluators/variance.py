"""The population variance of every feature over the stored tokens: what `vitrine prune` chooses by."""

import numpy as np

from evaluators.moments import stream_moments
from evaluators.parameters import VarianceParameters
from evaluators.results import VarianceResult
from feature_store import FeatureSet
from feature_store.errors import StoreError


def evaluate_variance(features: FeatureSet, parameters: VarianceParameters) -> VarianceResult:
    """Variance and mean of every feature over all valid tokens, in float64, streamed.

    Args:
        features: the feature set, complete.
        parameters: which tokens.

    Raises:
        IncompleteError: shards are missing.
        StoreError: no valid row in the split, or a layer or kind that is not stored.
    """
    features.require_complete()
    split = parameters.split
    if split == "auto":
        split = "train" if "train" in features.splits else None
    rows = features.rows_of_split(split)
    if not rows.size:
        raise StoreError(f"split {split!r} of {features.name} has no valid rows; name another with --split.")
    blocks = features.iter_blocks(parameters.layer, parameters.kind, rows=rows)
    moments = stream_moments(block.reshape(-1, block.shape[-1]) for _, block in blocks)
    order = np.argsort(-moments.variance, kind="stable")
    return VarianceResult(
        variance=tuple(moments.variance.tolist()),
        mean=tuple(moments.mean.tolist()),
        order=tuple(order.tolist()),
        n_tokens=moments.count,
        split=split,
    )
