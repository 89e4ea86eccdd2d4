"""Timing a backbone: what is counted has a closed form, what is compared an oracle; no test asserts a time."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch

from pipelines.backbones import Backbone
from pipelines.backbones.backbone import Tokens
from pipelines.backbones.timm_vit import TimmBackbone, random_timm
from pipelines.throughput import Setting, Throughput, count_flops, fastest, measure, settings_to_try


def test_flops_are_those_of_the_formula() -> None:
    backbone = random_timm("deit_tiny_patch16_224")
    tokens, width, blocks, patches, patch_values = 197, 192, 12, 196, 16 * 16 * 3
    # A block: queries, keys, values and projection (4), the perceptron (2 x 4), and two products of all tokens by all.
    per_block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    expected = blocks * per_block + 2 * patches * patch_values * width
    assert count_flops(backbone, torch.zeros(1, 3, 224, 224)) == expected


def test_what_is_told_fits_together() -> None:
    settings = [Setting(compute_dtype=dtype, threads=1) for dtype in ("float32", "bfloat16")]
    before = torch.get_num_threads()

    def load() -> Backbone:
        return random_timm("deit_tiny_patch16_224", image_size=(32, 64))

    plain, rounded = measure(load, settings, batch_size=3, seconds=0.01, rounds=2)
    assert torch.get_num_threads() == before
    flops = count_flops(load(), torch.zeros(1, 3, 32, 64))
    for one in (plain, rounded):
        assert one.failed is None
        assert one.images_per_s > 0
        assert one.tokens_per_s == pytest.approx(one.images_per_s * (2 * 4 + 1))
        assert one.flops_per_s == pytest.approx(one.images_per_s * flops)
        assert one.share_of_peak == pytest.approx(one.flops_per_s / one.peak_flops_per_s)
    assert plain.least_cosine == pytest.approx(1, abs=1e-9)
    assert 0.99 < rounded.least_cosine < 1


def test_random_weights_are_the_same_in_every_call_and_leave_torchs_own_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (random_timm("test_vit").module.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert one["blocks.0.attn.qkv.weight"].std() > 0


class _Refusing(TimmBackbone):
    """A backbone that cannot be run in half precision."""

    def tokens_of(self, inputs: torch.Tensor, layers: Sequence[int], **options: Any) -> Tokens:
        if self.request.compute_dtype != "float32":
            raise NotImplementedError("no kernel\nfor Half")
        return super().tokens_of(inputs, layers, **options)


def test_a_setting_that_cannot_be_run_is_told_and_the_others_go_on() -> None:
    plain = random_timm("test_vit", image_size=(32, 32))
    backbone = _Refusing(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    settings = [Setting(compute_dtype=dtype, threads=1) for dtype in ("float16", "float32")]
    refused, ran = measure(lambda: backbone, settings, batch_size=2, seconds=0.01, rounds=1)
    assert refused == Throughput(setting=settings[0], failed="no kernel for Half")
    assert refused.share_of_peak == 0
    assert ran.images_per_s > 0


def test_every_setting_that_may_pay_is_tried_once() -> None:
    on_cpu = settings_to_try("cpu", 4, ("float32", "bfloat16"))
    assert len(on_cpu) == len(set(on_cpu)) == 2 * (2 + 4)
    assert {setting.threads for setting in on_cpu} == {1, 2, 4}
    assert all(setting.threads == 4 for setting in on_cpu if setting.compiled or setting.channels_last)
    on_gpu = settings_to_try("cuda:1", 4, ("bfloat16",))
    assert [(setting.compiled, setting.channels_last) for setting in on_gpu] == [
        (False, False), (False, True), (True, False), (True, True)
    ]  # fmt: skip


def test_the_fastest_is_the_fastest_of_those_that_are_near_enough() -> None:
    def one(images_per_s: float, least_cosine: float, failed: str | None = None) -> Throughput:
        setting = Setting(compute_dtype="float32", threads=1)
        return Throughput(setting=setting, images_per_s=images_per_s, least_cosine=least_cosine, failed=failed)

    slow, fast, far, broken = one(1, 1), one(2, 0.9995), one(9, 0.98), one(99, 1, "no")
    assert fastest([slow, fast, far, broken], least_cosine=0.999) is fast
    assert fastest([slow, fast, far, broken], least_cosine=0.9) is far
    assert fastest([far, broken], least_cosine=0.999) is None
