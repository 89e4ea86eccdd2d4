"""What the features of high variance hold: stored encoder tokens through MAE's decoder, with and without them.

Each way of treating the tokens is an **arm**: untouched, the chosen features set to zero, set to their mean, and as
many random features set to zero, which is the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from evaluators.image_error import structural_similarity
from evaluators.mae_decoder import DecoderError, MaeDecoder, denormalise_pixels, normalise_pixels
from evaluators.results import VarianceResult
from evaluators.tensors import as_tensor
from feature_store import FeatureSet, Selection, StoreError

RECONSTRUCTION_REVISION = 1
ARMS = ("untouched", "zero", "mean", "random zero")
_TEST_SPLITS = ("test", "val", "validation")
_VIEWS_PER_BLOCK = 16

Pixels = Callable[[Int64[np.ndarray, " rows"]], UInt8[np.ndarray, "rows height width 3"]]


@dataclass(frozen=True, kw_only=True)
class ReconstructionParameters:
    """One question to a decoder; which features are taken away is the selection's.

    Attributes:
        decoder_sha256: of the checkpoint file that the decoder is from.
        layer: the encoder's last block, whose tokens the decoder takes.
        split: of the views; `auto` takes the first of test, val, validation that exists, else all; None takes all.
        n_views: how many, spread evenly over the split; None for all of it.
        seed: of the random features.
    """

    decoder_sha256: str
    layer: int
    split: str | None = "auto"
    n_views: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ArmScores:
    """How near the images of one arm come to the originals.

    Attributes:
        mse: mean squared error over all pixels of all patches, of values in 0..1, what leaves them cut off.
        ssim: structural similarity, the mean over the views.
        loss: the decoder's own training loss over all patches: mean squared error of normalised values, none cut off.
    """

    mse: float
    ssim: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """What every arm scored.

    Attributes:
        arms: scores by the name of the arm, in the order of `ARMS`.
        n_views: images that were decoded.
        n_taken: features that were taken away, of `n_features`.
        n_features: of a token.
        split: of the views, or None for all.
        seed: of the random features.
    """

    arms: Mapping[str, ArmScores]
    n_views: int
    n_taken: int
    n_features: int
    split: str | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """One way of treating the tokens.

    Attributes:
        name: of `ARMS`.
        columns: features that are overwritten.
        patches, cls: what with, one value a column.
    """

    name: str
    columns: Int64[np.ndarray, " columns"]
    patches: Float32[np.ndarray, " columns"]
    cls: Float32[np.ndarray, " columns"]

    def applied(self, tokens: torch.Tensor, values: Float32[np.ndarray, " columns"]) -> torch.Tensor:
        """A copy of the tokens with the columns overwritten."""
        treated = tokens.clone()
        treated[..., as_tensor(self.columns)] = as_tensor(values).to(treated.dtype)
        return treated


def arms_of(
    selection: Selection, *, patches: VarianceResult, cls: VarianceResult, seed: int
) -> tuple[Arm, Arm, Arm, Arm]:
    """The four arms for the features that a selection drops.

    Args:
        selection: what is kept.
        patches, cls: whose means stand in for the dropped features, each kind's own.
        seed: of the random features, which are those of `drop_random` with the same seed.
    """
    dropped = np.setdiff1d(np.arange(selection.width), np.asarray(selection.features))
    drawn = np.random.default_rng(seed).permutation(selection.width)[: len(dropped)]
    zeros = np.zeros(len(dropped), dtype=np.float32)
    none, nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    means = {kind: np.asarray(of.mean, dtype=np.float32)[dropped] for kind, of in (("patches", patches), ("cls", cls))}
    return (
        Arm(name=ARMS[0], columns=none, patches=nothing, cls=nothing),
        Arm(name=ARMS[1], columns=dropped, patches=zeros, cls=zeros),
        Arm(name=ARMS[2], columns=dropped, **means),
        Arm(name=ARMS[3], columns=np.sort(drawn), patches=zeros, cls=zeros),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Some views as every arm gives them.

    Attributes:
        rows: of the views.
        originals: what the encoder saw, in 0..1.
        normalised: by the name of the arm: what the decoder gave, normalised.
    """

    rows: Int64[np.ndarray, " rows"]
    originals: Float32[torch.Tensor, "rows height width 3"]
    normalised: Mapping[str, torch.Tensor]

    def image(self, arm: str) -> Float32[torch.Tensor, "rows height width 3"]:
        """What an arm shows, in 0..1, what leaves it cut off."""
        return denormalise_pixels(self.normalised[arm]).clamp(0, 1)


def decoded_views(
    features: FeatureSet,
    rows: Int64[np.ndarray, " rows"],
    decoder: MaeDecoder,
    arms: Sequence[Arm],
    *,
    layer: int,
    pixels: Pixels,
) -> Iterator[Decoded]:
    """Decode the stored tokens of some views in every arm, a few views at a time.

    Args:
        features: the feature set, with patches and cls of `layer`.
        rows: ascending; valid ones.
        decoder: from `read_decoder`.
        arms: from `arms_of`.
        layer: the encoder's last block.
        pixels: gives the views of some rows as the encoder saw them.

    Raises:
        DecoderError: tokens or images of other sizes than the decoder's.
    """
    require_decodable(features, decoder, layer)
    for start in range(0, len(rows), _VIEWS_PER_BLOCK):
        block = rows[start : start + _VIEWS_PER_BLOCK]
        patches, cls = (as_tensor(features.read(layer, kind, block)).float() for kind in ("patches", "cls"))
        with torch.inference_mode():
            normalised = {
                arm.name: decoder.images(arm.applied(patches, arm.patches), arm.applied(cls, arm.cls)) for arm in arms
            }
        originals = as_tensor(pixels(block)).float() / 255
        _check_size(originals, decoder)
        yield Decoded(rows=block, originals=originals, normalised=normalised)


def evaluate_reconstruction(
    features: FeatureSet,
    parameters: ReconstructionParameters,
    *,
    decoder: MaeDecoder,
    arms: Sequence[Arm],
    pixels: Pixels,
) -> ReconstructionResult:
    """Score every arm's images against the originals, in bounded memory.

    Args:
        features: the feature set, complete.
        parameters: the question.
        decoder, arms, pixels: see `decoded_views`.

    Raises:
        IncompleteError: shards are missing.
        StoreError: no valid row in the split, or no class tokens.
        DecoderError: tokens or images of other sizes than the decoder's.
    """
    features.require_complete()
    rows, split = views_to_decode(features, parameters)
    squares = {arm.name: np.zeros(2) for arm in arms}
    similarities: dict[str, list[float]] = {arm.name: [] for arm in arms}
    n_values = 0
    for block in decoded_views(features, rows, decoder, arms, layer=parameters.layer, pixels=pixels):
        n_values += block.originals.numel()
        target = normalise_pixels(block.originals)
        for arm in arms:
            shown = block.image(arm.name)
            squares[arm.name] += (_square_sum(shown, block.originals), _square_sum(block.normalised[arm.name], target))
            similarities[arm.name] += structural_similarity(shown, block.originals).tolist()
    return ReconstructionResult(
        arms={
            arm.name: ArmScores(
                mse=float(squares[arm.name][0] / n_values),
                ssim=float(np.mean(similarities[arm.name])),
                loss=float(squares[arm.name][1] / n_values),
            )
            for arm in arms
        },
        n_views=len(rows),
        n_taken=max(len(arm.columns) for arm in arms),
        n_features=features.spec.n_features,
        split=split,
        seed=parameters.seed,
    )


def resolve_parameters(features: FeatureSet, parameters: ReconstructionParameters) -> ReconstructionParameters:
    """`parameters` with `auto` replaced by what it means here, so that equal questions have equal keys.

    Raises:
        StoreError: the split has no valid rows.
    """
    rows, split = views_to_decode(features, replace(parameters, n_views=None))
    everything = parameters.n_views is None or parameters.n_views >= len(rows)
    return replace(parameters, split=split, n_views=None if everything else parameters.n_views)


def views_to_decode(
    features: FeatureSet, parameters: ReconstructionParameters
) -> tuple[Int64[np.ndarray, " rows"], str | None]:
    """The valid rows that the parameters name, ascending, and their split.

    Raises:
        StoreError: the split has none.
    """
    split = parameters.split
    if split == "auto":
        split = next((name for name in _TEST_SPLITS if name in features.splits), None)
    rows = features.rows_of_split(split)
    if not rows.size:
        raise StoreError(f"split {split!r} of {features.name} has no valid rows; name another with --split.")
    if parameters.n_views is None or parameters.n_views >= len(rows):
        return rows, split
    return rows[np.arange(parameters.n_views) * len(rows) // parameters.n_views], split


def require_decodable(features: FeatureSet, decoder: MaeDecoder, layer: int) -> None:
    """Refuse tokens that the decoder does not take.

    Raises:
        StoreError: no class tokens, or the layer is not stored.
        DecoderError: another width or grid, or features of a PCA.
    """
    spec = features.spec
    features.layer_number(layer)
    lacking = [kind for kind in ("patches", "cls") if kind not in spec.identity.token_kinds]
    if lacking:
        raise StoreError(
            f"{features.name} has no {lacking[0]} tokens, and the decoder takes patches and cls; `vitrine extract "
            "--tokens patches,cls` adds a feature set with them."
        )
    if spec.identity.basis is not None:
        raise DecoderError(f"{features.name} holds components of a PCA; decode the feature set that it was made from.")
    if (spec.n_features, spec.grid) != (decoder.n_features, decoder.grid):
        raise DecoderError(
            f"{features.name} has {spec.n_features} features on a grid of {spec.grid[0]} x {spec.grid[1]}, and the "
            f"decoder takes {decoder.n_features} on {decoder.grid[0]} x {decoder.grid[1]}; extract with the model and "
            "input size that the checkpoint was trained with."
        )


def _check_size(originals: torch.Tensor, decoder: MaeDecoder) -> None:
    height, width = (cells * decoder.patch_size_px for cells in decoder.grid)
    if tuple(originals.shape[1:3]) != (height, width):
        raise DecoderError(
            f"the encoder saw {originals.shape[1]} x {originals.shape[2]} pixels, and the decoder gives {height} x "
            f"{width}; extract with the model that the checkpoint was trained with."
        )


def _square_sum(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).square_().sum())
