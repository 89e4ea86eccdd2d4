"""Tables of relative positions against scipy's splines, timm's own resampling and one worked by hand."""

import pytest
import torch
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

from pipelines.backbones.relative_bias import OWN, TIMM, TRANSFORMERS, resample_table, text
from tests.pipelines.backbones.published_files import Draw
from tests.pipelines.backbones.references import simmim_table


def table(grid: tuple[int, int]) -> torch.Tensor:
    return Draw(3).normal((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, 2)


@pytest.mark.parametrize("wanted", [3, 8, 13, 14, 15, 20, 32])
def test_the_own_rule_is_simmims(wanted: int) -> None:
    ours = resample_table(table((14, 14)), stored=(14, 14), wanted=(wanted, wanted), rule=OWN)
    if wanted == 14:
        assert torch.equal(ours, table((14, 14)))
    else:
        assert torch.allclose(ours, simmim_table(table((14, 14)), 14, wanted), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize("wanted", [(8, 8), (20, 20), (10, 16), (14, 7)])
def test_timms_rule_is_timms(wanted: tuple[int, int]) -> None:
    stored = table((14, 14)).float()
    shape = ((2 * wanted[0] - 1) * (2 * wanted[1] - 1) + 3, 2)
    theirs = resize_rel_pos_bias_table(stored, wanted, shape, (14, 14))
    ours = resample_table(stored, stored=(14, 14), wanted=wanted, rule=TIMM)
    # timm computes the weights in float32, over distances of some tens.
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("rule", [OWN, TIMM, TRANSFORMERS])
def test_a_table_that_does_not_vary_stays_so_and_the_class_tokens_entries_are_kept(rule: str) -> None:
    stored = torch.full((27 * 27 + 3, 2), 0.5, dtype=torch.float64)
    stored[-3:] = torch.arange(6.0).reshape(3, 2)
    resampled = resample_table(stored, stored=(14, 14), wanted=(5, 9), rule=rule)
    assert resampled.shape == (9 * 17 + 3, 2)
    assert torch.allclose(resampled[:-3], torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(resampled[-3:], stored[-3:])


def test_the_identity_says_which_rule_was_at_work() -> None:
    assert text(OWN, (14, 14), (14, 14)) == "as stored"
    assert text(TIMM, (14, 14), (8, 16)) == (
        "relative bias by lines over geometric distances from 14x14 to 8x16 (relative-bias-timm)"
    )
