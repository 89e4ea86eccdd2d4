"""Every kind of file: what `inspect` says of it is what loading it does, and each is taken for what it is."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipelines.backbones import BackboneError, describe_backbone, load_backbone, resolve_backbone
from pipelines.backbones.formats.evaluation import BEIT_V2, SIMMIM
from pipelines.backbones.inspection import inspect_checkpoint
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones import references as refer
from tests.pipelines.backbones.comparison import halved
from tests.pipelines.backbones.conftest import Compare
from tests.pipelines.backbones.published_files import Size

TINY = Size(depth=2, mlp=64)
S14 = Size(depth=2, mlp=64, patch=14, side=56)
IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)


def saved(folder: Path, content: Any) -> Path:
    torch.save(halved(content), folder / "weights.pth")
    return folder / "weights.pth"


def changed(content: dict[str, Any], **tensors: torch.Tensor | None) -> dict[str, Any]:
    """A file whose tensors of these names are others, or are not there."""
    state = {**content["model"], **{name: tensor for name, tensor in tensors.items() if tensor is not None}}
    return {"model": {name: tensor for name, tensor in state.items() if tensors.get(name, tensor) is not None}}


KINDS: dict[str, Any] = {
    "mae": publish.mae(TINY),
    "mae with decoder": publish.mae(TINY, decoder=True),
    "mae with too few positions": changed(publish.mae(TINY), pos_embed=torch.zeros(1, 51, 128)),
    "mae with positions of another width": changed(publish.mae(TINY), pos_embed=torch.zeros(1, 197, 64)),
    "dino": publish.plain(TINY),
    "dinov2": publish.dinov2(S14),
    "dinov2 with registers": publish.dinov2(S14, registers=4),
    "dinov2 gated": publish.dinov2(S14, gated=True),
    "dinov3": publish.dinov3(TINY),
    "dinov3 gated": publish.dinov3(TINY, gated=True),
    "dinov3's teacher": publish.dinov3_teacher(TINY),
    "torchvision": publish.torchvision_vit(TINY),
    "simmim": {"model": publish.simmim(TINY)},
    "simmim fine-tuned": publish.simmim_finetuned(TINY),
    "scale-mae": publish.scale_mae(TINY),
    "scale-mae projected": publish.scale_mae(TINY, projected=True),
    "ijepa": publish.ijepa(TINY),
    "beit": publish.beit(TINY, shared=True),
    "beit fine-tuned": publish.beit(TINY, shared=False),
    "beit with positions": publish.beit(TINY, shared=True, absolute=True),
    "beit fine-tuned with positions": publish.beit(TINY, shared=False, absolute=True),
    "beit with other positions than tables": changed(
        publish.beit(TINY, shared=True, absolute=True), pos_embed=torch.zeros(1, 65, 128)
    ),
    "beit without a norm": changed(publish.beit(TINY, shared=True), **{"norm.weight": None, "norm.bias": None}),
}


@pytest.mark.parametrize("side", [None, 112], ids=["native", "112"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_inspect_says_is_what_loading_does(tmp_path: Path, kind: str, side: int | None) -> None:
    path = saved(tmp_path, KINDS[kind])
    try:
        says = inspect_checkpoint(path).loads
    except BackboneError:
        says = False
    try:
        backbone = load_backbone(resolve_backbone("auto", weights=path, image_size=side))
        height, width = backbone.preprocessing.image_size
        tokens = backbone.tokens_of(publish.pixels(height, width).float(), [1, 2])
        loads = all(bool(values.isfinite().all()) for values in tokens.values())
    except BackboneError:
        loads = False
    assert says == loads
    assert loads != ("too few" in kind or "another width" in kind or "other positions" in kind or "without" in kind)


@pytest.mark.parametrize("side", [224, 288])
@pytest.mark.parametrize("shared", [True, False], ids=["pre-trained", "fine-tuned"])
def test_beit_with_positions_is_transformers_beit(compare: Compare, tmp_path: Path, shared: bool, side: int) -> None:
    size = Size()
    content = publish.beit(size, shared=shared, absolute=True)
    state = dict(content["model"])
    grid = side // size.patch
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        if grid != size.grid:
            state[name] = refer.simmim_table(state[name], size.grid, grid)
    names = refer.transformers_beit_names(state, size)
    stored = state["pos_embed"]
    # microsoft/unilm, beit/run_class_finetuning.py: bicubic to the exact size, the class token's position kept.
    patches = stored[:, 1:].reshape(1, size.grid, size.grid, -1).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    names["embeddings.position_embeddings"] = torch.cat(
        [stored[:, :1], resampled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1
    )
    settings = refer.config(
        size,
        model_type="beit",
        use_mask_token=shared,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=shared,
        use_relative_position_bias=not shared,
        use_mean_pooling=not shared,
    )
    settings["image_size"] = side
    model = refer.transformers_model(tmp_path / "folder", names, settings, "BeitModel", add_pooling_layer=not shared)
    inputs = publish.pixels(side, side)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm if shared else model.pooler.layernorm)
    compare("beit", f"positions, {side}", content, inputs, theirs)


def test_simmims_fine_tuned_file_is_simmims_and_takes_imagenets_mean(tmp_path: Path) -> None:
    path = saved(tmp_path, publish.simmim_finetuned(TINY))
    for name in ("auto", "simmim"):
        backbone = describe_backbone(resolve_backbone(name, weights=path))
        assert backbone.request.architecture == "simmim"
        assert backbone.preprocessing.mean == IMAGENET
        assert backbone.architecture["norm"] == "fc_norm"
    assert inspect_checkpoint(path).form.evaluation is SIMMIM


def test_what_only_the_mean_tells_apart_is_said_and_can_be_stated(tmp_path: Path) -> None:
    path = saved(tmp_path, publish.beit(TINY, shared=False))
    form = inspect_checkpoint(path).form
    assert (form.family, form.mean) == ("beit", HALF)
    assert any("--model beit2 and --model simmim" in note for note in form.assumed)
    for name, evaluation in (("beit2", BEIT_V2), ("simmim", SIMMIM)):
        other = inspect_checkpoint(path, family=name).form
        assert (other.family, other.mean, other.evaluation) == (name, IMAGENET, evaluation)
        assert describe_backbone(resolve_backbone(name, weights=path)).preprocessing.mean == IMAGENET


@pytest.mark.parametrize(("width", "heads", "said"), [(1024, 16, True), (768, 12, False)], ids=["L/14", "B/14"])
def test_the_one_open_clip_that_takes_another_mean_is_said(tmp_path: Path, width: int, heads: int, said: bool) -> None:
    size = Size(width=width, depth=1, heads=heads, mlp=16, patch=14, side=56)
    draw = publish.Draw(3)
    state = {**publish.plain(size), **dict(draw.norm("norm_pre", width))}
    path = saved(tmp_path, refer.openai_clip_names(state, size))
    assert any("LAION-2B" in note for note in inspect_checkpoint(path).form.assumed) == said
    stated = ("act_layer=gelu", "mean=0.5,0.5,0.5", "std=0.5,0.5,0.5")
    how = describe_backbone(resolve_backbone("auto", weights=path, arguments=stated)).preprocessing
    assert (how.mean, how.std) == (HALF, HALF)


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (768, ("vit_base_patch16_224.augreg_in21k", "deit_base_patch16_224.fb_in1k", "mae")),
        (1024, ("vit_large_patch16_224.augreg_in21k", "mae")),
    ],
)
def test_a_file_that_classifies_is_told_names_of_its_own_size_and_what_mean_they_have(
    tmp_path: Path, width: int, names: tuple[str, ...]
) -> None:
    state = publish.plain(Size(width=width, depth=1, heads=width // 64, mlp=16))
    head = {"head.weight": torch.zeros(10, width), "head.bias": torch.zeros(10)}
    path = saved(tmp_path, {"model": {**state, **head}})
    with pytest.raises(BackboneError, match="classify under timm's names") as raised:
        resolve_backbone("auto", weights=path)
    said = str(raised.value)
    half, imagenet = said.split("or for ImageNet's")
    for name in names:
        config = timm.get_pretrained_cfg(name) if name != "mae" else None
        assert name in (half if config is not None and tuple(config.mean) == HALF else imagenet)
    # As MAE fine-tuned with the class token is, which has a final norm under its own name.
    how = describe_backbone(resolve_backbone("mae", weights=path)).preprocessing
    assert (how.mean, how.crop_fraction) == (IMAGENET, 0.875)


def test_beit_v2_is_told_by_its_second_classifier(tmp_path: Path) -> None:
    content = publish.beit(TINY, shared=True)
    content["model"]["cls_pt_layers.0.norm1.weight"] = torch.ones(128)
    form = inspect_checkpoint(saved(tmp_path, content)).form
    assert (form.family, form.title, form.mean) == ("beit2", "BEiT v2 ViT-128/16", IMAGENET)


def test_of_i_jepas_encoders_the_one_that_its_paper_evaluates_is_taken(tmp_path: Path) -> None:
    content = publish.ijepa(TINY)
    path = saved(tmp_path, content)
    report = inspect_checkpoint(path)
    assert set(report.networks) == {"encoder", "target_encoder"}
    assert report.network == "target_encoder"
    weight = load_backbone(resolve_backbone("auto", weights=path)).module.blocks[0].attn.qkv.weight
    assert torch.equal(weight, content["target_encoder"]["module.blocks.0.attn.qkv.weight"].float())


def test_dinov3s_training_checkpoint_is_its_teachers_backbone(tmp_path: Path) -> None:
    path = saved(tmp_path, publish.dinov3_teacher(TINY))
    report = inspect_checkpoint(path)
    assert (report.loads, report.form.family) == (True, "dinov3")
    expected = publish.dinov3(TINY)["blocks.0.mlp.fc1.weight"].float()
    assert torch.equal(load_backbone(resolve_backbone("auto", weights=path)).module.blocks[0].mlp.fc1.weight, expected)


@pytest.mark.parametrize(
    ("width", "heads", "mlp", "gated", "title", "name"),
    [
        (384, 6, 1536, False, "DINOv3 ViT-S/16 with 4 registers", "dinov3-s16-reg4"),
        (384, 6, 1536, True, "DINOv3 ViT-S+/16 with 4 registers", "dinov3-s16plus-reg4"),
        (1024, 16, 4096, True, "DINOv3 ViT-L+/16 with 4 registers", "dinov3-l16plus-reg4"),
        (1280, 20, 5120, True, "DINOv3 ViT-H+/16 with 4 registers", "dinov3-h16plus-reg4"),
    ],
)
def test_dinov3s_sizes_with_a_plus_are_called_so(
    tmp_path: Path, width: int, heads: int, mlp: int, gated: bool, title: str, name: str
) -> None:
    size = Size(width=width, depth=1, heads=heads, mlp=mlp)
    content = {n: torch.zeros(()).expand(t.shape) for n, t in publish.dinov3(size, gated=gated).items()}
    torch.save(content, tmp_path / "weights.pth")
    form = inspect_checkpoint(tmp_path / "weights.pth").form
    assert (form.title, form.name, form.heads) == (title, name, heads)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (publish.dinov3(Size(width=1024, depth=24, heads=16, mlp=8), gated=True), "dinov3-l16", "a gated perceptron"),
        (
            publish.dinov2(Size(width=384, depth=12, heads=6, mlp=8, patch=14, side=56)),
            "dinov2-s14-reg4",
            "4 registers",
        ),
    ],
    ids=["S+ for S", "no registers"],
)
def test_a_name_is_refused_for_a_file_that_differs_in_registers_or_perceptron(
    tmp_path: Path, content: Any, name: str, said: str
) -> None:
    small = {n: t if n == "pos_embed" else torch.zeros(()).expand(t.shape) for n, t in content.items()}
    torch.save(small, tmp_path / "weights.pth")
    with pytest.raises(BackboneError, match=rf"not {name}.*give --model auto") as raised:
        resolve_backbone(name, weights=tmp_path / "weights.pth")
    assert said in str(raised.value)
