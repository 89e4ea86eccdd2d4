"""Weights that transformers cuts into several files with an index."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pipelines.backbones import BackboneError, load_backbone, resolve_backbone
from pipelines.backbones.held_weights import WeightsChangedError
from pipelines.backbones.weight_files import file_sha256
from tests.pipelines.backbones import references as refer
from tests.pipelines.backbones.published_files import Size, pixels, plain
from tests.pipelines.backbones.test_transformers_folders import SIZE, folders

INDEX = "model.safetensors.index.json"


def in_parts(tmp_path: Path) -> tuple[Path, object]:
    """A ViT of transformers, and its folder as its own `save_pretrained` cuts it."""
    state, settings, name = folders()["vit"]
    config = refer.config(SIZE, model_type="vit", **settings)
    model = refer.transformers_model(tmp_path / "whole", state, config, name, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    assert len(list((tmp_path / "parts").glob("model-0000*-of-0000*.safetensors"))) > 1
    return tmp_path / "parts", model


@pytest.mark.parametrize("given", [".", INDEX])
def test_a_folder_in_parts_gives_the_tokens_of_transformers(
    compare: Callable[..., None], tmp_path: Path, given: str
) -> None:
    folder, model = in_parts(tmp_path)
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, refer.final_norm(model))
    compare("hf-vit", f"in parts {given}", folder / given, inputs, theirs)


def test_one_of_several_files_says_what_it_is(tmp_path: Path) -> None:
    folder, _ = in_parts(tmp_path)
    part = next(folder.glob("model-00001-*"))
    with pytest.raises(BackboneError, match=rf"are 1 of \d files that hold one model; give .*{INDEX} with --weights"):
        resolve_backbone("auto", weights=part)
    (folder / INDEX).unlink()
    with pytest.raises(BackboneError, match=rf"are 1 of \d files.*fetch the whole folder, with {INDEX}, and give it"):
        resolve_backbone("vit_base_patch16_224", weights=part)


def test_a_file_that_the_index_names_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder, _ = in_parts(tmp_path)
    part = next(folder.glob("model-00002-*"))
    part.unlink()
    with pytest.raises(BackboneError, match=rf"name '{part.name}', which is not beside them; fetch the whole folder"):
        resolve_backbone("auto", weights=folder)


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a\\model.safetensors", 5, None]
)
def test_an_index_leads_nowhere_but_to_files_beside_it(tmp_path: Path, name: object) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BackboneError, match="which is no file like model-00001-of-00002"):
        resolve_backbone("auto", weights=tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(BackboneError, match=r"are no index of files|name 0 files"):
        resolve_backbone("auto", weights=tmp_path)


def test_the_digest_is_of_all_files_and_what_is_loaded_is_what_was_hashed(tmp_path: Path) -> None:
    folder, _ = in_parts(tmp_path)
    request = resolve_backbone("auto", weights=folder)
    assert request.weights_sha256 == file_sha256(folder / INDEX)
    load_backbone(request)
    part = next(folder.glob("model-00002-*"))
    part.write_bytes(part.read_bytes()[:-4] + bytes(4))
    assert file_sha256(folder / INDEX) != request.weights_sha256
    with pytest.raises(WeightsChangedError, match=request.weights_sha256):
        load_backbone(request)


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LAST = "blocks.3.norm1.weight"


def of_four_blocks(folder: Path, *, lost: str = "", moved: str = "", unplaced: str = "") -> Path:
    """A ViT in two files and an index; names that begin so are in no file, in the first, or not in the index."""
    state = {name: tensor.float().contiguous() for name, tensor in plain(Size(depth=4)).items()}
    second = {name for name in state if name.startswith(("blocks.3.", "norm."))}
    index = {name: PARTS[name in second] for name in state if not (unplaced and name.startswith(unplaced))}
    held = {name: tensor for name, tensor in state.items() if not (lost and name.startswith(lost))}
    second = {name for name in second if not (moved and name.startswith(moved))}
    for number, part in enumerate(PARTS):
        save_file({name: tensor for name, tensor in held.items() if (name in second) == bool(number)}, folder / part)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder / INDEX


@pytest.mark.parametrize("model", ["auto", "vit_tiny_patch16_224"])
def test_a_block_that_the_index_names_and_no_file_holds_is_not_left_out_in_silence(tmp_path: Path, model: str) -> None:
    index = of_four_blocks(tmp_path, lost="blocks.3.")
    said = rf"place 'blocks\.3\.attn\.proj\.bias' \(and 11 more\) in '{PARTS[1]}', which does not hold it; fetch"
    with pytest.raises(BackboneError, match=said):
        load_backbone(resolve_backbone(model, weights=index, image_size=32))


def test_a_tensor_in_another_file_than_the_index_says_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=rf"do not place '{LAST}' in '{PARTS[0]}', which holds it"):
        resolve_backbone("auto", weights=of_four_blocks(tmp_path, moved=LAST))


def test_a_tensor_that_the_index_does_not_list_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=rf"do not place '{LAST}' in '{PARTS[1]}', which holds it"):
        resolve_backbone("auto", weights=of_four_blocks(tmp_path, unplaced=LAST))
    assert resolve_backbone("auto", weights=of_four_blocks(tmp_path)).assumed
