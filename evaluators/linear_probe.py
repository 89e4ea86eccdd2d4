"""Linear probe: multinomial logistic regression on standardised tokens, its strength chosen on held-out images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from evaluators.feature_map import FeatureMap
from evaluators.linear import LinearModel, fit, fit_path, fit_streamed, predict
from evaluators.parameters import LinearParameters
from evaluators.probe_input import ProbeInput, hold_out_images
from evaluators.results import ProbeResult
from evaluators.segmentation import Scorer
from feature_store import FeatureSet, Selection, StoreError

# To rank strengths by held-out accuracy, a loss within a thousandth of the best is enough; the final fit goes further.
_SWEEP_TOLERANCE, _SWEEP_ITERATIONS = 1e-3, 200
_VALUE_BYTES = 4
_ROWS_PER_BLOCK_BYTES = 32 << 20


def evaluate_linear(
    features: FeatureSet, parameters: LinearParameters, *, selection: Selection | None = None
) -> ProbeResult:
    """Train a linear classifier on the stored training tokens and score it on the test tokens.

    Features are standardised by the training tokens. The strength with the best accuracy on held-out training images
    (whole images or sequences, never patches; of equal ones the strongest) is fitted again on all training tokens.
    Test rows decide nothing.

    Args:
        features: the feature set, complete.
        parameters: the question.
        selection: which features of a token; None for all.

    Raises:
        IncompleteError: shards are missing.
        StoreError: no masks, labels or test rows, or fewer than two training images to choose a strength on.
    """
    features.require_complete()
    probe = ProbeInput(features, parameters.subject, selection)
    mapping = probe.standardising
    need_bytes = len(probe.train_rows) * probe.tokens_per_row * probe.n_features * _VALUE_BYTES
    if need_bytes <= parameters.memory_bytes:
        model, details = _fit_in_memory(probe, mapping, parameters)
    else:
        model, details = _fit_beyond_memory(probe, mapping, parameters, need_bytes)
    scorer = Scorer(probe)
    for rows, stored in probe.stored_blocks(probe.test_rows):
        scorer.add(rows, predict(model, mapping.apply(stored)))
    return scorer.result({"l2": model.l2, "iterations": model.iterations, "loss": model.loss, **details})


def _fit_in_memory(
    probe: ProbeInput, mapping: FeatureMap, parameters: LinearParameters
) -> tuple[LinearModel, dict[str, Any]]:
    tokens, labels = _load(probe, probe.train_rows, mapping)
    start, by_l2 = _best_of_path(probe, probe.train_rows, tokens, labels, parameters)
    model = fit(tokens, labels, n_classes=probe.n_classes + 1, l2=start.l2 if start else parameters.l2s[0], start=start)
    return model, {"fitted": "in memory by L-BFGS", "converged": model.converged, "held_out_accuracy": by_l2}


def _fit_beyond_memory(
    probe: ProbeInput, mapping: FeatureMap, parameters: LinearParameters, need_bytes: int
) -> tuple[LinearModel, dict[str, Any]]:
    """The strength comes from as many images as memory holds; the model from all of them in mini-batches."""
    share = parameters.memory_bytes / need_bytes
    by_l2: dict[str, float] = {}
    l2 = parameters.l2s[0]
    if len(parameters.l2s) > 1:
        _, sampled = hold_out_images(probe.images_of(probe.train_rows), share=share, seed=parameters.subject.seed)
        rows = probe.train_rows[sampled]
        tokens, labels = _load(probe, rows, mapping)
        start, by_l2 = _best_of_path(probe, rows, tokens, labels, parameters)
        l2 = start.l2 if start else l2
        del tokens, labels

    def blocks(epoch: int) -> Iterator[tuple[Float32[np.ndarray, "tokens features"], Int64[np.ndarray, " tokens"]]]:
        for rows in _shuffled_runs(probe, seed=parameters.subject.seed + epoch):
            for block_rows, stored in probe.stored_blocks(rows):
                yield mapping.apply(stored), probe.labels(block_rows)

    model = fit_streamed(
        blocks,
        n_features=probe.n_features,
        n_classes=probe.n_classes + 1,
        l2=l2,
        epochs=parameters.epochs,
        seed=parameters.subject.seed,
    )
    return model, {"fitted": f"streamed, {parameters.epochs} epochs", "held_out_accuracy": by_l2}


def _best_of_path(
    probe: ProbeInput,
    rows: Int64[np.ndarray, " rows"],
    tokens: Float32[np.ndarray, "tokens features"],
    labels: Int64[np.ndarray, " tokens"],
    parameters: LinearParameters,
) -> tuple[LinearModel | None, dict[str, float]]:
    """The model of the strength that does best on held-out images, and every strength's accuracy there."""
    if len(parameters.l2s) == 1:
        return None, {}
    kept, held = hold_out_images(probe.images_of(rows), share=parameters.held_share, seed=parameters.subject.seed)
    held_tokens = _of_rows(tokens, held, probe.tokens_per_row)
    held_labels = _of_rows(labels, held, probe.tokens_per_row)
    counted = probe.scored_truth(held_labels) < probe.n_classes
    if not counted.any():
        raise StoreError("the held-out images have no labelled token; change --seed or pass one strength with --l2.")
    models = fit_path(
        _of_rows(tokens, kept, probe.tokens_per_row),
        _of_rows(labels, kept, probe.tokens_per_row),
        n_classes=probe.n_classes + 1,
        l2s=sorted(parameters.l2s, reverse=True),
        tolerance=_SWEEP_TOLERANCE,
        max_iterations=_SWEEP_ITERATIONS,
    )
    accuracies = [float(np.mean(predict(model, held_tokens)[counted] == held_labels[counted])) for model in models]
    best = int(np.argmax(accuracies))
    return models[best], {f"{model.l2:g}": value for model, value in zip(models, accuracies, strict=True)}


def _load(
    probe: ProbeInput, rows: Int64[np.ndarray, " rows"], mapping: FeatureMap
) -> tuple[Float32[np.ndarray, "tokens features"], Int64[np.ndarray, " tokens"]]:
    tokens = np.empty((len(rows) * probe.tokens_per_row, probe.n_features), dtype=np.float32)
    filled = 0
    for _, stored in probe.stored_blocks(rows):
        tokens[filled : filled + len(stored)] = mapping.apply(stored)
        filled += len(stored)
    return tokens, probe.labels(rows)


def _of_rows(values: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], per_row: int) -> np.ndarray[Any, Any]:
    by_row = values.reshape(-1, per_row, *values.shape[1:])
    chosen: np.ndarray[Any, Any] = by_row[positions].reshape(-1, *values.shape[1:])
    return chosen


def _shuffled_runs(probe: ProbeInput, *, seed: int) -> Iterator[Int64[np.ndarray, " rows"]]:
    """Training rows in blocks, each of ascending rows from a few places, the blocks in another order every epoch."""
    row_bytes = probe.tokens_per_row * probe.features.spec.n_features * _VALUE_BYTES
    rows_per_run = max(1, _ROWS_PER_BLOCK_BYTES // row_bytes)
    generator = np.random.default_rng(seed)
    pieces = np.array_split(probe.train_rows, max(1, -(-4 * len(probe.train_rows) // rows_per_run)))
    order = generator.permutation(len(pieces))
    for first in range(0, len(order), 4):
        yield np.sort(np.concatenate([pieces[index] for index in order[first : first + 4]]))
