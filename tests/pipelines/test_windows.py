"""Sliding windows against a loop that runs the plain model on each window and averages patch by patch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feature_store import open_store
from pipelines.backbones import (
    Backbone,
    BackboneError,
    BackboneRequest,
    Windows,
    describe_backbone,
    load_backbone,
    resolve_backbone,
)
from pipelines.backbones.backbone import Tokens
from pipelines.backbones.null import NullBackbone, load_null
from pipelines.backbones.preprocessing import Preprocessing
from pipelines.backbones.windows import in_windows, one_window, window_starts
from pipelines.extract import extract_shard
from pipelines.run import Prepared, begin_extraction

Pixels = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def request_for(tiny_model: str, tiny_weights: Path) -> Callable[..., BackboneRequest]:
    def resolve(size: tuple[int, int], windows: Windows | None = None, **others: Any) -> BackboneRequest:
        return resolve_backbone(tiny_model, weights=tiny_weights, image_size=size, windows=windows, **others)

    return resolve


def random_pixels(backbone: Backbone, n_views: int) -> Pixels:
    shape = (n_views, *backbone.preprocessing.image_size, 3)
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def averaged_by_hand(plain: Backbone, view: Pixels, stride: tuple[int, int], layer: int) -> dict[str, Pixels]:
    """Tokens of one view, float64: every window alone, every patch a list of what it was given."""
    height, width = plain.preprocessing.image_size
    patch = height // plain.grid[0]
    given_: dict[tuple[int, int], list[Pixels]] = {}
    cls = []
    for top in sorted({*range(0, view.shape[0] - height, stride[0]), view.shape[0] - height}):
        for left in sorted({*range(0, view.shape[1] - width, stride[1]), view.shape[1] - width}):
            tokens = plain.forward(view[None, top : top + height, left : left + width].copy(), [layer])
            cls.append(tokens[layer, "cls"][0].double().numpy())
            of_window = tokens[layer, "patches"][0].unflatten(0, plain.grid).double().numpy()
            for y, x in np.ndindex(*plain.grid):
                given_.setdefault((top // patch + y, left // patch + x), []).append(of_window[y, x])
    assert len(given_) == (view.shape[0] // patch) * (view.shape[1] // patch)
    return {"patches": np.stack([np.mean(given_[place], axis=0) for place in sorted(given_)]), "cls": np.mean(cls, 0)}


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((96, 128), (64, 64), (32, 32)),
        ((96, 128), (64, 64), (16, 48)),  # the last column of windows is 16 pixels after the one before
        ((80, 144), (64, 64), (64, 64)),  # touching, but for the last ones
        ((64, 96), (32, 64), (32, 16)),
    ],
)
def test_tokens_are_those_of_a_loop_over_windows(
    request_for: Callable[..., BackboneRequest],
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    request = request_for(size, Windows(size=window, stride=stride))
    windowed, plain = load_backbone(request), load_backbone(request_for(window))
    assert windowed.grid == (size[0] // 16, size[1] // 16)
    pixels = random_pixels(windowed, 3)
    tokens = windowed.forward(pixels, [3, 6])
    assert set(tokens) == {(layer, kind) for layer in (3, 6) for kind in ("patches", "cls")}
    for layer in (3, 6):
        for row, view in enumerate(pixels):
            expected = averaged_by_hand(plain, view, stride, layer)
            for kind in ("patches", "cls"):
                found = tokens[layer, kind][row].numpy()
                # A few additions in float32 on values of a few units.
                assert np.allclose(found, expected[kind], rtol=1e-5, atol=1e-5)


def test_one_window_as_large_as_the_input_gives_the_bits_of_the_plain_model(
    request_for: Callable[..., BackboneRequest],
) -> None:
    plain = load_backbone(request_for((64, 96)))
    windowed = load_backbone(request_for((64, 96), Windows(size=(64, 96), stride=(16, 16))))
    pixels = random_pixels(plain, 2)
    expected, found = plain.forward(pixels, [6]), windowed.forward(pixels, [6])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # The same numbers, and yet another way to make them.
    assert windowed.preprocessing.to_json() != plain.preprocessing.to_json()


def test_a_row_has_the_same_bits_in_every_batch(request_for: Callable[..., BackboneRequest]) -> None:
    backbone = load_backbone(request_for((96, 64), Windows(size=(64, 64), stride=(32, 32))))
    pixels = random_pixels(backbone, 4)
    together = backbone.forward(pixels, [6])
    for row in range(4):
        alone = backbone.forward(pixels[row : row + 1], [6])
        assert all(torch.equal(alone[name][0], together[name][row]) for name in together)


class _DistanceBackbone(NullBackbone):
    """A backbone whose class token is the ground sample distance that it was given."""

    def tokens_of(
        self,
        inputs: torch.Tensor,
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: torch.Tensor | None = None,
    ) -> Tokens:
        assert ground_sample_distance_m is not None
        tokens = super().tokens_of(inputs, layers)
        for layer in layers:
            tokens[layer, "cls"] = ground_sample_distance_m[:, None].expand_as(tokens[layer, "cls"])
        return tokens


def test_every_window_is_told_the_ground_sample_distance_of_its_view() -> None:
    windows = Windows(size=(32, 32), stride=(16, 32))
    request = resolve_backbone("null", image_size=(64, 64), windows=windows)
    null = load_null(one_window(request))
    inner = _DistanceBackbone(**{field.name: getattr(null, field.name) for field in fields(null)})
    backbone = in_windows(inner, request)
    distances = np.array([0.25, np.nan, 2], dtype=np.float32)
    found = backbone.forward(random_pixels(backbone, 3), [1], ground_sample_distance_m=distances)
    assert np.array_equal(found[1, "cls"][:, 0].numpy(), distances, equal_nan=True)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_windows_cover_everything_and_stay_inside(n_patches: int, window: int, stride: int) -> None:
    window, stride = min(window, n_patches), min(stride, window, n_patches)
    starts = window_starts(n_patches, window, stride)
    assert starts == sorted(set(starts))
    assert (starts[0], starts[-1] + window) == (0, n_patches)
    assert {place for start in starts for place in range(start, start + window)} == set(range(n_patches))
    assert all(start % stride == 0 for start in starts[:-1])


def test_windows_are_described_recorded_and_sent_to_workers(request_for: Callable[..., BackboneRequest]) -> None:
    windows = Windows(size=(64, 64), stride=(32, 16))
    request = request_for((96, 128), windows)
    described, loaded = describe_backbone(request), load_backbone(request)
    assert described.grid == loaded.grid == (6, 8)
    assert described.preprocessing == loaded.preprocessing
    recorded = loaded.preprocessing.to_json()
    assert (recorded["image_size"], recorded["windows"]["size"]) == ([96, 128], [64, 64])
    assert recorded["windows"]["stride"] == [32, 16]
    # The embedding is brought to the grid of a window.
    assert "to 4x4" in recorded["position_embedding"]
    assert Preprocessing.from_json(json.loads(json.dumps(recorded))) == loaded.preprocessing
    assert BackboneRequest.from_json(json.loads(json.dumps(asdict(request)))) == request


@pytest.mark.parametrize(
    ("size", "window", "stride", "message"),
    [
        ((96, 128), (128, 64), (32, 32), r"--window 128x64 is larger than the input, --image-size 96x128"),
        ((96, 128), (64, 64), (80, 32), r"--stride 80x32 leaves gaps between windows of 64"),
        ((96, 128), (64, 64), (32, 40), r"--stride 32x40 is not a multiple of the 16-pixel patch"),
        ((96, 120), (64, 64), (32, 32), r"--image-size 96x120 is not a multiple of the 16-pixel patch"),
        ((96, 128), (60, 64), (32, 32), r"--image-size 60x64 is not a multiple"),
        (None, (64, 64), (32, 32), r"--window 64 slides over an input whose size is not given; add --image-size"),
    ],
)
def test_windows_that_have_no_common_grid_are_refused(
    request_for: Callable[..., BackboneRequest],
    size: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    message: str,
) -> None:
    with pytest.raises(BackboneError, match=message):
        describe_backbone(request_for(size, Windows(size=window, stride=stride)))


def test_the_null_model_extracts_in_windows_what_it_extracts_whole(
    prepare: Callable[..., Prepared],
) -> None:
    # Its patch tokens depend on nothing but the patch, so that windows change none of them.
    stored = {}
    for store, windows in (("whole", None), ("windows", Windows(size=(32, 32), stride=(16, 32)))):
        request = resolve_backbone("null", image_size=(64, 48), windows=windows, fit="squash")
        prepared = prepare(request=request, store=store)
        begin_extraction(prepared)
        for shard in prepared.missing:
            extract_shard(type(prepared.plan).from_json(prepared.plan.to_json()), shard)
        stored[store] = open_store(prepared.plan.store).features(prepared.name)
    whole, sliding = stored["whole"], stored["windows"]
    assert whole.digest != sliding.digest
    assert sliding.read("last", "patches").shape == (60, 12, 32)
    assert np.array_equal(whole.read("last", "patches"), sliding.read("last", "patches"))
