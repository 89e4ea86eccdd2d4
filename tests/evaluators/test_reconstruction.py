"""Every arm against a decoder called by hand on tokens that NumPy overwrote, and against scikit-image's measures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from evaluators import (
    DecoderError,
    MaeDecoder,
    ReconstructionParameters,
    VarianceParameters,
    arms_of,
    drop_random,
    drop_top_variance,
    evaluate_reconstruction,
    evaluate_variance,
    read_decoder,
    require_decodable,
    views_to_decode,
)
from feature_store import StoreError

from .conftest import Synthetic

pytest.importorskip("transformers")

from tests.evaluators.mae_checkpoint import published, random_mae

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PARAMETERS = ReconstructionParameters(decoder_sha256="cd" * 32, layer=2, seed=5)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_mae()


@pytest.fixture(scope="module")
def decoder(model: Any) -> MaeDecoder:
    return read_decoder(published(model))


@pytest.fixture
def stored(synthetic: Callable[..., Synthetic]) -> Synthetic:
    """40 views of 4 x 4 patches with 48 features, some test rows without tokens."""
    return synthetic(n_rows=40, grid=(4, 4), n_features=48, with_masks=False, invalid=(3, 4))


def pixels(rows: np.ndarray) -> np.ndarray:
    return np.stack([np.random.default_rng(row).integers(0, 256, (64, 64, 3), dtype=np.uint8) for row in rows])


def test_arms_score_what_brute_force_does(stored: Synthetic, decoder: MaeDecoder, model: Any) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    features = stored.features
    variances = {kind: evaluate_variance(features, VarianceParameters(kind=kind)) for kind in ("patches", "cls")}
    selection = drop_top_variance(features, variances["patches"], name="x", n_dropped=12, layer=2, kind="patches")
    arms = arms_of(selection, patches=variances["patches"], cls=variances["cls"], seed=5)
    result = evaluate_reconstruction(features, PARAMETERS, decoder=decoder, arms=arms, pixels=pixels)

    rows = [row for row in range(40) if row % 3 == 0 and stored.valid[row]]
    train = [row for row in range(40) if row % 3 and stored.valid[row]]
    tokens = np.concatenate([stored.cls[:, None], stored.patches], axis=1).astype(np.float64)
    patches = tokens[train, 1:].reshape(-1, 48)
    top = np.argsort(-patches.var(axis=0))[:12]
    random = sorted(
        set(range(48)) - set(drop_random(features, name="r", n_dropped=12, seed=5, layer=2, kind="patches").features)
    )
    original = pixels(np.asarray(rows)) / 255.0
    for name, columns, patch_values, cls_values in (
        ("untouched", [], 0, 0),
        ("zero", top, 0, 0),
        ("mean", top, patches.mean(axis=0)[top], tokens[train, 0].mean(axis=0)[top]),
        ("random zero", random, 0, 0),
    ):
        treated = tokens[rows].copy()
        treated[:, 1:, columns] = patch_values
        treated[:, 0, columns] = cls_values
        order = torch.arange(16).repeat(len(rows), 1)
        logits = model.decoder(torch.from_numpy(treated), order).logits
        normalised = model.unpatchify(logits).permute(0, 2, 3, 1).numpy()
        shown = np.clip(normalised * STD + MEAN, 0, 1)
        scores = result.arms[name]
        assert scores.mse == pytest.approx(((shown - original) ** 2).mean(), rel=1e-4)
        assert scores.loss == pytest.approx(((normalised - (original - MEAN) / STD) ** 2).mean(), rel=1e-4)
        similarity = [
            metrics.structural_similarity(a, b, channel_axis=2, data_range=1.0)
            for a, b in zip(shown, original, strict=True)
        ]
        assert scores.ssim == pytest.approx(np.mean(similarity), rel=1e-3)
    assert (result.n_views, result.n_taken, result.n_features, result.split) == (len(rows), 12, 48, "test")
    assert len({scores.loss for scores in result.arms.values()}) == 4


def test_views_are_spread_evenly_over_the_valid_rows_of_the_split(stored: Synthetic) -> None:
    everything, split = views_to_decode(stored.features, PARAMETERS)
    assert split == "test"
    assert everything.tolist() == [row for row in range(40) if row % 3 == 0 and row != 3]
    some, _ = views_to_decode(stored.features, replace(PARAMETERS, n_views=4))
    assert some.tolist() == [everything[index].item() for index in (0, 3, 6, 9)]
    whole, split = views_to_decode(stored.features, replace(PARAMETERS, split=None, n_views=1000))
    assert (whole.size, split) == (38, None)
    with pytest.raises(StoreError, match=r"split 'dev' is not in .*; splits there: test, train"):
        views_to_decode(stored.features, replace(PARAMETERS, split="dev"))


def test_tokens_and_images_of_other_sizes_are_refused(
    stored: Synthetic, synthetic: Callable[..., Synthetic], decoder: MaeDecoder
) -> None:
    with pytest.raises(StoreError, match="layer 7 is not in"):
        require_decodable(stored.features, decoder, 7)
    other = synthetic(n_rows=9, grid=(3, 4), n_features=48).features
    with pytest.raises(DecoderError, match="48 features on a grid of 3 x 4, and the decoder takes 48 on 4 x 4"):
        require_decodable(other, decoder, 2)
    with pytest.raises(DecoderError, match="the encoder saw 60 x 64 pixels, and the decoder gives 64 x 64"):
        evaluate_reconstruction(
            stored.features, PARAMETERS, decoder=decoder, arms=(), pixels=lambda rows: pixels(rows)[:, :60]
        )
