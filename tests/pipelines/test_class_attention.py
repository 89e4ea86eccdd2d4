"""Attention of the class token against the whole square of attention that timm's own explicit kernel computes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model, vision_transformer, vision_transformer_relpos

from feature_store import open_store
from pipelines.backbones import (
    Backbone,
    BackboneError,
    BackboneRequest,
    Windows,
    load_backbone,
    resolve_backbone,
)
from pipelines.extract import extract_shard
from pipelines.plan import PlanError
from pipelines.run import Prepared, begin_extraction
from tests.pipelines.test_backbones import random_model, random_pixels


@register_model
def tiny_relpos_cls(pretrained: bool = False, **arguments: Any) -> Any:
    form = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "class_token": True, "global_pool": "token"}
    return vision_transformer_relpos._create_vision_transformer_relpos(
        "vit_relpos_small_patch16_224", pretrained, **{**form, **arguments}
    )


@register_model
def tiny_differential(pretrained: bool = False, **arguments: Any) -> Any:
    form = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "attn_layer": "diff"}
    config = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert config is not None
    arguments["pretrained_cfg"] = config.to_dict()
    return vision_transformer._create_vision_transformer("tiny_differential", pretrained, **{**form, **arguments})


# Learned positions, relative ones, rotations, layer scale, registers, a distillation token; not square.
FAMILIES = [
    ("test_vit", (32, 64)),
    ("vit_small_patch14_reg4_dinov2", (28, 42)),
    ("deit_tiny_distilled_patch16_224", (32, 64)),
    ("tiny_beit", (64, 32)),
    ("eva02_tiny_patch14_224", (42, 28)),
    ("vit_tiny_patch16_dinov3_qkvb", (32, 64)),
    ("tiny_relpos_cls", (32, 64)),
]


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., BackboneRequest]:
    def resolve(architecture: str, size: tuple[int, int], **options: Any) -> BackboneRequest:
        state = random_model(architecture, img_size=size).state_dict()
        path = tmp_path / f"{architecture}.safetensors"
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        return resolve_backbone(architecture, weights=path, image_size=size, **options)

    return resolve


def squares(backbone: Backbone, pixels: np.ndarray[Any, Any]) -> Iterator[torch.Tensor]:
    """The whole attention of every block, [views, heads, tokens, tokens], by a hook on what follows the softmax."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for block in backbone.module.blocks
    ]
    backbone.forward(pixels, [backbone.depth])
    for hook in hooks:
        hook.remove()
    yield from seen


@pytest.mark.parametrize("kernel", ["fused", "explicit"])
@pytest.mark.parametrize(("architecture", "size"), FAMILIES)
def test_it_is_the_first_row_of_the_softmax_of_each_block(
    request_for: Callable[..., BackboneRequest], architecture: str, size: tuple[int, int], kernel: str
) -> None:
    request = request_for(architecture, size)
    explicit = load_backbone(request, attention_kernel="explicit")
    pixels = random_pixels(explicit)
    expected = list(squares(explicit, pixels))
    assert len(expected) == explicit.depth
    backbone = load_backbone(request, attention_kernel=kernel)
    layers = [1, explicit.depth]
    tokens = backbone.forward(pixels, layers, class_attention=True)
    plain = backbone.forward(pixels, layers)
    n_patches = backbone.grid[0] * backbone.grid[1]
    for layer in layers:
        found, square = tokens[layer, "attention"], expected[layer - 1]
        assert found.dtype == torch.float32
        assert found.shape == (2, backbone.n_heads, n_patches)
        assert torch.allclose(square.sum(dim=-1), torch.ones(()), atol=1e-5)
        assert torch.allclose(found, square[:, :, 0, -n_patches:], atol=2e-6)
        # Some of it goes to the class token itself, so it does not sum to one.
        assert (found.sum(dim=-1) < 1).all()
        assert found.std() > 0
    # Watching changes no other token.
    assert all(torch.equal(tokens[name], plain[name]) for name in plain)
    assert set(tokens) - set(plain) == {(layer, "attention") for layer in layers}


@torch.inference_mode()
def test_it_is_the_published_formula(request_for: Callable[..., BackboneRequest]) -> None:
    backbone = load_backbone(request_for("test_vit", (32, 48)))
    pixels = random_pixels(backbone)
    inputs: list[torch.Tensor] = []
    attention = backbone.module.blocks[3].attn
    hook = attention.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    found = backbone.forward(pixels, [4], class_attention=True)[4, "attention"]
    hook.remove()
    (x,) = inputs
    weight, bias = attention.qkv.weight.double().numpy(), attention.qkv.bias.double().numpy()
    width = weight.shape[1]
    heads = backbone.n_heads
    q, k = (
        (x.double().numpy() @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width])
        .reshape(2, -1, heads, width // heads)
        .transpose(0, 2, 1, 3)
        for i in range(2)
    )
    logits = np.einsum("vhd,vhnd->vhn", q[:, :, 0], k) / np.sqrt(width // heads)
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = (exponents / exponents.sum(axis=-1, keepdims=True))[..., 1:]
    assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_a_row_has_the_same_bits_in_every_batch(request_for: Callable[..., BackboneRequest]) -> None:
    backbone = load_backbone(request_for("test_vit", (64, 64)))
    pixels = random_pixels(backbone, 5)
    together = backbone.forward(pixels, [6], class_attention=True)[6, "attention"]
    for row in range(5):
        alone = backbone.forward(pixels[row : row + 1], [6], class_attention=True)[6, "attention"]
        assert torch.equal(alone[0], together[row])


def test_half_precision_gives_it_in_float32_nearly(request_for: Callable[..., BackboneRequest]) -> None:
    request = request_for("test_vit", (32, 48))
    exact, rounded = (load_backbone(replace(request, compute_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    pixels = random_pixels(exact)
    of_exact, of_rounded = (b.forward(pixels, [6], class_attention=True)[6, "attention"] for b in (exact, rounded))
    assert of_rounded.dtype == torch.float32
    # Logits of order one, with eight bits.
    assert torch.allclose(of_exact, of_rounded, rtol=0.1)
    assert not torch.equal(of_exact, of_rounded)


def test_it_is_extracted_beside_the_tokens(prepare: Callable[..., Prepared], tiny_request: BackboneRequest) -> None:
    prepared = prepare(token_kinds=("attention", "cls"), layers=(2, "last"), storage_dtype="float32")
    assert prepared.plan.spec.identity.token_kinds == ("cls", "attention")
    begin_extraction(prepared)
    for shard in prepared.missing:
        extract_shard(prepared.plan, shard)
    features = open_store(prepared.plan.store).features(prepared.name)
    backbone = load_backbone(tiny_request)
    assert features.spec.n_heads == backbone.n_heads
    stored = features.read(2, "attention")
    assert stored.shape == (60, backbone.n_heads, 16)
    assert ((stored > 0) & (stored < 1)).all()
    assert not np.array_equal(stored, features.read("last", "attention"))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("null", {}, r"has no attention tokens; ask for --tokens patches,cls\."),
        ("test_vit2", {"image_size": 64}, r"has no attention tokens; ask for --tokens patches,registers\."),
        (
            "test_vit",
            {"image_size": 96, "windows": Windows(size=(64, 64), stride=(32, 32))},
            r"has no attention tokens in windows; ask for --tokens patches,cls\.",
        ),
    ],
)
def test_a_model_without_it_is_refused(
    prepare: Callable[..., Prepared], tmp_path: Path, model: str, options: dict[str, Any], message: str
) -> None:
    path = None
    if model != "null":
        path = tmp_path / "weights.pth"
        torch.save(timm.create_model(model, num_classes=0).state_dict(), path)
    request = resolve_backbone(model, weights=path, **options)
    with pytest.raises(PlanError, match=message):
        prepare(request=request, token_kinds=("patches", "attention"))
    if model == "test_vit2":
        backbone = load_backbone(request)
        pixels = random_pixels(backbone)
        with pytest.raises(BackboneError, match="has no class token whose attention could be told"):
            backbone.forward(pixels, [1], class_attention=True)


@pytest.mark.parametrize("kernel", ["fused", "explicit"])
def test_blocks_that_attend_twice_are_refused(request_for: Callable[..., BackboneRequest], kernel: str) -> None:
    request = request_for("tiny_differential", (32, 48))
    backbone = load_backbone(request, attention_kernel=kernel)
    assert type(backbone.module.blocks[0].attn).__name__ == "DiffAttention"
    pixels = random_pixels(backbone)
    assert (1, "cls") in backbone.forward(pixels, [1])
    with pytest.raises(BackboneError, match=r"block 1 of this model does not compute its attention in one product"):
        backbone.forward(pixels, [1], class_attention=True)
