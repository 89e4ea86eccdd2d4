"""Linear probe: multinomial logistic regression on standardised tokens, its strength chosen on held-out images.

The fit is one and the same wherever its tokens come from: memory, or a store that is read anew for every pass.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64

from evaluators.feature_map import standardising
from evaluators.held_out import sample_images
from evaluators.linear import Goal, LinearModel, fit_blocks, predict
from evaluators.linear_memory import MemoryPlan, plan_memory
from evaluators.moments import stream_moments
from evaluators.parameters import LinearParameters
from evaluators.probe_input import ProbeInput
from evaluators.results import ProbeResult
from evaluators.segmentation import Scorer
from evaluators.softmax_loss import sum_losses
from evaluators.tensors import as_tensor
from evaluators.training_tokens import HeldTokens, StoredTokens, TrainingTokens
from feature_store import FeatureSet, Selection, StoreError

# To rank strengths by held-out accuracy, a loss within some thousandths of the best is enough; the final fit goes on.
_SWEEP = Goal(tolerance=1e-4, max_iterations=200)
# In memory a pass costs little. Of a fit in passes over the store no more is promised than a loss within a thousandth
# of the best. Its tolerance is far below that, since the curvature tells of what is left only a third to a thirtieth,
# and its last ten steps must have lowered the loss by no more than a third of what is promised.
_HELD, _STREAMED = Goal(tolerance=1e-7), Goal(tolerance=1e-5, most_fall=3e-4)
_SAMPLE = Goal(tolerance=1e-5, max_iterations=200)
# A start from fewer images saves no pass: a small sample is fitted far better than the images beside it.
_LEAST_SAMPLE = 0.05
# What fits to patches of three datasets took, to say beforehand how long it may be.
_USUAL_PASSES = (40, 120)
# One surveys the rows, and one evaluates a model.
_LEAST_PASSES = 2


def _unsaid(_line: str) -> None:
    """Take a line and say nothing."""


def evaluate_linear(
    features: FeatureSet,
    parameters: LinearParameters,
    *,
    selection: Selection | None = None,
    say: Callable[[str], None] = _unsaid,
) -> ProbeResult:
    """Train a linear classifier on the stored training tokens and score it on the test tokens.

    Features are standardised by the training tokens. The strength with the best accuracy on held-out training images
    (whole images or sequences, never patches; of equal ones the strongest) is fitted again on all training tokens.
    Test rows decide nothing.

    Args:
        features: the feature set, complete.
        parameters: the question.
        selection: which features of a token; None for all.
        say: told in a line, before it begins, what a fit beyond memory does and how long it takes.

    Raises:
        IncompleteError: shards are missing.
        StoreError: no masks, labels or test rows; fewer than two training images to choose a strength on; less memory
            than any fit takes; or fewer passes than the choice of a strength takes.
    """
    features.require_complete()
    probe = ProbeInput(features, parameters.subject, selection)
    plan = plan_memory(probe, parameters)
    sample = None
    if plan.how == "sample":
        probe, sample = _sampled(probe, plan, parameters)
        say(_words_of_sample(sample, plan, parameters))
    blocks = probe.stored_blocks(probe.train_rows, block_bytes=plan.block_bytes)
    mapping = standardising(stream_moments(tokens for _, tokens in blocks), probe.columns)
    tokens = (StoredTokens if plan.how == "streamed" else HeldTokens)(probe, mapping, block_bytes=plan.block_bytes)
    fit = _Fit(probe, tokens, parameters, plan)
    if plan.how == "streamed":
        say(_words_of_passes(fit, plan, parameters))
    model, by_l2 = fit.run()
    details = {
        "l2": model.l2,
        "iterations": model.iterations,
        "loss": model.loss,
        "fitted": "in passes over the store by L-BFGS" if plan.how == "streamed" else "in memory by L-BFGS",
        "converged": model.converged,
        "passes": tokens.passes,
        "sample": sample,
        "held_out_accuracy": by_l2,
    }
    del fit, tokens  # the room that they take is the test tokens' now
    scorer = Scorer(probe)
    for rows, stored in probe.stored_blocks(probe.test_rows, block_bytes=plan.block_bytes):
        scorer.add(rows, predict(model, mapping.apply(stored)))
    return scorer.result(details)


class _Fit:
    """The choice of a strength, then the fit with it.

    Args:
        probe: what is classified.
        tokens: its training tokens, standardised.
        parameters: the question.
        plan: of the memory.
    """

    def __init__(
        self, probe: ProbeInput, tokens: TrainingTokens, parameters: LinearParameters, plan: MemoryPlan
    ) -> None:
        self._probe, self._tokens, self._parameters, self._plan = probe, tokens, parameters, plan
        self._n_classes = probe.n_classes + 1  # void is a class of its own
        self._rows = probe.train_rows

    def run(self) -> tuple[LinearModel, dict[str, float]]:
        """The model over all training tokens, and every strength's accuracy on the images held out."""
        best, by_l2 = self._best_on_held_out() if len(self._parameters.l2s) > 1 else (None, {})
        (model,) = fit_blocks(
            self._tokens.blocks(),
            n_classes=self._n_classes,
            l2s=self._parameters.l2s if best is None else [best.l2],
            starts=self._starts(np.arange(len(self._rows)), self._parameters.l2s) if best is None else [best],
            goal=replace(_STREAMED if self._plan.how == "streamed" else _HELD, max_passes=self._passes_left()),
        )
        return model, by_l2

    def seconds_a_pass(self) -> float:
        """About how long one pass takes: measured on one block, with as many models as strengths."""
        models, n_tokens = len(self._parameters.l2s), len(self._rows) * self._probe.tokens_per_row
        start = time.perf_counter()
        features, labels = next(iter(self._tokens.blocks()()))
        points = torch.zeros((models, self._n_classes, features.shape[1] + 1), dtype=torch.float64)
        mean = torch.zeros(features.shape[1], dtype=torch.float64)
        sum_losses(points, mean, [(as_tensor(features), as_tensor(labels))])
        self._tokens.passes = 0
        return (time.perf_counter() - start) * n_tokens / len(labels)

    def _best_on_held_out(self) -> tuple[LinearModel, dict[str, float]]:
        """The model of the strength that does best on held-out images, and every strength's accuracy there."""
        parameters = self._parameters
        kept, held = self._probe.hold_out(self._rows, share=parameters.held_share, seed=parameters.subject.seed)
        l2s = sorted(parameters.l2s, reverse=True)
        left = self._passes_left(keep=1 + _LEAST_PASSES)
        models = fit_blocks(
            self._tokens.blocks(kept),
            n_classes=self._n_classes,
            l2s=l2s,
            starts=self._starts(kept, l2s),
            goal=replace(_SWEEP, max_passes=left),
        )
        unfinished = sum(not model.converged and model.iterations < _SWEEP.max_iterations for model in models)
        if left is not None and unfinished:
            raise StoreError(
                f"--max-passes {parameters.max_passes}: after {self._tokens.passes} passes {unfinished} of {len(l2s)} "
                "strengths were not fitted well enough to compare them; give more passes, or one strength with --l2."
            )
        accuracies = self._accuracies(models, held)
        return models[int(np.argmax(accuracies))], {
            f"{model.l2:g}": value for model, value in zip(models, accuracies, strict=True)
        }

    def _accuracies(self, models: Sequence[LinearModel], held: Int64[np.ndarray, " rows"]) -> list[float]:
        """The share of the held-out tokens of a scored class that each model has right."""
        right, n_counted = np.zeros(len(models), dtype=np.int64), 0
        for features, labels in self._tokens.blocks(held)():
            counted = self._probe.scored_truth(labels) < self._probe.n_classes
            n_counted += int(counted.sum())
            right += [int((predict(model, features) == labels)[counted].sum()) for model in models]
        if not n_counted:
            raise StoreError(
                "the held-out images have no labelled token; change --seed or pass one strength with --l2."
            )
        return [int(count) / n_counted for count in right]

    def _starts(self, positions: Int64[np.ndarray, " rows"], l2s: Sequence[float]) -> list[LinearModel] | None:
        """Models of a seeded sample of images in memory, where passes over the store can be saved so; else None."""
        if self._plan.how != "streamed":
            return None
        images = self._probe.images_of(self._rows[positions])
        sampled, _ = sample_images(
            images,
            tokens_per_row=self._probe.tokens_per_row,
            room_tokens=self._plan.room_tokens,
            seed=self._parameters.subject.seed,
        )
        share = len(sampled) / len(positions)
        if share < _LEAST_SAMPLE:
            return None
        # The penalty on the sum over the rows stays what it is, or a sample is fitted too closely.
        models = fit_blocks(
            self._tokens.held(positions[sampled]).blocks(),
            n_classes=self._n_classes,
            l2s=[l2 / share for l2 in l2s],
            goal=_SAMPLE,
        )
        return [replace(model, l2=l2) for model, l2 in zip(models, l2s, strict=True)]

    def _passes_left(self, *, keep: int = 0) -> int | None:
        """How many of the passes are left, when so many are kept for later; None where nobody counts.

        Raises:
            StoreError: fewer than any fit takes.
        """
        if self._parameters.max_passes is None:
            return None
        left = self._parameters.max_passes - self._tokens.passes - keep
        if left < _LEAST_PASSES:
            raise StoreError(
                f"--max-passes {self._parameters.max_passes}: a fit goes {_LEAST_PASSES} times through the training "
                f"tokens at least, and the choice of a strength {1 + _LEAST_PASSES} times more; give more passes, or "
                "one strength with --l2."
            )
        return left


def _sampled(probe: ProbeInput, plan: MemoryPlan, parameters: LinearParameters) -> tuple[ProbeInput, dict[str, int]]:
    """The probe, trained on as many images as memory holds, and what its record says of them.

    Raises:
        StoreError: not even two images fit.
    """
    images = probe.images_of(probe.train_rows)
    seed = parameters.subject.seed
    positions, n_images = sample_images(
        images, tokens_per_row=probe.tokens_per_row, room_tokens=plan.room_tokens, seed=seed
    )
    if n_images < 2:
        raise StoreError(
            f"--memory {parameters.memory_bytes / 1e9:g} GB holds {n_images} of {len(set(images))} training images, "
            "and a probe needs two at least; give more, or --all-rows, which reads them from the store in passes."
        )
    sample = {"images": n_images, "of": len(set(images)), "seed": seed}
    return probe.trained_on(probe.train_rows[positions]), sample


def _words_of_sample(sample: Mapping[str, int], plan: MemoryPlan, parameters: LinearParameters) -> str:
    return (
        f"{sample['images']} of {sample['of']} training images are used, drawn with seed {sample['seed']}: with all of "
        f"them the fit takes {plan.need_bytes / 1e9:.3g} GB and --memory is "
        f"{parameters.memory_bytes / 1e9:g} GB. --all-rows trains on all, in passes over the store."
    )


def _words_of_passes(fit: _Fit, plan: MemoryPlan, parameters: LinearParameters) -> str:
    fewest, most = _USUAL_PASSES
    if parameters.max_passes is not None:
        fewest, most = min(fewest, parameters.max_passes), min(most, parameters.max_passes)
    seconds = fit.seconds_a_pass()
    return (
        f"with its training tokens the fit takes {plan.need_bytes / 1e9:.3g} GB and --memory is "
        f"{parameters.memory_bytes / 1e9:g} GB, so they are read from the store in passes: some {fewest} to {most} of "
        f"{seconds:.2g} s at most, {fewest * seconds / 60:.2g} to {most * seconds / 60:.2g} minutes in all. "
        "--max-passes ends sooner."
    )
