"""One file run one way is one feature set, by whichever name it was asked for."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipelines.backbones import Backbone, describe_backbone, load_backbone, resolve_backbone
from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.form import VitForm
from pipelines.backbones.networks import build_network
from pipelines.backbones.same_network import _NAMES, published_record
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones.published_files import Size

PLAIN: dict[str, Any] = {"family": "any", "title": "any", "positions": "mae", "evaluation": evaluation.MAE}


def saved(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def empty(content: Any) -> Any:
    """The same shapes without memory, positions apart: what a network is, its other numbers do not say."""
    if isinstance(content, dict):
        return {name: value.float() if name == "pos_embed" else empty(value) for name, value in content.items()}
    return torch.zeros(()).expand(content.shape)


def recorded(backbone: Backbone) -> dict[str, Any]:
    """All of the identity that a model decides."""
    return {
        "architecture": backbone.architecture,
        "preprocessing": backbone.preprocessing.to_json(),
        "weights": backbone.request.weights_sha256,
    }


S14 = Size(width=384, depth=12, heads=6, mlp=1536, patch=14, side=518)
B16 = Size(width=768, depth=12, heads=12, mlp=3072)
SMALL = Size(width=384, depth=12, heads=6, mlp=1536)


def plain_b16() -> dict[str, torch.Tensor]:
    """Names and shapes of a plain ViT-B/16, which timm and the authors of MAE share."""
    with torch.device("meta"):
        return dict(timm.create_model("vit_base_patch16_224", num_classes=0).state_dict())


@pytest.mark.parametrize(
    ("content", "names", "side"),
    [
        (
            publish.dinov2(S14, registers=4),
            (
                "auto",
                "dinov2",
                "dinov2-s14-reg4",
                "demo",
                "vit_small_patch14_reg4_dinov2",
                "vit_small_patch14_reg4_dinov2.lvd142m",
            ),
            224,
        ),
        (publish.dinov2(S14), ("auto", "dinov2-s14", "vit_small_patch14_dinov2.lvd142m"), 518),
        (
            {"model": {**plain_b16(), "pos_embed": publish.waves(B16)}},
            ("auto", "mae-b16", "vit_base_patch16_224.mae"),
            224,
        ),
        (publish.plain(SMALL), ("auto", "dino", "dino-s16", "vit_small_patch16_224.dino"), 224),
    ],
    ids=["dinov2 with registers", "dinov2", "mae", "dino"],
)
def test_one_file_by_every_name_of_its_model_has_one_identity(
    tmp_path: Path, content: Any, names: tuple[str, ...], side: int
) -> None:
    path = saved(tmp_path, empty(content))
    requests = [resolve_backbone(name, weights=path, image_size=side) for name in names]
    for one, other in pairwise(map(recorded, map(describe_backbone, requests))):
        assert one == other


def test_names_of_timm_for_one_network_have_one_record(tmp_path: Path) -> None:
    path = saved(tmp_path, empty(publish.plain(Size(width=192, depth=12, heads=3, mlp=768))))
    names = ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "deit_tiny_patch16_224")
    records = [describe_backbone(resolve_backbone(name, weights=path, fit="squash")).architecture for name in names]
    assert records == [records[0]] * 3
    assert records[0]["name"] == "vit_tiny_patch16_224"


def test_a_rule_is_recorded_alike_by_every_family_that_has_it(tmp_path: Path) -> None:
    path = saved(tmp_path, empty(publish.plain(SMALL)))
    texts = {
        describe_backbone(
            resolve_backbone("dino", weights=path, image_size=160, position_embedding=rule)
        ).preprocessing.position_embedding
        for rule in ("mae", "transformers")
    }
    assert texts == {"bicubic without antialias from 14x14 to 10x10 (mae)"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_one_identity_means_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    content = publish.dinov2(S14, registers=4)
    path = saved(tmp_path, {name: tensor.to(dtype) for name, tensor in content.items()})
    names = ("auto", "vit_small_patch14_reg4_dinov2")
    ours, theirs = (load_backbone(resolve_backbone(name, weights=path, image_size=112)) for name in names)
    assert recorded(ours) == recorded(theirs)
    inputs = publish.pixels(112, 112).float()
    tokens, others = ours.tokens_of(inputs, [1, 12]), theirs.tokens_of(inputs, [1, 12])
    assert tokens.keys() == others.keys()
    assert all(torch.equal(tokens[name], others[name]) for name in tokens)


# The form of each name that stands for others, as the publishers' papers have it.
FORMS = {
    "vit_small_patch8_224": VitForm(**PLAIN, width=384, depth=12, heads=6, mlp_width=1536, patch=8, grid=(28, 28)),
    "vit_huge_patch14_224": VitForm(**PLAIN, width=1280, depth=32, heads=16, mlp_width=5120, patch=14, grid=(16, 16)),
    "vit_huge_patch14_gap_224": VitForm(
        **PLAIN, width=1280, depth=32, heads=16, mlp_width=5120, patch=14, grid=(16, 16), class_token=False
    ),
    "vit_giant_patch14_reg4_dinov2": VitForm(
        **PLAIN,
        width=1536,
        depth=40,
        heads=24,
        mlp_width=8192,
        patch=14,
        grid=(16, 16),
        registers=4,
        options={"init_values": 1.0, "no_embed_class": True, "mlp_layer": "SwiGLUPacked", "act_layer": "silu"},
    ),
    "vit_base_patch16_clip_quickgelu_224": VitForm(
        **PLAIN,
        width=768,
        depth=12,
        heads=12,
        mlp_width=3072,
        patch=16,
        grid=(14, 14),
        norm_eps=1e-5,
        options={"pre_norm": True, "act_layer": "quick_gelu"},
    ),
    "beit_base_patch16_224": VitForm(
        **PLAIN,
        network="Beit",
        width=768,
        depth=12,
        heads=12,
        mlp_width=3072,
        patch=16,
        grid=(14, 14),
        options={
            "use_abs_pos_emb": False,
            "use_rel_pos_bias": True,
            "use_shared_rel_pos_bias": False,
            "init_values": 1.0,
            "global_pool": "avg",
        },
    ),
}


def name_of(form: VitForm) -> str:
    with torch.device("meta"):
        module = build_network(form, form.image_size)
    name: str = published_record(form.network, {}, module, form.image_size, norm="norm")["name"]
    return name


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_recorded_under_the_name_of_its_network(name: str) -> None:
    assert any(name in names for names in _NAMES.values())
    assert name_of(FORMS[name]) == name


@pytest.mark.parametrize(
    "change",
    [
        {"norm_eps": 1e-5},
        {"heads": 6},
        {"mlp_width": 3071},
        {"options": {"act_layer": "quick_gelu"}},
        {"options": {"init_values": 1.0}},
    ],
    ids=str,
)
def test_a_network_that_differs_in_anything_is_recorded_with_its_arguments(change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "patch": 16, "grid": (14, 14)}
    assert name_of(VitForm(**PLAIN, **plain)) == "vit_base_patch16_224"
    assert name_of(VitForm(**{**PLAIN, **plain, **change})) == "VisionTransformer"
