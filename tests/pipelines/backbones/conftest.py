"""The comparison that tests of equality make, and the table of what they found."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.backbones import load_backbone, resolve_backbone
from tests.pipelines.backbones.comparison import FLOAT32, FLOAT64, TABLE, double_tokens, largest_difference, saved
from tests.pipelines.backbones.references import Reference

Compare = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _table() -> Iterator[None]:
    """Print what was compared: the largest absolute difference over the largest absolute value."""
    yield
    lines = [f"{family:28} {case:32} {double:9.1e} {single:9.1e}" for family, case, double, single in TABLE]
    print("", f"{'family':28} {'case':32} {'float64':>9} {'float32':>9}", *lines, sep="\n")


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
        arguments: tuple[str, ...] = (),
    ) -> None:
        paths = saved(content, tmp_path)
        layers, size = range(1, len(theirs) + 1), (inputs.shape[-2], inputs.shape[-1])
        double = double_tokens(paths[0], inputs, layers, model, distances_m, arguments)
        backbone = load_backbone(resolve_backbone(model, weights=paths[1], image_size=size, arguments=arguments))
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
