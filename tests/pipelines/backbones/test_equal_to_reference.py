"""Every family, from a file as its authors publish it, against an implementation that is not ours, token by token.

`pytest -s` prints the table of differences: the largest absolute difference over the largest absolute value, in
float64 and as users run it in float32.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.backbones import load_backbone, resolve_backbone
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones import references as refer
from tests.pipelines.backbones.comparison import FLOAT32, FLOAT64, TABLE, largest_difference
from tests.pipelines.backbones.published_files import Size, pixels

Compare = Callable[..., None]
S16 = Size()
WITH_REGISTERS = frozenset({"patches", "cls", "registers"})

RESOLUTIONS = {"native": (224, 224), "larger": (288, 288), "not square": (160, 256), "as many patches": (112, 448)}


@pytest.mark.parametrize("case", RESOLUTIONS)
@pytest.mark.parametrize("decoder", [False, True], ids=["pretrain", "visualize"])
def test_mae_is_transformers_vitmae(compare: Compare, tmp_path: Path, case: str, decoder: bool) -> None:
    content = publish.mae(S16, decoder=decoder)
    names = {f"vit.{name}": tensor for name, tensor in refer.transformers_vit_names(content["model"], S16).items()}
    settings = refer.config(S16, model_type="vit_mae", mask_ratio=0.0)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "ViTMAEModel")
    inputs = pixels(*RESOLUTIONS[case])
    n_patches = inputs.shape[-1] * inputs.shape[-2] // S16.patch**2
    # The noise decides the order in which it shuffles patches, even where it masks none.
    order = torch.arange(n_patches, dtype=torch.float64).expand(2, -1)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm, noise=order, interpolate_pos_encoding=True)
    compare("mae", f"{'with decoder, ' if decoder else ''}{case}", content, inputs, theirs)


@pytest.mark.parametrize("case", RESOLUTIONS)
@pytest.mark.parametrize(("family", "patch"), [("dino", 16), ("dino", 8), ("ibot", 16)])
def test_dino_and_ibot_are_transformers_vit_with_dinos_positions(
    compare: Compare, tmp_path: Path, case: str, patch: int, family: str
) -> None:
    size = Size(patch=patch, depth=3 if patch == S16.patch else 1)
    state = publish.plain(size)
    names, settings = refer.transformers_vit_names(state, size), refer.config(size, model_type="vit")
    model = refer.transformers_model(tmp_path / "folder", names, settings, "ViTModel", add_pooling_layer=False)
    refer.replace_positions(model, refer.dino_positions)
    inputs = pixels(*RESOLUTIONS[case])
    theirs = refer.transformers_tokens(model, inputs, model.layernorm, interpolate_pos_encoding=True)
    content = state if family == "dino" else {"state_dict": state}
    compare(family, f"/{patch}, {case}", content, inputs, theirs)


DINOV2_RESOLUTIONS = {"native": (518, 518), "at 224": (224, 224), "not square": (140, 252)}


@pytest.mark.parametrize("case", DINOV2_RESOLUTIONS)
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_dinov2_is_transformers_dinov2_with_the_original_positions(
    compare: Compare, tmp_path: Path, case: str, registers: int, gated: bool
) -> None:
    # transformers samples DINOv2's positions without the original's offset of 0.1, and in float32.
    size = Size(patch=14, side=518, depth=2, mlp=344 if gated else 512)
    content = publish.dinov2(size, registers=registers, gated=gated)
    settings = refer.config(size, mlp_ratio=4, use_swiglu_ffn=gated)
    if registers:
        settings |= {"model_type": "dinov2_with_registers", "num_register_tokens": registers}
    else:
        settings |= {"model_type": "dinov2"}
    name = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    model = refer.transformers_model(
        tmp_path / "folder", refer.transformers_dinov2_names(content, size), settings, name
    )
    refer.replace_positions(model, refer.register_positions if registers else refer.dino_positions)
    inputs = pixels(*DINOV2_RESOLUTIONS[case])
    theirs = refer.transformers_tokens(model, inputs, model.layernorm)
    compare(
        "dinov2" + (" registers" if registers else "") + (" swiglu" if gated else ""),
        case,
        content,
        inputs,
        theirs,
        n_prefix=1 + registers,
        kinds=WITH_REGISTERS if registers else WITH_REGISTERS - {"registers"},
    )


@pytest.mark.parametrize("side", [224, 288, 160])
@pytest.mark.parametrize("legacy", [False, True], ids=["mlp.0", "mlp.linear_1"])
def test_torchvision_is_its_own_class(compare: Compare, side: int, legacy: bool) -> None:
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    content = publish.torchvision_vit(S16)
    model = VisionTransformer(
        image_size=side,
        patch_size=S16.patch,
        num_layers=S16.depth,
        num_heads=S16.heads,
        hidden_dim=S16.width,
        mlp_dim=S16.mlp,
        num_classes=10,
    )
    model.double().eval().load_state_dict(interpolate_embeddings(side, S16.patch, dict(content)))
    inputs = pixels(side, side)
    theirs = refer.hooked_tokens(model, model.encoder.layers, inputs, model.encoder.ln)
    if legacy:
        content = {
            name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
            for name, tensor in content.items()
        }
    compare("torchvision", f"{side}{' (first names)' if legacy else ''}", content, inputs, theirs)


def test_simmim_is_transformers_beit_with_one_table(compare: Compare, tmp_path: Path) -> None:
    state = publish.simmim(S16)
    settings = refer.config(
        S16, model_type="beit", use_mask_token=True, use_shared_relative_position_bias=True, use_mean_pooling=False
    )
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    names = refer.transformers_beit_names(encoder, S16)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "BeitModel", add_pooling_layer=False)
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm)
    compare("simmim", "native", {"model": state, "epoch": 800}, inputs, theirs)


@pytest.mark.parametrize("side", [288, 160])
def test_simmim_elsewhere_is_transformers_beit_with_simmims_own_table(
    compare: Compare, tmp_path: Path, side: int
) -> None:
    state = publish.simmim(S16)
    resampled = {
        **state,
        refer.TABLE: refer.simmim_table(state[refer.TABLE], S16.grid, side // S16.patch),
    }
    settings = refer.config(
        S16, model_type="beit", use_mask_token=True, use_shared_relative_position_bias=True, use_mean_pooling=False
    )
    encoder = {name.removeprefix("encoder."): t for name, t in resampled.items() if name.startswith("encoder.")}
    names, size = refer.transformers_beit_names(encoder, S16), {**settings, "image_size": side}
    model = refer.transformers_model(tmp_path / "folder", names, size, "BeitModel", add_pooling_layer=False)
    inputs = pixels(side, side)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm)
    compare("simmim", f"{side}", {"model": state, "epoch": 800}, inputs, theirs)


@pytest.mark.parametrize("shared", [True, False], ids=["pre-trained", "fine-tuned"])
def test_beit_is_transformers_beit(compare: Compare, tmp_path: Path, shared: bool) -> None:
    content = publish.beit(S16, shared=shared)
    settings = refer.config(
        S16,
        model_type="beit",
        use_mask_token=shared,
        use_shared_relative_position_bias=shared,
        use_relative_position_bias=not shared,
        use_mean_pooling=not shared,
    )
    names = refer.transformers_beit_names(content["model"], S16)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "BeitModel", add_pooling_layer=not shared)
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm if shared else model.pooler.layernorm)
    compare("beit", "pre-trained" if shared else "fine-tuned", content, inputs, theirs)


@pytest.mark.parametrize("case", RESOLUTIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_dinov3_is_transformers_dinov3(compare: Compare, tmp_path: Path, case: str, gated: bool) -> None:
    size = Size(depth=2)
    content = publish.dinov3(size, gated=gated)
    settings = refer.config(
        size, model_type="dinov3_vit", num_register_tokens=4, layer_norm_eps=1e-5, use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    names = refer.transformers_dinov3_names(content, size)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "DINOv3ViTModel")
    model.rope_embeddings = refer.FileRotation(size.patch, content["rope_embed.periods"])
    inputs = pixels(*RESOLUTIONS[case])
    theirs = refer.transformers_tokens(model, inputs, model.norm)
    family = "dinov3" + (" swiglu" if gated else "")
    compare(family, case, content, inputs, theirs, n_prefix=5, kinds=WITH_REGISTERS)


@pytest.mark.parametrize("case", RESOLUTIONS)
def test_ijepa_is_transformers_ijepa(compare: Compare, tmp_path: Path, case: str) -> None:
    content = publish.ijepa(S16)
    state = {name.removeprefix("module."): tensor for name, tensor in content["target_encoder"].items()}
    names = refer.transformers_vit_names({**state, "cls_token": torch.zeros(1)}, S16)
    del names["embeddings.cls_token"]
    settings = refer.config(S16, model_type="ijepa")
    model = refer.transformers_model(tmp_path / "folder", names, settings, "IJepaModel", add_pooling_layer=False)
    inputs = pixels(*RESOLUTIONS[case])
    theirs = refer.transformers_tokens(model, inputs, model.layernorm, interpolate_pos_encoding=True)
    compare("ijepa", case, content, inputs, theirs, n_prefix=0, kinds=frozenset({"patches"}))


@pytest.mark.parametrize("side", [224, 128])
@pytest.mark.parametrize("distances_m", [(0.3, 10.0), (float("nan"), 2.5), None], ids=["known", "one known", "none"])
def test_scale_mae_is_a_vit_with_the_published_positions(
    compare: Compare, tmp_path: Path, side: int, distances_m: tuple[float, float] | None
) -> None:
    content = publish.scale_mae(S16)
    state = dict(content["model"])
    metres = torch.tensor(distances_m or (float("nan"),) * 2, dtype=torch.float64)
    names, settings = refer.transformers_vit_names(state, S16), refer.config(S16, model_type="vit")
    model = refer.transformers_model(tmp_path / "folder", names, settings, "ViTModel", add_pooling_layer=False)
    known = metres.nan_to_num(nan=1.0)
    refer.replace_positions(model, lambda _stored, height, _width: refer.ground_positions(known, height, S16.width))
    inputs = pixels(side, side)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm, interpolate_pos_encoding=True)
    given = None if distances_m is None else metres
    compare("scale-mae", f"{side}, {distances_m or 'default'}", content, inputs, theirs, distances_m=given)


def test_the_mirror_of_scale_maes_encoder_needs_its_name(tmp_path: Path) -> None:
    content = publish.mae(S16)["model"]
    torch.save(content, tmp_path / "mirror.pth")
    assert resolve_backbone("auto", weights=tmp_path / "mirror.pth").architecture == "mae"
    assert resolve_backbone("scale-mae", weights=tmp_path / "mirror.pth").architecture == "scale-mae"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "deit_tiny_patch16_224.fb_in1k"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["flat", "under model"])
def test_timms_supervised_models_are_transformers_vit(tmp_path: Path, name: str, wrapped: bool) -> None:
    size = Size(width=192, heads=3, mlp=768, depth=12)
    state = publish.plain(size)
    settings = refer.config(size, model_type="vit")
    names = refer.transformers_vit_names(state, size)
    model = refer.transformers_model(tmp_path / "folder", names, settings, "ViTModel", add_pooling_layer=False)
    inputs = pixels(224, 224)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm)
    with_head = {**state, "head.weight": torch.zeros(10, size.width), "head.bias": torch.zeros(10)}
    torch.save({"model": with_head} if wrapped else with_head, tmp_path / "weights.pth")
    backbone = load_backbone(resolve_backbone(name, weights=tmp_path / "weights.pth"))
    layers = range(1, size.depth + 1)
    single = backbone.tokens_of(inputs.float(), layers)
    backbone.module.double()
    backbone.module.load_state_dict(state)  # in float64, which the model was loaded without
    double = backbone.tokens_of(inputs, layers)
    differences = largest_difference(double, theirs, 1), largest_difference(single, theirs, 1)
    TABLE.append((f"timm {name}"[:27], "native", *differences))
    assert differences[0] <= FLOAT64
    assert differences[1] <= FLOAT32


def test_a_file_of_real_size_is_its_reference(compare: Compare, tmp_path: Path) -> None:
    """ViT-S/16 as DINO publishes it, where 12 blocks add up their rounding."""
    size = Size(width=384, depth=12, heads=6, mlp=1536)
    content = publish.plain(size)
    names, settings = refer.transformers_vit_names(content, size), refer.config(size, model_type="vit")
    model = refer.transformers_model(tmp_path / "folder", names, settings, "ViTModel", add_pooling_layer=False)
    refer.replace_positions(model, refer.dino_positions)
    inputs = pixels(224, 256)
    theirs = refer.transformers_tokens(model, inputs, model.layernorm, interpolate_pos_encoding=True)
    compare("dino", "ViT-S/16, not square", content, inputs, theirs)


def test_eva02_of_timm_is_its_published_formula(tmp_path: Path) -> None:
    size = Size(width=192, heads=3, mlp=512, depth=12, patch=14)
    state = publish.eva02(size)
    inputs = pixels(224, 224)
    theirs = refer.eva02_tokens(state, inputs, size)
    torch.save({"module": state}, tmp_path / "weights.pth")
    backbone = load_backbone(resolve_backbone("eva02_tiny_patch14_224.mim_in22k", weights=tmp_path / "weights.pth"))
    single = backbone.tokens_of(inputs.float(), range(1, size.depth + 1))
    difference = largest_difference(single, theirs, 1)
    # timm keeps the rotation's angles in float32, so that there is no comparison in float64 to make.
    TABLE.append(("timm eva02_tiny_patch14_224", "native", float("nan"), difference))
    assert difference <= FLOAT32
