"""What tests of equality share: our tokens from a file in both precisions, and how far they are from a reference's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.backbones import load_backbone, resolve_backbone
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.formats import FAMILIES
from pipelines.backbones.hub_folder import weights_file
from pipelines.backbones.inspection import inspect_checkpoint
from pipelines.backbones.networks import build_network, fill_network
from tests.pipelines.backbones.references import Reference

FLOAT64, FLOAT32 = 1e-9, 1e-4
# (family, case, difference in float64, in float32) of what was compared.
TABLE: list[tuple[str, str, float, float]] = []


def halved(content: Any) -> Any:
    """The same file in float32, as it is published."""
    if isinstance(content, dict):
        return {name: halved(value) for name, value in content.items()}
    return content.float() if isinstance(content, torch.Tensor) and content.is_floating_point() else content


def double_tokens(
    path: Path,
    inputs: torch.Tensor,
    layers: range,
    model: str,
    distances_m: torch.Tensor | None,
    arguments: tuple[str, ...],
) -> dict[Any, torch.Tensor]:
    """Our tokens in float64, from a file of float64."""
    size = (inputs.shape[-2], inputs.shape[-1])
    backbone = load_backbone(resolve_backbone(model, weights=path, image_size=size, arguments=arguments))
    form = inspect_checkpoint(path, family=None if model == "auto" else model, arguments=arguments).form
    torch.set_default_dtype(torch.float64)  # for what a network computes when it is built, such as rotary angles
    try:
        module = build_network(form, size).double()
    finally:
        torch.set_default_dtype(torch.float32)
    fill_network(module, FAMILIES[form.family].convert(read_state(weights_file(path)), form), form)
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
        assert values.isfinite().all(), (layer, kind)
        worst = max(worst, ((values.double() - part).abs().max() / expected.abs().max()).item())
    return worst


def saved(content: Any, folder: Path) -> tuple[Path, Path]:
    """A file in float64 and one in float32; a folder of transformers, already in float64, is read as it is by both."""
    if isinstance(content, Path):
        return content, content
    torch.save(content, folder / "double.pth")
    torch.save(halved(content), folder / "single.pth")
    return folder / "double.pth", folder / "single.pth"
