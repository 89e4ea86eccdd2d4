"""What files do not say: it is told, stated with `--arg`, and never guessed where published families differ."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer

from pipelines.backbones import BackboneError, describe_backbone, load_backbone, resolve_backbone
from pipelines.backbones.inspection import inspect_checkpoint
from pipelines.backbones.stated import timm_arguments
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones.published_files import Size
from tests.pipelines.backbones.test_networks_in_files import SIDE, assert_runs_as, saved, under, vit

State = dict[str, torch.Tensor]
SMALL = {"embed_dim": 384, "depth": 1}


def moco_v3(module: VisionTransformer) -> dict[str, Any]:
    """A training checkpoint of MoCo v3: two encoders, each with a projector in place of its head, and a predictor."""
    state = module.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    heads = {"head.0.weight": torch.zeros(4, 4), "head.1.running_mean": torch.zeros(4)}
    return {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": {
            **under("module.base_encoder.", {**state, **heads}),
            **under("module.momentum_encoder.", {**other, **heads}),
            "module.predictor.0.weight": torch.zeros(4, 4),
        },
        "optimizer": {"state": {}},
    }


def test_moco_v3_is_known_by_its_own_names_and_has_twelve_heads(tmp_path: Path) -> None:
    module = vit(**SMALL, num_heads=12)
    path = saved(tmp_path, moco_v3(module))
    assert_runs_as(path, module)
    report = inspect_checkpoint(path)
    assert (report.form.family, report.form.heads, report.network) == ("mocov3", 12, "state_dict.base_encoder")
    assert report.passed_over == {"state_dict.momentum_encoder": 20, "state_dict.predictor": 1}
    assert len(report.left_out) == len(("head.0.weight", "head.1.running_mean"))


@pytest.mark.parametrize("heads", [6, 12])
@pytest.mark.parametrize("wrap", [lambda s: {"model": s}, lambda s: {"net": s}, lambda s: under("a.", s)])
def test_heads_in_which_published_families_differ_are_asked_for(
    tmp_path: Path, heads: int, wrap: Callable[[State], Any]
) -> None:
    module = vit(**SMALL, num_heads=heads)
    path = saved(tmp_path, wrap(module.state_dict()))
    said = (
        r"do not say num_heads.*6 of DeiT, DINO.*12 of MoCo v3\. Say it with --arg num_heads=6 or --arg num_heads=12\."
    )
    with pytest.raises(BackboneError, match=said):
        resolve_backbone("auto", weights=path)
    assert not inspect_checkpoint(path).loads
    assert_runs_as(path, module, arguments=(f"num_heads={heads}",))
    assert inspect_checkpoint(path, arguments=(f"num_heads={heads}",)).loads


def test_timms_names_take_stated_arguments_too(tmp_path: Path) -> None:
    module = vit(embed_dim=192, depth=12, num_heads=12, norm_layer=partial(LayerNorm, eps=0.1))
    path = saved(tmp_path, module.state_dict())
    stated = ("num_heads=12", "norm_eps=0.1", "mean=0.1,0.2,0.3")
    assert_runs_as(path, module, "vit_tiny_patch16_224", arguments=stated)
    described = describe_backbone(resolve_backbone("vit_tiny_patch16_224", weights=path, arguments=stated))
    assert (
        described.architecture["arguments"] | {"num_heads": 12, "norm_eps": 0.1} == described.architecture["arguments"]
    )
    assert described.preprocessing.mean == (0.1, 0.2, 0.3)


def clip(module: VisionTransformer, *, prefix: str = "visual.", **more: torch.Tensor) -> State:
    """An image tower in OpenAI's names, with a part of the text tower."""
    renames = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.weight": "conv1.weight",
    }
    state: State = {"token_embedding.weight": torch.zeros(4, 4), **more}
    for name, tensor in module.state_dict().items():
        new = renames.get(name, name).replace("blocks.", "transformer.resblocks.").replace(".norm", ".ln_")
        new = new.replace(".qkv.weight", ".in_proj_weight").replace(".qkv.bias", ".in_proj_bias")
        new = new.replace(".attn.proj.", ".attn.out_proj.").replace(".fc1.", ".c_fc.").replace(".fc2.", ".c_proj.")
        new = new.replace("norm_pre.", "ln_pre.").replace("norm.", "ln_post.")
        value = tensor.flatten() if name == "cls_token" else tensor[0] if name == "pos_embed" else tensor
        state[f"{prefix}{new}"] = value
    return state


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("prefix", ["visual.", "", "module.visual."])
def test_an_activation_in_which_published_clips_differ_is_asked_for(
    tmp_path: Path, activation: str, prefix: str
) -> None:
    module = vit(act_layer=activation, pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5))
    state = clip(module, prefix=prefix)
    if not prefix:
        del state["token_embedding.weight"]  # a tower alone
    path = saved(tmp_path, {"state_dict": state})
    with pytest.raises(BackboneError, match=r"--arg act_layer=quick_gelu or --arg act_layer=gelu\."):
        resolve_backbone("auto", weights=path)
    assert_runs_as(path, module, arguments=(f"act_layer={activation}",))


def test_openais_own_files_say_their_activation(tmp_path: Path) -> None:
    module = vit(act_layer="quick_gelu", pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5))
    path = saved(tmp_path, clip(module, input_resolution=torch.tensor(SIDE)))
    assert_runs_as(path, module)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("num_heads", "is not NAME=VALUE"),
        ("num_heads=x", "num_heads must be a whole number above 0"),
        ("num_heads=3", "does not divide the 128 features"),
        ("heads=2", r"DINO ViT-128/16 has no such argument; it has num_heads, act_layer"),
        ("depth=3", "DINO ViT-128/16 has 2, as its file says; leave it out"),
        ("act_layer=eval", "choose one of gelu, gelu_tanh, quick_gelu"),
        ("mean=0.5", "mean must be three numbers"),
        ("norm_eps=nan", "norm_eps must be a number above 0"),
        ("norm_eps=1e300", "norm_eps must be a number above 0 and below 1"),
        ("norm_eps=1e-300", "norm_eps must be a number above 0 and below 1"),
        ("mean=1e300,0,0", "mean must be three numbers from 0 to 1000"),
        ("mean=-1,0,0", "mean must be three numbers from 0 to 1000"),
        ("std=0,0,0", "std must be three numbers from 0.001 to 1000"),
        ("std=1e-45,1,1", "std must be three numbers from 0.001 to 1000"),
        ("std=nan,1,1", "std must be three numbers from 0.001 to 1000"),
    ],
)
def test_what_is_stated_is_checked_against_what_there_is(tmp_path: Path, argument: str, said: str) -> None:
    path = saved(tmp_path, vit().state_dict())
    with pytest.raises(BackboneError, match=f"--arg .*{said}"):
        resolve_backbone("auto", weights=path, arguments=(argument,))


@pytest.mark.parametrize("argument", ["std=0,0,0", "mean=1e300,0,0", "norm_eps=1e300"])
def test_what_is_stated_of_timms_names_has_the_same_bounds(argument: str) -> None:
    with pytest.raises(BackboneError, match=f"--arg {argument}: .* must be "):
        timm_arguments("vit_tiny_patch16_224", (argument,))


def test_what_is_stated_as_it_was_assumed_is_the_same_network(tmp_path: Path) -> None:
    path = saved(tmp_path, vit().state_dict())
    told = resolve_backbone("auto", weights=path).assumed
    stated = tuple(text.split(" ")[0] for text in told if "=" in text)
    assert stated == (
        *("num_heads=2", "act_layer=gelu", "norm_eps=1e-06"),
        *("mean=0.485,0.456,0.406", "std=0.229,0.224,0.225"),
    )
    request = resolve_backbone("auto", weights=path, arguments=stated)
    assert not [text for text in request.assumed if "=" in text]
    same, other = (load_backbone(resolve_backbone("auto", weights=path, arguments=a)) for a in (stated, ()))
    assert same.architecture == other.architecture
    assert same.preprocessing == other.preprocessing


def test_positions_that_are_not_the_familys_waves_are_said(tmp_path: Path) -> None:
    def notes(content: Any) -> list[str]:
        form = inspect_checkpoint(saved(tmp_path, content)).form
        return [form.family, *(note.split(";")[0] for note in form.assumed)]

    size = Size(depth=2)
    state = publish.plain(size)
    assert notes({"model": state}) == ["mae", "MAE: its positions are not MAE's fixed waves"]
    assert notes(publish.mae(size)) == ["mae"]
    without = {name: tensor for name, tensor in state.items() if name != "cls_token"}
    learned, fixed = ({**without, "pos_embed": p[:, 1:]} for p in (state["pos_embed"], publish.waves(size)))
    assert notes(learned) == ["ijepa", "I-JEPA: its positions are not I-JEPA's fixed waves"]
    assert notes(fixed) == ["ijepa"]
