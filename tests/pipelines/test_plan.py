"""Plans: layers and kinds as a model has them, and what is refused before anything runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_store import create_store
from pipelines.backbones import BackboneRequest, load_backbone
from pipelines.plan import (
    ExtractionPlan,
    ExtractionSettings,
    PlanError,
    feature_set_spec,
    require_possible,
    resolve_layers,
)
from pipelines.run import Prepared
from tests.feature_store.samples import register


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(("last",), (12,)), (("last", 3, "1"), (1, 3, 12)), ((12, "last", "012"), (12,))],
)
def test_layers_become_ascending_block_numbers(layers: tuple[int | str, ...], expected: tuple[int, ...]) -> None:
    assert resolve_layers(layers, 12) == expected


@pytest.mark.parametrize("layer", [0, 13, -1, "first", "", "1.5", "²"])
def test_layers_that_a_model_lacks_are_refused(layer: int | str) -> None:
    with pytest.raises(PlanError, match=r"this model has blocks 1\.\.12; name numbers of them, or `last`"):
        resolve_layers([layer], 12)


def test_no_layer_is_refused() -> None:
    with pytest.raises(PlanError, match="no layer: name some of the blocks"):
        resolve_layers([], 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_kinds": ()}, "token kinds none: choose among patches, cls, registers"),
        ({"token_kinds": ("patches", "pixels")}, r"token kinds \['pixels'\]"),
        ({"storage_dtype": "float8"}, "storage dtype 'float8': choose among float16, float32"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"rows_per_shard": -8}, "rows_per_shard -8: must be at least 1"),
        ({"rows_per_shard": 12}, "rows_per_shard 12: must be a multiple of 8"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ExtractionSettings(**settings)


def test_a_token_kind_that_the_model_lacks_is_refused(tiny_request: BackboneRequest) -> None:
    settings = ExtractionSettings(token_kinds=("patches", "registers"))
    with pytest.raises(PlanError, match=r"has no register tokens; ask for --tokens patches,cls,attention"):
        require_possible(load_backbone(tiny_request), settings)


def test_an_unknown_compute_dtype_is_refused(tiny_request: BackboneRequest) -> None:
    backbone = load_backbone(replace(tiny_request, compute_dtype="float64"))
    with pytest.raises(PlanError, match="compute dtype 'float64': choose among float32, bfloat16, float16"):
        require_possible(backbone, ExtractionSettings())


def test_a_plan_survives_its_json(prepare: Callable[..., Prepared]) -> None:
    plan = prepare(layers=(1, "last"), token_kinds=("cls",)).plan
    assert ExtractionPlan.from_json(plan.to_json()) == plan


def test_identity_lists_kinds_in_one_order_and_layers_once(prepare: Callable[..., Prepared]) -> None:
    one = prepare(store="one", layers=("last", 6, 2), token_kinds=("cls", "patches")).plan.spec.identity
    other = prepare(store="other", layers=(2, 6), token_kinds=("patches", "cls")).plan.spec.identity
    assert one == other
    assert (one.layers, one.token_kinds) == ((2, 6), ("patches", "cls"))


def test_without_token_kinds_a_plan_has_patches_and_the_class_token_that_the_model_has(
    tiny_request: BackboneRequest, tmp_path: Path
) -> None:
    dataset = register(create_store(str(tmp_path / "s")), 8)
    backbone = load_backbone(tiny_request)
    expected: tuple[tuple[bool, tuple[str, ...]], ...] = ((True, ("patches", "cls")), (False, ("patches",)))
    for has_cls, kinds in expected:
        model = replace(backbone, has_cls=has_cls)
        spec = feature_set_spec(dataset, model, ExtractionSettings(), attention_kernel="explicit")
        assert spec.identity.token_kinds == kinds
