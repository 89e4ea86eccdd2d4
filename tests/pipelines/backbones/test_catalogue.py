"""The catalogue against timm's own, and names in it against the files given for them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipelines.backbones import BackboneError, describe_backbone, load_backbone, resolve_backbone
from pipelines.backbones.catalogue import CATALOGUE, TIMM, KnownCheckpoint, of_digest
from pipelines.backbones.formats import FAMILIES
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones.published_files import Size

# The same checkpoints as timm names them.
TIMMS = {
    "mae-b16": "vit_base_patch16_224.mae",
    "mae-h14": "vit_huge_patch14_224.mae",
    "dino-s8": "vit_small_patch8_224.dino",
    "dino-b16": "vit_base_patch16_224.dino",
    "dinov2-s14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-g14-reg4": "vit_giant_patch14_reg4_dinov2.lvd142m",
    "dinov3-b16": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3-h16plus": "vit_huge_plus_patch16_dinov3.lvd1689m",
    "dinov3-l16-sat": "vit_large_patch16_dinov3.sat493m",
    "dinov3-7b16": "vit_7b_patch16_dinov3.lvd1689m",
    "ijepa-h14": "vit_huge_patch14_gap_224.in1k_ijepa",
    "ijepa-g16-in22k": "vit_giant_patch16_gap_224.in22k_ijepa",
}


def test_names_are_of_one_checkpoint_each_and_of_known_families() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
    assert {entry.family for entry in CATALOGUE} <= {*FAMILIES, TIMM}
    assert not {entry.name for entry in CATALOGUE} & set(FAMILIES)


@pytest.mark.parametrize(
    "entry", [entry for entry in CATALOGUE if entry.family == TIMM or entry.name in TIMMS], ids=lambda entry: entry.name
)
def test_what_timm_lists_too_is_as_timm_says(entry: KnownCheckpoint) -> None:
    name = TIMMS.get(entry.name, entry.name)
    said = timm.get_pretrained_cfg(name)
    assert said is not None
    with torch.device("meta"):
        module: Any = timm.create_model(name, pretrained=False, num_classes=0)
    assert (entry.width, entry.depth, entry.patch) == (
        module.embed_dim,
        len(module.blocks),
        module.patch_embed.patch_size[0],
    )
    assert entry.native_size == said.input_size[-1]
    assert entry.mean == pytest.approx(said.mean)
    assert entry.std == pytest.approx(said.std)
    if said.license and entry.license and "dinov3" not in said.license:
        assert entry.license.lower() == said.license


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def test_a_name_without_a_file_says_where_the_file_is() -> None:
    with pytest.raises(BackboneError, match=r"'mae-b16' is published at https://.*mae_pretrain_vit_base.pth; give"):
        resolve_backbone("mae-b16")
    with pytest.raises(BackboneError, match="'auto' is what a file says; give the file with --weights"):
        resolve_backbone("auto")


def test_a_file_of_another_size_than_its_name_says_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, publish.mae(Size(depth=2)))
    with pytest.raises(
        BackboneError,
        match=r"hold MAE ViT-128/16 \(128 features, 2 blocks, .* 16\), not mae-b16 \(768 features, 12 blocks, .* 16\)",
    ):
        resolve_backbone("mae-b16", weights=path)


def test_a_file_of_another_family_than_its_name_says_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, publish.torchvision_vit(Size(depth=1)))
    with pytest.raises(BackboneError, match=r"not of the family 'mae', for which it lacks 'cls_token'"):
        resolve_backbone("mae-b16", weights=path)
    path = saved(tmp_path, publish.dinov2(Size(depth=1)))
    with pytest.raises(BackboneError, match=r"not of the family 'mae', for which it has the names, but others"):
        resolve_backbone("mae-b16", weights=path)


def test_a_name_decides_how_images_are_normalised_where_the_file_cannot_say(tmp_path: Path) -> None:
    size = Size(width=1024, depth=24, heads=16, mlp=16)
    # The numbers do not matter here; shapes alone are read.
    content = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in publish.dinov3(size).items()}
    path = saved(tmp_path, content)
    web = describe_backbone(resolve_backbone("dinov3-l16", weights=path)).preprocessing
    satellite = describe_backbone(resolve_backbone("dinov3-l16-sat", weights=path)).preprocessing
    assert (web.mean, satellite.mean) == ((0.485, 0.456, 0.406), (0.430, 0.411, 0.296))


def test_digests_are_looked_up_by_their_first_digits() -> None:
    known = of_digest("98ed9821" + "0" * 56)
    assert known is not None
    assert known.name == "scale-mae-l16-encoder"
    assert of_digest("0" * 64) is None


def test_a_supervised_file_under_timms_names_asks_for_its_name(tmp_path: Path) -> None:
    state = {**publish.plain(Size(depth=1)), "head.weight": torch.zeros(10, 128), "head.bias": torch.zeros(10)}
    with pytest.raises(BackboneError, match=r"classify under timm's names.*give timm's name with --model"):
        resolve_backbone("auto", weights=saved(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "family"),
    [
        ({"teacher": "module.backbone.", "student": "module.", "dino_loss": ""}, "dino"),
        ({"teacher": "backbone.", "student": "module.backbone.", "ibot_loss": ""}, "ibot"),
        ({"model": "module."}, "mae"),
        ({"state_dict": "module."}, "ibot"),
    ],
)
def test_full_checkpoints_give_the_teacher_under_its_prefixes(
    tmp_path: Path, content: dict[str, str], family: str
) -> None:
    state = {name: tensor.float() for name, tensor in publish.plain(Size(depth=1)).items()}
    heads = {"head.mlp.0.weight": torch.ones(4, 128), "head.last_layer.weight_v": torch.ones(4, 4)}
    file: dict[str, Any] = {"epoch": 99}
    for key, prefix in content.items():
        other = 2.0 if key == "student" else 1.0
        values = {f"{prefix}{name}": other * tensor for name, tensor in state.items()}
        module = "module." if prefix.startswith("module.") else ""
        if key in {"teacher", "student"}:
            values |= {f"{module}{name}": tensor for name, tensor in heads.items()}
        file[key] = values if prefix else {"center": torch.zeros(1, 4)}
    backbone = load_backbone(resolve_backbone("auto", weights=saved(tmp_path, file)))
    assert backbone.request.architecture == family
    assert torch.equal(backbone.module.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
