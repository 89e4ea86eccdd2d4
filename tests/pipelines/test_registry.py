"""From what a user types to a model and a file: what is found, and what is refused before anything is fetched."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipelines.backbones import BackboneError, load_backbone, resolve_backbone
from pipelines.backbones.checkpoint import read_state


@pytest.mark.parametrize(
    "architecture", ["resnet18", "swin_tiny_patch4_window7_224", "convit_tiny", "xcit_nano_12_p8_224"]
)
def test_what_is_not_a_plain_vit_is_refused_before_any_download(architecture: str) -> None:
    with pytest.raises(BackboneError, match="is not a plain ViT"):
        resolve_backbone(architecture)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vit_smal_patch16_224", {}, r"'vit_smal_patch16_224' is not known .did you mean 'vit_small_patch16_224' or"),
        ("dinov2_vits14", {}, r"is not known .did you mean 'dinov2-s14'\?.; `vitrine models` lists"),
        ("nothing like it", {}, r"is not known; `vitrine models` lists the published ones, and any plain ViT of timm"),
        ("test_vit.no_such_tag", {}, r"cannot be built .*no_such_tag"),
        ("test_vit", {"image_size": 100}, r"--image-size 100 is not a multiple of the 16-pixel patch.* use 96 or 112"),
        ("test_vit", {"image_size": 7}, r"use 16 or 16|cannot be built for 7 pixels"),
        ("test_vit", {"image_size": (96, 100)}, r"--image-size 96x100 is not a multiple .* use 96 or 96x112"),
        ("test_vit", {"weights": Path("absent.pth")}, r"absent.pth cannot be read .No such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_clear_error(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        resolve_backbone(model, **options)


# The hub, without a network: the tests run with HF_HUB_OFFLINE=1 and a cache folder of their own.


def test_hub_weights_that_are_not_in_the_cache_are_one_clear_error() -> None:
    said = r"weights of 'test_vit2.r160_in1k' \(timm/test_vit2.r160_in1k\) are not in the hub's cache and could not be"
    with pytest.raises(BackboneError, match=rf"^{said} .*; give a file with --weights\.$"):
        resolve_backbone("test_vit2.r160_in1k")


def test_hub_weights_come_from_the_cache_without_a_network(tiny_weights: Path) -> None:
    repository = Path(constants.HF_HUB_CACHE) / "models--timm--test_vit.r160_in1k"
    revision, state = "0" * 40, read_state(tiny_weights)
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    save_file(state, repository / "snapshots" / revision / "model.safetensors")
    try:
        loaded = load_backbone(resolve_backbone("test_vit.r160_in1k")).module.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.items())
    finally:
        shutil.rmtree(repository)


def test_a_model_without_published_weights_asks_for_a_file() -> None:
    with pytest.raises(BackboneError, match="has no published weights on the hub; give a file with --weights"):
        resolve_backbone("vit_giant_patch16_gap_224.in22k_ijepa")
