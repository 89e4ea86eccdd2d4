"""What tests of equality share: our tokens from a file in both precisions, held to a reference's, and the table."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.backbones import load_backbone, resolve_backbone
from pipelines.backbones.checkpoint import read_checkpoint
from pipelines.backbones.formats import FAMILIES
from pipelines.backbones.hub_folder import weights_file
from pipelines.backbones.inspection import inspect_checkpoint
from pipelines.backbones.networks import build_network, fill_network
from tests.pipelines.backbones.references import Reference

FLOAT64, FLOAT32 = 1e-9, 1e-4
TABLE: list[tuple[str, str, float, float]] = []

Compare = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _table() -> Iterator[None]:
    """Print what was compared: the largest absolute difference over the largest absolute value."""
    yield
    lines = [f"{family:28} {case:32} {double:9.1e} {single:9.1e}" for family, case, double, single in TABLE]
    print("", f"{'family':28} {'case':32} {'float64':>9} {'float32':>9}", *lines, sep="\n")


def halved(content: Any) -> Any:
    """The same file in float32, as it is published."""
    if isinstance(content, dict):
        return {name: halved(value) for name, value in content.items()}
    return content.float() if isinstance(content, torch.Tensor) and content.is_floating_point() else content


def double_tokens(
    path: Path, inputs: torch.Tensor, layers: range, model: str, distances_m: torch.Tensor | None
) -> dict[Any, torch.Tensor]:
    """Our tokens in float64, from a file of float64."""
    size = (inputs.shape[-2], inputs.shape[-1])
    backbone = load_backbone(resolve_backbone(model, weights=path, image_size=size))
    form = inspect_checkpoint(path, family=None if model == "auto" else model).form
    torch.set_default_dtype(torch.float64)  # for what a network computes when it is built, such as rotary angles
    try:
        module = build_network(form, size).double()
    finally:
        torch.set_default_dtype(torch.float32)
    fill_network(module, FAMILIES[form.family].convert(read_checkpoint(weights_file(path)).tensors, form), form)
    return replace(backbone, module=module).tokens_of(inputs, layers, ground_sample_distance_m=distances_m)


def largest_difference(ours: dict[Any, torch.Tensor], theirs: Reference, n_prefix: int) -> float:
    """Over all layers and kinds; the reference's tokens are prefix first, the class token the first of them."""
    worst = 0.0
    for (layer, kind), values in ours.items():
        expected = theirs[layer]
        part = {
            "patches": expected[:, n_prefix:],
            "cls": expected[:, 0],
            "registers": expected[:, 1:n_prefix],
        }[kind]
        assert values.shape == part.shape, (layer, kind)
        worst = max(worst, ((values.double() - part).abs().max() / expected.abs().max()).item())
    return worst


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Loads a file in both precisions, and holds every token of every layer to the reference's."""

    def run(
        family: str,
        case: str,
        content: Any,
        inputs: torch.Tensor,
        theirs: Reference,
        *,
        n_prefix: int = 1,
        kinds: frozenset[str] = frozenset({"patches", "cls"}),
        model: str = "auto",
        distances_m: torch.Tensor | None = None,
    ) -> None:
        paths = _saved(content, tmp_path)
        layers, size = range(1, len(theirs) + 1), (inputs.shape[-2], inputs.shape[-1])
        double = double_tokens(paths[0], inputs, layers, model, distances_m)
        backbone = load_backbone(resolve_backbone(model, weights=paths[1], image_size=size))
        assert backbone.request.architecture == family.partition(" ")[0]
        metres = None if distances_m is None else distances_m.float()
        single = backbone.tokens_of(inputs.float(), layers, ground_sample_distance_m=metres)
        for ours in (double, single):
            assert set(ours) == {(layer, kind) for layer in layers for kind in kinds}
        differences = largest_difference(double, theirs, n_prefix), largest_difference(single, theirs, n_prefix)
        TABLE.append((family, case, *differences))
        assert differences[0] <= FLOAT64
        assert differences[1] <= FLOAT32

    return run


def _saved(content: Any, folder: Path) -> tuple[Path, Path]:
    """A file in float64 and one in float32; a folder of transformers, already in float64, is read as it is by both."""
    if isinstance(content, Path):
        return content, content
    torch.save(content, folder / "double.pth")
    torch.save(halved(content), folder / "single.pth")
    return folder / "double.pth", folder / "single.pth"
