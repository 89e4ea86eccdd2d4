"""Which names of models are known, told without torch or timm."""

import pytest
import timm

from pipelines.backbones.formats import FAMILIES
from pipelines.backbones.model_names import FAMILY_NAMES, refusal, unknown_model


def test_the_light_list_of_families_is_that_of_the_formats() -> None:
    assert sorted(FAMILIES) == list(FAMILY_NAMES)


def test_no_name_that_timm_takes_is_refused() -> None:
    names = [*timm.list_models(pretrained=True)[::20], *timm.list_models()[::50], "vit_tiny_patch16_224_in21k"]
    assert all(timm.is_model(name) for name in names)
    assert [name for name in names if unknown_model(name) is not None] == []


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("dinov2_vits14", "dinov2-s14"),
        ("dinov2_vitb14_reg", "dinov2-b14-reg4"),
        ("mae_vit_base_patch16", "mae-b16"),
        ("deit_small", "deit_small_patch16_224"),
        ("Demo", "demo"),
    ],
)
def test_the_name_that_was_meant_comes_first(mistyped: str, meant: str) -> None:
    assert f"(did you mean '{meant}'" in refusal(mistyped)
    assert unknown_model(mistyped) == refusal(mistyped)
