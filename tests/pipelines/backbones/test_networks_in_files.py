"""Networks under the wrappers and prefixes that training leaves in files, against timm's own network of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pipelines.backbones import BackboneError, load_backbone, resolve_backbone
from pipelines.backbones.inspection import inspect_checkpoint

State = dict[str, torch.Tensor]
SIDE = 32
TIMMS = "vit_tiny_patch16_224"


def vit(seed: int = 0, **arguments: Any) -> VisionTransformer:
    """A small network of timm's with random weights in every tensor."""
    sizes = {"img_size": SIDE, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    module = VisionTransformer(**{**sizes, **arguments}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def chunked(state: State) -> State:
    """Blocks as FSDP cuts DINOv2's: the second chunk keeps the number of its block."""
    return {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): tensor
        for name, tensor in state.items()
    }


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def assert_runs_as(path: Path, module: VisionTransformer, model: str = "auto", **options: Any) -> None:
    """Every token of the last layer is timm's own."""
    backbone = load_backbone(resolve_backbone(model, weights=path, image_size=SIDE, **options))
    inputs = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    tokens = backbone.tokens_of(inputs, [len(module.blocks)])
    with torch.inference_mode():
        expected = module.forward_features(inputs)
    patches = tokens[len(module.blocks), "patches"]
    assert torch.allclose(patches, expected[:, module.num_prefix_tokens :], atol=1e-5)


PREFIXES = (
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "_orig_mod.module._orig_mod.",
    "_fsdp_wrapped_module.",
    "model.",
    "model.encoder.",
    "net.backbone.",
    "teacher_backbone.vit.",
    "module.model._orig_mod.encoder.",
    "visual.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("model", ["auto", TIMMS])
def test_whatever_stands_before_every_name_is_taken_off(tmp_path: Path, prefix: str, model: str) -> None:
    arguments = {} if model == "auto" else {"embed_dim": 192, "num_heads": 3, "depth": 12}
    module = vit(**arguments)
    path = saved(tmp_path, {"state_dict": under(prefix, module.state_dict()), "epoch": 3})
    assert_runs_as(path, module, model)


def test_wrappers_within_names_are_taken_off(tmp_path: Path) -> None:
    module = vit()
    state = {
        name.replace("blocks.", "_fsdp_wrapped_module.blocks.").replace(".attn.", "._orig_mod.attn."): tensor
        for name, tensor in module.state_dict().items()
    }
    assert_runs_as(saved(tmp_path, under("model.", state)), module)


@pytest.mark.parametrize("layer_scale", [True, False], ids=["dinov2", "plain"])
def test_the_teachers_backbone_of_a_sharded_training_checkpoint_is_read(tmp_path: Path, layer_scale: bool) -> None:
    scale = {"init_values": 1.0} if layer_scale else {}
    teacher, student = vit(1, **scale), vit(2, **scale)
    state = {
        **under("teacher.backbone.", chunked(teacher.state_dict())),
        **under("student.backbone.", chunked(student.state_dict())),
        "teacher.dino_head.mlp.0.weight": torch.zeros(4, 4),
    }
    path = saved(tmp_path, {"model": state, "iteration": 9})
    assert_runs_as(path, teacher)
    assert_runs_as(path, student, network="student")
    report = inspect_checkpoint(path)
    assert report.network == "model.teacher.backbone"
    assert report.passed_over == {"model.student.backbone": len(student.state_dict()), "model.teacher.dino_head": 1}


@pytest.mark.parametrize("key", ["model_state_dict", "net", "ema", "student", "state_dict_ema", "model_ema", "weights"])
def test_tensors_are_found_under_any_key(tmp_path: Path, key: str) -> None:
    module = vit()
    assert_runs_as(saved(tmp_path, {key: module.state_dict(), "step": 1, "optimizer": {"state": {}}}), module)


AVERAGES: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "state_dict_ema": lambda a, b: {"arch": "vit", "state_dict": a, "state_dict_ema": b},
    "model_ema": lambda a, b: {"model": a, "model_ema": b},
}


@pytest.mark.parametrize("key", AVERAGES)
def test_of_weights_and_their_average_the_average_is_taken_and_said_as_timm_does(tmp_path: Path, key: str) -> None:
    sizes = {"embed_dim": 192, "num_heads": 3, "depth": 12, "img_size": 224}
    a, b = (vit(seed, **sizes) for seed in (1, 2))
    path = saved(tmp_path, AVERAGES[key](a.state_dict(), b.state_dict()))
    theirs = timm.create_model(TIMMS, num_classes=0)
    timm.models.load_checkpoint(theirs, str(path))  # the oracle: what timm itself takes
    assert torch.equal(theirs.state_dict()["norm.bias"], b.state_dict()["norm.bias"])
    for model in ("auto", TIMMS):
        request = resolve_backbone(model, weights=path)
        assert request.network == key
        assert torch.equal(load_backbone(request).module.norm.bias, b.state_dict()["norm.bias"])
        other = key.removesuffix("_ema")
        chosen = load_backbone(resolve_backbone(model, weights=path, network=other))
        assert torch.equal(chosen.module.norm.bias, a.state_dict()["norm.bias"])
        assert chosen.architecture["network"] == other


@pytest.mark.parametrize("key", ["EMA", "swa_model", "averaged_model", "Model_EMA", "avg_model"])
def test_a_running_average_is_taken_by_whichever_word_it_is_called(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, {"model": vit(1).state_dict(), key: vit(2).state_dict()})
    assert resolve_backbone("auto", weights=path).network == key
    assert_runs_as(path, vit(2))


@pytest.mark.parametrize("key", ["Student", "student_EMA", "Momentum"])
def test_a_student_comes_last_by_whichever_case_it_is_written(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, {"net": vit(1).state_dict(), key: vit(2).state_dict()})
    assert resolve_backbone("auto", weights=path).network == "net"


def test_a_file_of_one_network_has_the_identity_that_it_had(tmp_path: Path) -> None:
    backbone = load_backbone(resolve_backbone("auto", weights=saved(tmp_path, {"model": vit().state_dict()})))
    assert "network" not in backbone.architecture


@pytest.mark.parametrize("model", ["auto", TIMMS])
def test_two_networks_that_nothing_tells_apart_are_both_named_and_the_user_chooses(tmp_path: Path, model: str) -> None:
    arguments = {} if model == "auto" else {"embed_dim": 192, "num_heads": 3, "depth": 12}
    left, right = (vit(seed, **arguments) for seed in (1, 2))
    path = saved(tmp_path, {**under("left.vit.", left.state_dict()), **under("right.vit.", right.state_dict())})
    with pytest.raises(BackboneError, match=r"hold 2 networks.*'left\.vit', 'right\.vit'; choose with --network"):
        resolve_backbone(model, weights=path)
    assert_runs_as(path, right, model, network="right")
    assert_runs_as(path, left, model, network="left.vit.")
    with pytest.raises(BackboneError, match=r"no network 'middle'; --network takes one of 'left\.vit', 'right\.vit'"):
        resolve_backbone(model, weights=path, network="middle")


def test_a_file_without_tensors_tells_what_is_at_its_top(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"hold no tensors.*at the top are 'epoch', 'hyper_parameters'"):
        resolve_backbone("auto", weights=saved(tmp_path, {"epoch": 1, "hyper_parameters": {"lr": 0.1}}))


def test_the_nearest_family_is_the_one_that_fits_and_what_does_not_fit_is_told(tmp_path: Path) -> None:
    state = vit().state_dict()
    for name in ("norm.weight", "norm.bias"):
        state[f"last_{name}"] = state.pop(name)
    for block in range(2):
        del state[f"blocks.{block}.attn.qkv.bias"]
    said = r"nearest is 'dino'.* lacks .*'norm\.weight'.* does not know 'last_norm\.weight'.*26 of 28 tensors"
    with pytest.raises(BackboneError, match=said):
        resolve_backbone("auto", weights=saved(tmp_path, state))


def test_a_file_that_is_near_no_vit_is_not_called_one(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    with pytest.raises(BackboneError, match=r"of no family known here, and near none: their names are 'conv1\.weight'"):
        resolve_backbone("auto", weights=saved(tmp_path, state))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("model", ["auto", TIMMS])
def test_images_of_other_channels_are_refused_with_both_shapes(tmp_path: Path, channels: int, model: str) -> None:
    module = vit(embed_dim=192, num_heads=3, depth=12, in_chans=channels)
    path = saved(tmp_path, module.state_dict())
    with pytest.raises(BackboneError, match=rf"192 x {channels} x 16 x 16.*192 x 3 x 16 x 16.*\.$") as refused:
        load_backbone(resolve_backbone(model, weights=path, image_size=SIDE))
    assert "..." not in str(refused.value)


@pytest.mark.parametrize("model", ["auto", "mae", TIMMS])
def test_mae_fine_tuned_with_pooling_has_its_norm_in_fc_norm(tmp_path: Path, model: str) -> None:
    sizes = {"embed_dim": 192, "num_heads": 3, "depth": 12} if model == TIMMS else {}
    module = vit(global_pool="avg", num_classes=10, **sizes)
    path = saved(tmp_path, {"model": module.state_dict(), "epoch": 99})
    backbone = load_backbone(resolve_backbone(model, weights=path, image_size=SIDE))
    inputs = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    layer = len(module.blocks)
    with torch.inference_mode():
        # The class that its authors wrote applies the norm to the mean; on tokens it is the same LayerNorm.
        expected = module.fc_norm(module.forward_features(inputs))
    tokens = backbone.tokens_of(inputs, [layer])
    assert torch.allclose(tokens[layer, "patches"], expected[:, 1:], atol=1e-5)
    assert backbone.architecture["norm"] == "fc_norm"
    assert backbone.preprocessing.mean == ((0.5,) * 3 if model == TIMMS else (0.485, 0.456, 0.406))


def test_a_tower_of_an_image_text_model_is_not_normalised_on_a_guess(tmp_path: Path) -> None:
    state = {**under("visual.trunk.", vit().state_dict()), "logit_scale": torch.zeros(())}
    with pytest.raises(BackboneError, match=r"image tower of an image-text model.*give timm's name"):
        resolve_backbone("auto", weights=saved(tmp_path, state))
