"""A view's tokens have the same bits wherever it stands in a batch and whatever stands beside it, on a CPU.

One model of each kind of block and of position: learned, relative and rotary ones, with and without class token,
registers and layer scale, RMS norm, gated perceptrons. Over other batch sizes they are the same too for the sizes that
models are used at; docs/running.md says where they are not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.backbones import Backbone, BackboneRequest, load_backbone, resolve_backbone
from pipelines.backbones.backbone import Tokens
from tests.pipelines.test_backbones import FAMILIES, random_model, random_pixels

KINDS = [name for name, _, _, _, _ in FAMILIES]
# Enough patches for every family: 16 or 25.
SIZE = {"vit_small_patch14_reg4_dinov2": 70, "eva02_tiny_patch14_224": 70}
BATCH = 6


@pytest.fixture(scope="module")
def backbone_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Backbone]:
    requests: dict[str, Path] = {}

    def load(architecture: str, compute_dtype: str) -> Backbone:
        side = SIZE.get(architecture, 64)
        if architecture not in requests:
            requests[architecture] = tmp_path_factory.mktemp("same-bits") / "weights.safetensors"
            state = random_model(architecture, img_size=side).state_dict()
            save_file({name: value.contiguous() for name, value in state.items()}, requests[architecture])
        request: BackboneRequest = resolve_backbone(
            architecture, weights=requests[architecture], image_size=side, compute_dtype=compute_dtype
        )
        return load_backbone(request)

    return load


def tokens_of(backbone: Backbone, pixels: np.ndarray[Any, Any]) -> Tokens:
    attention = backbone.has_cls and backbone.n_heads > 0
    return backbone.forward(np.ascontiguousarray(pixels), [1, backbone.depth], class_attention=attention)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", KINDS)
def test_place_company_and_padding_change_no_bit(
    backbone_of: Callable[[str, str], Backbone], architecture: str, compute_dtype: str
) -> None:
    backbone = backbone_of(architecture, compute_dtype)
    pixels = random_pixels(backbone, BATCH)
    together = tokens_of(backbone, pixels)
    turned = tokens_of(backbone, pixels[::-1])
    padded = pixels.copy()
    padded[2:] = 0
    few = tokens_of(backbone, padded)
    for name, values in together.items():
        assert values.abs().max() > 0
        assert torch.equal(turned[name].flip(0), values), name
        assert torch.equal(few[name][:2], values[:2]), name


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", KINDS)
def test_the_size_of_the_batch_changes_no_bit(
    backbone_of: Callable[[str, str], Backbone], architecture: str, compute_dtype: str
) -> None:
    backbone = backbone_of(architecture, compute_dtype)
    pixels = random_pixels(backbone, BATCH)
    together = tokens_of(backbone, pixels)
    for size in (1, 2, 5):
        part = tokens_of(backbone, pixels[:size])
        for name, values in part.items():
            assert torch.equal(values, together[name][:size]), (name, size)
