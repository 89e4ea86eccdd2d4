"""Files under published names that no network can have: each is refused with the file, and what is wrong with it."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.backbones import BackboneError, load_backbone, resolve_backbone
from pipelines.backbones.inspection import inspect_checkpoint
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones.published_files import Size, State

SIZE = Size(depth=2)


def saved(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def test_a_width_that_the_heads_do_not_divide_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", publish.plain(Size(width=200, depth=2, heads=2)))
    with pytest.raises(BackboneError, match=r"weights\.pth look like DINO.*200 features, 2 blocks, 3 heads.*divisible"):
        resolve_backbone("auto", weights=path)


def test_blocks_that_the_file_cannot_hold_are_never_built(tmp_path: Path) -> None:
    state = publish.plain(SIZE)
    state["blocks.999999999.norm1.weight"] = torch.zeros(128)
    with pytest.raises(BackboneError, match=r"claim 128 features, 1000000000 blocks.* and hold \d\d tensors"):
        resolve_backbone("auto", weights=saved(tmp_path / "weights.pth", state))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("tensor", ["pos_embed", "blocks.1.mlp.fc1.weight"])
def test_numbers_that_are_not_floating_are_refused_by_name(
    tmp_path: Path, tensor: str, dtype: torch.dtype, name: str
) -> None:
    state = publish.plain(SIZE)
    state[tensor] = state[tensor].to(dtype)
    path = saved(tmp_path / name, state)
    told = f"{tensor} ({str(dtype).removeprefix('torch.')})"
    assert inspect_checkpoint(path).other_types == (told,)
    with pytest.raises(BackboneError, match=r"1 tensors with numbers of a type that is not supported.*") as refused:
        resolve_backbone("auto", weights=path)
    assert told in str(refused.value)


def test_numbers_that_are_not_floating_are_refused_for_timms_names_too(tmp_path: Path, tiny_model: str) -> None:
    state = timm.create_model(tiny_model, num_classes=0).state_dict()
    state["norm.bias"] = state["norm.bias"].to(torch.int32)
    request = resolve_backbone(tiny_model, weights=saved(tmp_path / "weights.pth", state))
    with pytest.raises(BackboneError, match=r"not floating: \['norm\.bias \(int32\)'\]"):
        load_backbone(request)


@pytest.mark.parametrize(
    ("shape", "told"),
    [((1, 0, 128), "1 x 0 x 128"), ((1, 200, 128), "1 x 200 x 128"), ((197, 128), "197 x 128")],
)
def test_positions_that_fit_no_square_are_named_with_their_shape(
    tmp_path: Path, shape: tuple[int, ...], told: str
) -> None:
    state = {**publish.plain(SIZE), "pos_embed": torch.zeros(shape)}
    said = rf"pos_embed \(.*{told}, needed 1 x \(1 \+ a square\) x 128\)"
    for name in ("weights.pth", "weights.safetensors"):
        with pytest.raises(BackboneError, match=rf"nearest is 'dino'.* has other shapes in '{said}'"):
            resolve_backbone("auto", weights=saved(tmp_path / name, state))


def test_positions_that_do_not_fit_are_named_for_a_family_without_a_class_token_too(tmp_path: Path) -> None:
    state = {**publish.plain(SIZE), "pos_embed": torch.zeros(1, 200, 128)}
    del state["cls_token"]
    with pytest.raises(BackboneError, match=r"nearest is 'ijepa'.*pos_embed \(1 x 200 x 128, needed 1 x \(a square\)"):
        resolve_backbone("auto", weights=saved(tmp_path / "weights.pth", state))
