"""Folders of transformers, and CLIP's towers, against transformers itself: the same folder read by both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.backbones import BackboneError, resolve_backbone
from pipelines.backbones.inspection import inspect_checkpoint
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones import references as refer
from tests.pipelines.backbones.published_files import Draw, Size, State, pixels

Compare = Callable[..., None]
SIZE = Size(depth=2)
RESOLUTIONS = {"native": (224, 224), "not square": (160, 256)}
WITH_REGISTERS = frozenset({"patches", "cls", "registers"})
# transformers resamples what it does in float32 there; so these are compared at their own size alone.
SINGLE_PRECISION_POSITIONS = {"dinov2", "dinov2_with_registers"}


def tower(*, clip: bool) -> State:
    """The image tower of CLIP or SigLIP under plain names."""
    draw, state = Draw(11), publish.plain(SIZE, seed=11)
    if clip:
        del state["patch_embed.proj.bias"]
        return {**state, **dict(draw.norm("norm_pre", SIZE.width))}
    del state["cls_token"]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def folders() -> dict[str, tuple[State, dict[str, Any], str]]:
    """By model type: tensors under the names of the hub, what config.json says, and transformers' class."""
    plain = publish.plain(SIZE)
    jepa = {name.removeprefix("module."): tensor for name, tensor in publish.ijepa(SIZE)["encoder"].items()}
    jepa_names = refer.transformers_vit_names({**jepa, "cls_token": torch.zeros(1)}, SIZE)
    del jepa_names["embeddings.cls_token"]
    one_table = {"use_mask_token": True, "use_shared_relative_position_bias": True, "use_mean_pooling": False}
    beit = publish.beit(SIZE, shared=True)["model"]
    small = {"mlp_ratio": 4}
    return {
        "vit": (refer.transformers_vit_names(plain, SIZE), {"layer_norm_eps": 1e-12}, "ViTModel"),
        "vit_mae": (
            {f"vit.{name}": tensor for name, tensor in refer.transformers_vit_names(plain, SIZE).items()},
            {"mask_ratio": 0.0, "layer_norm_eps": 1e-12},
            "ViTMAEModel",
        ),
        "ijepa": (jepa_names, {}, "IJepaModel"),
        "dinov2": (refer.transformers_dinov2_names(publish.dinov2(SIZE), SIZE), small, "Dinov2Model"),
        "dinov2_with_registers": (
            refer.transformers_dinov2_names(publish.dinov2(SIZE, registers=4), SIZE),
            {**small, "num_register_tokens": 4},
            "Dinov2WithRegistersModel",
        ),
        "beit": (refer.transformers_beit_names(beit, SIZE), {**one_table, "layer_norm_eps": 1e-12}, "BeitModel"),
        "clip_vision_model": (
            refer.transformers_tower_names(tower(clip=True), SIZE),
            {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
            "CLIPVisionModel",
        ),
        "siglip_vision_model": (
            refer.transformers_tower_names(tower(clip=False), SIZE),
            {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": False},
            "SiglipVisionModel",
        ),
    }


@pytest.mark.parametrize("case", RESOLUTIONS)
@pytest.mark.parametrize("model_type", list(folders()))
def test_a_folder_of_transformers_gives_transformers_own_tokens(
    compare: Compare, tmp_path: Path, model_type: str, case: str
) -> None:
    if case != "native" and model_type in SINGLE_PRECISION_POSITIONS:
        pytest.skip("transformers resamples in float32")
    state, settings, name = folders()[model_type]
    pooled = {"add_pooling_layer": False} if name in {"ViTModel", "IJepaModel", "BeitModel"} else {}
    model = refer.transformers_model(
        tmp_path / "folder", state, refer.config(SIZE, model_type=model_type, **settings), name, **pooled
    )
    inputs = pixels(*RESOLUTIONS[case])
    n_patches = inputs.shape[-1] * inputs.shape[-2] // SIZE.patch**2
    order = {"noise": torch.arange(float(n_patches)).expand(2, -1)} if model_type == "vit_mae" else {}
    anywhere = {} if "dinov2" in model_type or model_type == "beit" else {"interpolate_pos_encoding": True}
    theirs = refer.transformers_tokens(model, inputs, refer.final_norm(model), **order, **anywhere)
    kinds = {"ijepa": frozenset({"patches"}), "siglip_vision_model": frozenset({"patches"})}
    compare(
        f"hf-{model_type.removesuffix('_vision_model').replace('_', '-')}",
        case,
        tmp_path / "folder",
        inputs,
        theirs,
        n_prefix={"ijepa": 0, "siglip_vision_model": 0, "dinov2_with_registers": 5}.get(model_type, 1),
        kinds=WITH_REGISTERS if "registers" in model_type else kinds.get(model_type, frozenset({"patches", "cls"})),
    )


def test_openai_names_give_the_tokens_of_transformers_clip(compare: Compare, tmp_path: Path) -> None:
    state = tower(clip=True)
    settings = refer.config(SIZE, model_type="clip_vision_model", layer_norm_eps=1e-5, hidden_act="quick_gelu")
    names = refer.transformers_tower_names(state, SIZE)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "CLIPVisionModel")
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, refer.final_norm(model))
    compare("clip", "native", refer.openai_clip_names(state, SIZE), inputs, theirs, arguments=("act_layer=quick_gelu",))


def test_dinov3s_folder_gives_the_tokens_of_its_file(compare: Compare, tmp_path: Path) -> None:
    content = publish.dinov3(SIZE)
    settings = refer.config(SIZE, model_type="dinov3_vit", num_register_tokens=4, layer_norm_eps=1e-5)
    names = refer.transformers_dinov3_names(content, SIZE)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "DINOv3ViTModel")
    head = SIZE.width // SIZE.heads
    periods = (100.0 ** (2 * torch.arange(head // 4) / (head // 2))).double()
    model.rope_embeddings = refer.FileRotation(SIZE.patch, periods)
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, model.norm)
    compare("hf-dinov3-vit", "native", tmp_path / "folder", inputs, theirs, n_prefix=5, kinds=WITH_REGISTERS)


def test_a_folder_says_how_its_images_are_prepared(tmp_path: Path) -> None:
    state, settings, name = folders()["vit"]
    folder = refer.transformers_folder(
        tmp_path / "folder", state, refer.config(SIZE, model_type="vit", **settings), name
    )
    assert resolve_backbone("auto", weights=folder).model == "hf-vit-w128-16"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "a folder without model.safetensors or pytorch_model.bin"),
        ({"model.safetensors": b"", "config.json": b"{"}, r"not a (readable )?checkpoint"),
    ],
)
def test_a_folder_that_is_none_of_transformers_is_one_clear_error(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=said):
        resolve_backbone("auto", weights=tmp_path)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "model_type": ({"model_type": "bert"}, r"model_type 'bert', which is not one of vit, vit_mae"),
    "activation": ({"hidden_act": "relu"}, r"hidden_act 'relu', which is not one of gelu"),
    "activation of no text": ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]"),
    "epsilon of text": ({"layer_norm_eps": "a"}, r"layer_norm_eps 'a'; a number is needed"),
    "epsilon below 0": ({"layer_norm_eps": -1e-6}, r"layer_norm_eps -1e-06; a number above 0"),
    "epsilon of yes": ({"layer_norm_eps": True}, r"layer_norm_eps True; a number is needed"),
    "no heads": ({"num_attention_heads": 0}, r"num_attention_heads 0; a positive whole number"),
    "heads of text": ({"num_attention_heads": "x"}, r"num_attention_heads 'x'; a positive whole number"),
    "heads that do not divide": ({"num_attention_heads": 5}, r"num_attention_heads 5, which does not divide .* 128"),
    "a thousand million blocks": ({"num_hidden_layers": 10**9}, r"num_hidden_layers 1000000000; a positive"),
    "a million blocks": ({"num_hidden_layers": 10**6}, r"num_hidden_layers 1000000, and the file holds 2 blocks"),
    "another input": ({"image_size": 256}, r"image_size 256, which needs 257 positions, and the file stores 197"),
    "an input that is not square": ({"image_size": [224, 256]}, r"image_size \[224, 256\]; a positive whole"),
    "a tower that is none": ({"vision_config": 3}, r"vision_config 3; an object is needed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_configuration_that_is_not_supported_is_named_by_key_and_value(tmp_path: Path, case: str) -> None:
    state, settings, name = folders()["vit"]
    changes, said = BROKEN[case]
    config = {**refer.config(SIZE, model_type="vit", **settings), **changes}
    folder = refer.transformers_folder(tmp_path / "folder", state, config, name)
    with pytest.raises(BackboneError, match=rf"model\.safetensors are not supported: config\.json says {said}"):
        resolve_backbone("auto", weights=folder)


def test_relative_positions_of_another_input_are_refused(tmp_path: Path) -> None:
    state, settings, name = folders()["beit"]
    config = refer.config(SIZE, model_type="beit", **{**settings, "image_size": 384})
    folder = refer.transformers_folder(tmp_path / "folder", state, config, name)
    with pytest.raises(BackboneError, match=r"image_size 384, which needs 2212 relative positions.*\[732, 2\]"):
        resolve_backbone("auto", weights=folder)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_gate_that_timm_does_not_have_is_refused(tmp_path: Path, activation: str) -> None:
    names = refer.transformers_dinov3_names(publish.dinov3(SIZE, gated=True), SIZE)
    config = refer.config(SIZE, model_type="dinov3_vit", use_gated_mlp=True, num_register_tokens=4)
    folder = refer.transformers_folder(tmp_path / "f", names, {**config, "hidden_act": activation}, "DINOv3ViTModel")
    with pytest.raises(BackboneError, match=rf"hidden_act '{activation}', which is not one of silu"):
        resolve_backbone("auto", weights=folder)
    refer.transformers_folder(tmp_path / "f", names, {**config, "hidden_act": "silu"}, "DINOv3ViTModel")
    assert resolve_backbone("auto", weights=tmp_path / "f").architecture == "hf-dinov3-vit"


@pytest.mark.parametrize("config", [None, {"hidden_size": 128}], ids=["none", "without model_type"])
def test_a_folder_without_its_configuration_says_so(tmp_path: Path, config: dict[str, Any] | None) -> None:
    state, _, name = folders()["vit"]
    folder = refer.transformers_folder(tmp_path / "folder", state, config or {}, name)
    if config is None:
        (folder / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"have transformers' names, and no config\.json with a model_type"):
        resolve_backbone("auto", weights=folder)


@pytest.mark.parametrize("case", RESOLUTIONS)
@pytest.mark.parametrize("pooled", [False, True], ids=["pre-trained", "fine-tuned"])
def test_a_folder_of_beit_with_positions_gives_transformers_own_tokens(
    compare: Compare, tmp_path: Path, pooled: bool, case: str
) -> None:
    own = publish.beit(SIZE, shared=not pooled, absolute=True)["model"]
    state = {**refer.transformers_beit_names(own, SIZE), "embeddings.position_embeddings": own["pos_embed"]}
    settings = refer.config(
        SIZE,
        model_type="beit",
        use_absolute_position_embeddings=True,
        use_mask_token=not pooled,
        use_shared_relative_position_bias=not pooled,
        use_relative_position_bias=pooled,
        use_mean_pooling=pooled,
    )
    model = refer.transformers_model(tmp_path / "folder", state, settings, "BeitModel", add_pooling_layer=pooled)
    inputs = pixels(*RESOLUTIONS[case])
    theirs = refer.transformers_tokens(model, inputs, model.pooler.layernorm if pooled else model.layernorm)
    compare("hf-beit", f"positions, {case}", tmp_path / "folder", inputs, theirs)
    said = inspect_checkpoint(tmp_path / "folder")
    assert (said.loads, said.form.norm) == (True, "fc_norm" if pooled else "norm")
