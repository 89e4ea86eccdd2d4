"""The null model: a linear map of pixels, exact, without a file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feature_store import FeatureSet
from pipelines.backbones import BackboneError, kernel_name, load_backbone, resolve_backbone
from pipelines.beam_engine import BeamEngine
from pipelines.run import Prepared, run_extraction


def pictures_of(n_views: int, side: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 256, (n_views, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [16, 64, 96])
def test_tokens_are_the_linear_map_of_each_patch(side: int) -> None:
    backbone = load_backbone(resolve_backbone("null", image_size=side))
    pixels = pictures_of(3, side)
    tokens = backbone.forward(pixels, [1, 2])
    assert backbone.grid == (side // 16, side // 16)
    for layer in (1, 2):
        weights = backbone.module[layer - 1].numpy()
        patches = []
        for y in range(0, side, 16):
            for x in range(0, side, 16):
                # Channel first, as the model takes them.
                values = pixels[:, y : y + 16, x : x + 16].transpose(0, 3, 1, 2).reshape(3, -1)
                patches.append(values.astype(np.int64) @ weights.astype(np.int64))
        expected = np.stack(patches, axis=1)
        scale = 255 * 4 * 16
        assert np.array_equal(tokens[layer, "patches"].numpy(), (expected / scale).astype(np.float32))
        mean = expected.sum(axis=1) / (scale * len(patches))
        assert np.array_equal(tokens[layer, "cls"].numpy(), mean.astype(np.float32))
    assert not torch.equal(tokens[1, "cls"], tokens[2, "cls"])


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    backbone = load_backbone(resolve_backbone("null"))
    pixels = pictures_of(7)
    together = backbone.forward(pixels, [2])
    for row in range(7):
        alone = backbone.forward(pixels[row : row + 1], [2])
        assert all(torch.equal(alone[name][0], together[name][row]) for name in together)


def test_the_weights_have_the_digest_of_their_numbers() -> None:
    request = resolve_backbone("null")
    # Of the int8 numbers as they came when the model was made: another value here means other features everywhere.
    assert request.weights_sha256 == "f59e88bfee9e5ff4c9b5deb5cdf063e443813186be0d811541010cd5e3d7834c"
    assert request.weights == ""
    assert kernel_name(request) == "none"
    weights = load_backbone(request).module
    assert set(weights.unique().tolist()) == set(range(-4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": Path("w.pth")}, r"'null' takes no weights, and w\.pth were given; leave --weights out"),
        ({"compute_dtype": "bfloat16"}, r"'null' is exact and has no bfloat16 form; leave --compute out"),
        ({"image_size": 40}, r"--image-size 40 is not a positive multiple of the 16-pixel patch of 'null'; use 64"),
        ({"image_size": 0}, r"--image-size 0 is not a positive multiple"),
    ],
)
def test_what_the_null_model_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        resolve_backbone("null", **options)


def test_an_extraction_goes_through_the_same_path_as_any_model(prepare: Callable[..., Prepared]) -> None:
    request = resolve_backbone("null")
    prepared = prepare(request=request, layers=(1, 2))
    outcome = run_extraction(prepared, BeamEngine())
    assert (outcome.committed, outcome.failures) == (8, ())
    features = FeatureSet(prepared.root, prepared.name)
    assert features.spec.model == "null"
    tokens = features.read(2, "patches")
    assert tokens.shape == (60, 16, 32)
    assert np.ptp(tokens.astype(np.float32)) > 0.1
    other = prepare(request=replace(request, image_size=(96, 96)), store="other")
    assert other.plan.spec.identity.digest != features.digest
