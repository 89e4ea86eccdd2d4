"""How images become inputs, against the evaluation transforms of each family's authors, written down from their code.

torchvision's own Resize, CenterCrop and Normalize are the oracle, on the same picture.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import ViT_B_16_Weights, ViT_H_14_Weights, ViT_L_16_Weights
from torchvision.transforms import InterpolationMode

from pipelines.backbones import BackboneError, describe_backbone, resolve_backbone
from pipelines.backbones.formats import FAMILIES
from pipelines.backbones.formats.evaluation import EVALUATIONS, of_timm
from pipelines.backbones.timm_vit import random_timm
from pipelines.views import fit_view
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones.published_files import Size
from tests.pipelines.backbones.references import transformers_dinov2_names, transformers_folder

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
TINY = Size(depth=1, mlp=16)
Transform = Callable[[Image.Image], torch.Tensor]


def resize_and_crop(
    resize: int, crop: int, how: InterpolationMode, normalisation: tuple[Any, Any] = IMAGENET
) -> Transform:
    steps = [
        transforms.Resize(resize, interpolation=how),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize(*normalisation),
    ]
    composed: Transform = transforms.Compose(steps)
    return composed


BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR


def mae_transform(side: int) -> Transform:
    """facebookresearch/mae, util/datasets.py: the ratio of 224 images is kept up to 224, and not above."""
    return resize_and_crop(int(side / (224 / 256 if side <= 224 else 1.0)), side, BICUBIC)


def simmim_transform(side: int) -> Transform:
    """microsoft/SimMIM, data/data_finetune.py with TEST.CROP."""
    return resize_and_crop(int((256 / 224) * side), side, BICUBIC)


def beit_transform(side: int) -> Transform:
    """microsoft/unilm, beit/datasets.py without --crop_pct."""
    return resize_and_crop(int(side / (224 / 256 if side < 384 else 1.0)), side, BICUBIC, HALF)


def dino_transform(side: int) -> Transform:
    """facebookresearch/dino, eval_knn.py; bytedance/ibot, dinov2 and dinov3 likewise; in proportion at other sizes."""
    return resize_and_crop(256 * side // 224, side, BICUBIC)


def clip_transform(side: int) -> Transform:
    return resize_and_crop(side, side, BICUBIC, CLIP)


def scale_mae_transform(side: int) -> Transform:
    """bair-climate-initiative/scale-mae, dataloaders/utils.py, fMoW: Resize's own interpolation, which is bilinear."""
    return resize_and_crop(side, side, transforms.Resize(1).interpolation)


def picture() -> Image.Image:
    """Smooth and rough at once, wider than high, larger than every input."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (30, 45, 3), dtype=np.uint8)).resize((900, 610))
    noise = generator.integers(-20, 21, (610, 900, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))


def inputs(path: Path, side: int | None, model: str = "auto") -> tuple[torch.Tensor, int]:
    """What the network would see of the picture, and the side of its input."""
    backbone = describe_backbone(resolve_backbone(model, weights=path, image_size=side))
    how = backbone.preprocessing
    pixels = fit_view(
        picture(),
        size=how.image_size,
        fit=how.fit,
        crop_fraction=how.crop_fraction,
        interpolation=how.interpolation,
    )
    return backbone.normalise(torch.from_numpy(pixels)[None])[0], how.image_size[0]


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    ("content", "transform", "sides"),
    [
        (publish.mae(TINY), mae_transform, (None, 192, 240, 448)),
        ({"model": publish.simmim(TINY), "epoch": 800}, simmim_transform, (None, 384)),
        (publish.beit(TINY, shared=True), beit_transform, (None, 368, 384, 512)),
        (publish.plain(TINY), dino_transform, (None, 448)),
        ({"state_dict": publish.plain(TINY)}, dino_transform, (None,)),
        (publish.dinov2(Size(depth=1, mlp=16, patch=14, side=518)), dino_transform, (224, None)),
        (publish.dinov3(TINY), dino_transform, (224, None)),
        (publish.scale_mae(TINY), scale_mae_transform, (None, 112)),
    ],
    ids=["mae", "simmim", "beit", "dino", "ibot", "dinov2", "dinov3", "scale-mae"],
)
def test_an_image_becomes_the_input_as_the_familys_authors_evaluate_it(
    tmp_path: Path, content: Any, transform: Callable[[int], Transform], sides: tuple[int | None, ...]
) -> None:
    path = saved(tmp_path, content)
    for side in sides:
        ours, side_in_use = inputs(path, side)
        theirs = transform(side_in_use)(picture())
        assert torch.allclose(ours, theirs, atol=1e-5), side_in_use


@pytest.mark.parametrize(
    ("size", "weights"),
    [
        (Size(width=768, depth=1, heads=12, mlp=16), ViT_B_16_Weights.IMAGENET1K_V1),
        (Size(width=1024, depth=1, heads=16, mlp=16), ViT_L_16_Weights.IMAGENET1K_V1),
        (Size(width=768, depth=1, heads=12, mlp=16, side=384), ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1),
        (Size(width=1280, depth=1, heads=16, mlp=16, patch=14), ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1),
    ],
    ids=["B/16", "L/16", "B/16 of SWAG", "H/14 of SWAG"],
)
def test_torchvisions_files_are_evaluated_as_torchvision_does(tmp_path: Path, size: Size, weights: Any) -> None:
    ours, _ = inputs(saved(tmp_path, publish.torchvision_vit(size)), None)
    assert torch.allclose(ours, weights.transforms()(picture()), atol=1e-5)


def test_swags_linear_weights_look_as_torchvisions_others_and_it_is_said(tmp_path: Path) -> None:
    from pipelines.backbones.inspection import inspect_checkpoint

    path = saved(tmp_path, publish.torchvision_vit(Size(width=768, depth=1, heads=12, mlp=16)))
    assert any("SWAG" in note for note in inspect_checkpoint(path).form.assumed)


@pytest.mark.parametrize(
    ("name", "family", "side", "fraction"),
    [
        ("deit_base_patch16_224.fb_in1k", "deit", 224, 224 / 256),
        ("deit3_base_patch16_384.fb_in1k", "deit", 384, 224 / 256),
        ("beit_base_patch16_224.in22k_ft_in22k", "beit", 224, 224 / 256),
        ("beitv2_base_patch16_224.in1k_ft_in22k_in1k", "beit2", 224, 224 / 256),
        ("vit_base_patch16_224.mae", "mae", 224, 224 / 256),
        ("vit_base_patch16_224.mae", "mae", 448, 1.0),
        ("vit_base_patch16_224.dino", "dino", 224, 224 / 256),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "dinov2", 518, 224 / 256),
        ("vit_base_patch16_dinov3.lvd1689m", "dinov3", 256, 224 / 256),
        ("vit_large_patch16_dinov3_qkvb.sat493m", "dinov3", 256, 224 / 256),
        ("vit_base_patch16_clip_quickgelu_224.openai", "clip", 224, 1.0),
        ("vit_huge_patch14_gap_224.in1k_ijepa", "ijepa", 224, 1.0),
    ],
)
def test_timms_names_of_a_familys_models_are_evaluated_as_its_authors_do(
    name: str, family: str, side: int, fraction: float
) -> None:
    evaluation = of_timm(name)
    assert evaluation is EVALUATIONS[family]
    assert evaluation.crop_fraction((side, side)) == fraction


def test_models_of_timm_whose_authors_are_not_listed_keep_timms_own() -> None:
    for name in (
        "vit_base_patch16_224.augreg_in1k",
        "vit_base_patch16_siglip_224.webli",
        "vit_base_patch16_clip_224.laion2b",
        "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
    ):
        assert of_timm(name) is None


def test_a_tag_left_out_is_timms_default_tag() -> None:
    how = random_timm("deit_tiny_patch16_224").preprocessing
    assert (how.crop_fraction, how.interpolation, how.mean) == (224 / 256, "bicubic", IMAGENET[0])


def folder_of_dinov2(folder: Path, preprocessor: str | None) -> Path:
    size = Size(depth=1, mlp=16, patch=14, side=56)
    names = transformers_dinov2_names(publish.dinov2(size), size)
    settings = {
        "model_type": "dinov2", "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "patch_size": 14, "image_size": 56, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    transformers_folder(folder, names, settings, "Dinov2Model")
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(preprocessor)
    return folder


def test_a_folder_that_does_not_say_takes_its_familys_evaluation(tmp_path: Path) -> None:
    how = describe_backbone(resolve_backbone("auto", weights=folder_of_dinov2(tmp_path / "one", None))).preprocessing
    assert (how.fit, how.crop_fraction) == ("crop", 224 / 256)


@pytest.mark.parametrize(("number", "filter_name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (4, "box")])
def test_a_folders_filter_is_the_one_that_pillow_numbers_so(tmp_path: Path, number: int, filter_name: str) -> None:
    assert Image.Resampling(number).name.lower() == filter_name
    folder = folder_of_dinov2(tmp_path / "one", f'{{"resample": {number}, "size": {{"height": 56, "width": 56}}}}')
    how = describe_backbone(resolve_backbone("auto", weights=folder)).preprocessing
    assert (how.fit, how.interpolation) == ("squash", filter_name)


def test_a_folders_unknown_filter_is_refused(tmp_path: Path) -> None:
    folder = folder_of_dinov2(tmp_path / "one", '{"resample": 9}')
    with pytest.raises(BackboneError, match="says resample 9, which is not one of 0 to 5"):
        resolve_backbone("auto", weights=folder)


def test_a_folder_that_does_not_normalise_gets_values_of_0_to_1(tmp_path: Path) -> None:
    said = '{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    how = describe_backbone(resolve_backbone("auto", weights=folder_of_dinov2(tmp_path / "one", said))).preprocessing
    assert (how.mean, how.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ('{"do_rescale": false}', "says do_rescale false, and every image is brought to values of 0 to 1 here"),
        ('{"rescale_factor": 1}', "says rescale_factor 1, and every image is divided by 255 here"),
        ('{"rescale_factor": "1"}', "says rescale_factor '1'"),
        ('{"image_std": [0, 0, 0]}', r"says image_std \[0, 0, 0\]; three numbers from 0.001 to 1000 are needed"),
        ('{"image_mean": [1e300, 0, 0]}', "says image_mean .*; three numbers from 0 to 1000 are needed"),
    ],
)
def test_a_folder_of_another_range_of_values_is_refused(tmp_path: Path, said: str, rule: str) -> None:
    with pytest.raises(BackboneError, match=rule):
        resolve_backbone("auto", weights=folder_of_dinov2(tmp_path / "one", said))


@pytest.mark.parametrize(("cut", "is_told"), [(56, False), (42, True)])
def test_a_crop_out_of_a_squashed_view_is_told_as_not_done(tmp_path: Path, cut: int, is_told: bool) -> None:
    said = json.dumps({
        "size": {"height": 56, "width": 56}, "do_center_crop": True, "crop_size": {"height": cut, "width": cut},
        "do_normalize": True, "do_rescale": True, "rescale_factor": 0.00392156862745098,
    })  # fmt: skip
    request = resolve_backbone("auto", weights=folder_of_dinov2(tmp_path / "one", said))
    assert describe_backbone(request).preprocessing.fit == "squash"
    assert any("squashes it to 56 pixels and cuts 42" in line for line in request.assumed) == is_told


def test_every_family_of_files_says_how_it_is_evaluated() -> None:
    # Folders of transformers say it themselves.
    of_files = {family for family in FAMILIES if not family.startswith("hf-")}
    assert of_files <= set(EVALUATIONS)
