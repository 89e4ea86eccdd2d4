"""k-NN classification of patches or images by the labelled tokens of the training split: exact, no training."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from evaluators.errors import AskedError
from evaluators.feature_map import FeatureMap
from evaluators.neighbors import check_bank_rows, majority_vote, search
from evaluators.parameters import Backend, KnnParameters
from evaluators.probe_input import ProbeInput
from evaluators.results import ProbeResult
from evaluators.segmentation import Scorer
from evaluators.token_stream import BANK_BLOCK_TOKENS, QUERY_BLOCK_TOKENS, joined_blocks
from feature_store import FeatureSet, Selection


def evaluate_knn(
    features: FeatureSet,
    parameters: KnnParameters,
    *,
    selection: Selection | None = None,
    backend: Backend = "auto",
) -> ProbeResult:
    """Classify the test tokens by their nearest training tokens, from the store alone.

    Exact, streamed over the bank in blocks; ties go to the lower bank row. Void patches stay in the bank and may be
    predicted, which counts as wrong.

    Args:
        features: the feature set, complete.
        parameters: the question.
        selection: which features of a token; None for all.
        backend: `faiss`, `torch`, or what is there.

    Returns:
        Scores on the test split: `SegmentationScores` for patches, `ImageScores` for images.

    Raises:
        IncompleteError: shards are missing.
        StoreError: no masks, labels or test rows for the question.
        ValueError: `k` larger than the bank, or a bank of more than 2**32 tokens.
    """
    return next(evaluate_knn_for(features, [parameters.k], parameters, selection=selection, backend=backend))


def evaluate_knn_for(
    features: FeatureSet,
    ks: Sequence[int],
    parameters: KnnParameters,
    *,
    selection: Selection | None = None,
    backend: Backend = "auto",
) -> Iterator[ProbeResult]:
    """As `evaluate_knn`, for several k from one search; `parameters.k` is not used.

    Yields:
        One result a k, in the order given.
    """
    features.require_complete()
    probe = ProbeInput(features, parameters.subject, selection)
    n_bank = len(probe.train_rows) * probe.tokens_per_row
    if max(ks) > n_bank:
        raise AskedError(f"--k {max(ks)}: the bank has {n_bank} tokens; give {n_bank} at most.")
    scorers = [Scorer(probe) for _ in ks]
    for rows, predictions in _predictions(probe, ks, parameters, probe.test_rows, backend):
        for scorer, predicted in zip(scorers, predictions, strict=True):
            scorer.add(rows, predicted)
    for scorer, k in zip(scorers, ks, strict=True):
        yield scorer.result({"k": k, "metric": parameters.metric, "standardised": parameters.standardise})


def predict_knn(
    features: FeatureSet,
    parameters: KnnParameters,
    rows: Int64[np.ndarray, " rows"],
    *,
    selection: Selection | None = None,
    backend: Backend = "auto",
) -> Int64[np.ndarray, "rows tokens"]:
    """The predicted class of every token of some rows, e.g. to show a predicted mask beside its image.

    Args:
        features, parameters, selection, backend: as for `evaluate_knn`.
        rows: ascending; rows that are not valid are refused.

    Returns:
        Class numbers; `n_classes` stands for void. One column for each patch, or one alone for whole images.

    Raises:
        ValueError: a row is not valid, and so has no tokens.
    """
    features.require_complete()
    invalid = rows[~features.valid[rows]]
    if invalid.size:
        raise ValueError(
            f"rows {invalid[:5].tolist()} of {features.name} are not valid and have no tokens; leave them out."
        )
    probe = ProbeInput(features, parameters.subject, selection)
    found = [predicted for _, (predicted,) in _predictions(probe, [parameters.k], parameters, rows, backend)]
    return np.concatenate(found).reshape(len(rows), probe.tokens_per_row)


def _predictions(
    probe: ProbeInput,
    ks: Sequence[int],
    parameters: KnnParameters,
    rows: Int64[np.ndarray, " rows"],
    backend: Backend,
) -> Iterator[tuple[Int64[np.ndarray, " rows"], list[Int64[np.ndarray, " tokens"]]]]:
    """Rows in blocks, each with the predicted classes of its tokens, one array a k; one search serves all."""
    mapping = probe.standardising if parameters.standardise else probe.selecting
    check_bank_rows(len(probe.train_rows) * probe.tokens_per_row)
    bank_labels = probe.compact_labels(probe.train_rows)
    nearest = search(
        lambda: _mapped(probe, probe.train_rows, mapping, BANK_BLOCK_TOKENS),
        _mapped(probe, rows, mapping, QUERY_BLOCK_TOKENS),
        k=max(ks),
        metric=parameters.metric,
        backend=backend,
    )
    first_row = 0
    for found in nearest:
        block_rows = rows[first_row : first_row + len(found.rows) // probe.tokens_per_row]
        first_row += len(block_rows)
        labels = bank_labels[found.rows].astype(np.int64)
        yield block_rows, [majority_vote(labels[:, :k], probe.n_classes + 1) for k in ks]


def _mapped(
    probe: ProbeInput, rows: np.ndarray[Any, np.dtype[np.int64]], mapping: FeatureMap, block_tokens: int
) -> Iterator[Float32[np.ndarray, "tokens features"]]:
    """Tokens ready for the search, joined to blocks of about `block_tokens`, whole rows each."""
    rows_per_block = max(1, block_tokens // probe.tokens_per_row)
    return joined_blocks(probe.stored_blocks(rows), mapping, rows_per_block * probe.tokens_per_row)
