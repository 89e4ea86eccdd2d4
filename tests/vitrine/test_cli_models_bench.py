"""`vitrine models bench`: what it prints, and what it refuses."""

from pathlib import Path

import pytest

from .conftest import Run

QUICK = ("--seconds", "0.01", "--batch-size", "2", "--image-size", "32x64")


def test_it_tells_speed_and_share_of_the_peak(vitrine: Run) -> None:
    ran = vitrine("models", "bench", "test_vit", *QUICK, "--json")
    assert ran.code == 0, ran.err
    (one,) = ran.json["results"]
    assert ran.json["fastest"] == one
    assert (ran.json["batch_size"], ran.json["device"]) == (2, "cpu")
    assert one["images_per_s"] > 0
    assert one["tokens_per_s"] == pytest.approx(one["images_per_s"] * (2 * 4 + 1))
    assert one["share_of_peak"] == pytest.approx(one["flops_per_s"] / one["peak_flops_per_s"])
    assert one["setting"]["compute_dtype"] == "float32"


def test_it_runs_with_a_files_weights(vitrine: Run, tiny_model: str, tiny_weights: Path) -> None:
    ran = vitrine("models", "bench", tiny_model, "--weights", tiny_weights, "--compute", "bfloat16", *QUICK)
    assert ran.code == 0, ran.err
    assert "images/s" in ran.out
    assert "bfloat16" in ran.out


def test_layout_and_compiler_change_no_token_by_much(
    vitrine: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    ran = vitrine("models", "bench", "test_vit", *QUICK, "--compile", "--channels-last", "--threads", "1", "--json")
    assert ran.code == 0, ran.err
    (one,) = ran.json["results"]
    assert one["setting"] == {"compute_dtype": "float32", "threads": 1, "channels_last": True, "compiled": True}
    assert one["least_cosine"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("null",), "model 'null' is no network"),
        (("vit_smal_patch16",), "'vit_smal_patch16' is not known"),
        (("resnet18",), "is not a plain ViT"),
        (("auto",), "model 'auto' is what a file says; give the file with --weights."),
        (("mae",), "model 'mae' is what a file says; give the file with --weights."),
        (("test_vit", "--compute", "int8"), "--compute 'int8': choose float32, bfloat16, float16."),
        (("test_vit", "--image-size", "33"), "--image-size 33 is not a multiple"),
        (("test_vit", "--device", "tpu"), "--device 'tpu': choose auto, cpu, cuda or cuda:N."),
    ],
)
def test_what_cannot_be_timed_is_wrong_usage(vitrine: Run, words: tuple[str, ...], message: str) -> None:
    ran = vitrine("models", "bench", *words)
    assert ran.code == 2
    assert message in ran.err
