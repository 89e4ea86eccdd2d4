"""Google's ViTs as NumPy archives, against timm's own reader of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from pipelines.backbones import BackboneError, load_backbone, resolve_backbone

TIMMS = "vit_tiny_patch16_224"
WIDTH, DEPTH, HEADS = 192, 12, 3


def google_vit(*, classes: int = 5) -> dict[str, Any]:
    """The arrays of google-research/vision_transformer's checkpoints, small and random."""
    draw = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)

    arrays = {
        "cls": array(1, 1, WIDTH),
        "embedding/kernel": array(16, 16, 3, WIDTH),
        "embedding/bias": array(WIDTH),
        "Transformer/posembed_input/pos_embedding": array(1, 197, WIDTH),
        "Transformer/encoder_norm/scale": array(WIDTH),
        "Transformer/encoder_norm/bias": array(WIDTH),
        "head/kernel": array(WIDTH, classes),
        "head/bias": array(classes),
    }
    for index in range(DEPTH):
        block = f"Transformer/encoderblock_{index}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}/{norm}/scale": array(WIDTH), f"{block}/{norm}/bias": array(WIDTH)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = array(WIDTH, HEADS, WIDTH // HEADS)
            arrays[f"{attention}/{part}/bias"] = array(HEADS, WIDTH // HEADS)
        arrays |= {
            f"{attention}/out/kernel": array(HEADS, WIDTH // HEADS, WIDTH),
            f"{attention}/out/bias": array(WIDTH),
        }
        arrays |= {f"{block}/MlpBlock_3/Dense_0/kernel": array(WIDTH, 4 * WIDTH)}
        arrays |= {f"{block}/MlpBlock_3/Dense_0/bias": array(4 * WIDTH)}
        arrays |= {f"{block}/MlpBlock_3/Dense_1/kernel": array(4 * WIDTH, WIDTH)}
        arrays |= {f"{block}/MlpBlock_3/Dense_1/bias": array(WIDTH)}
    return arrays


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_googles_archive_by_timms_name_is_what_timm_reads(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "Ti_16.npz"
    np.savez(path, **{f"{prefix}{name}": array for name, array in google_vit().items()})
    theirs: Any = timm.create_model(TIMMS, num_classes=0)
    theirs.load_pretrained(str(path))  # the oracle: timm's own reader
    ours = load_backbone(resolve_backbone(TIMMS, weights=path)).module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.state_dict().items())


def test_googles_archive_without_timms_name_says_what_to_give(tmp_path: Path) -> None:
    np.savez(tmp_path / "Ti_16.npz", **google_vit())
    with pytest.raises(BackboneError, match=r"classify under timm's names.*give timm's name with --model"):
        resolve_backbone("auto", weights=tmp_path / "Ti_16.npz")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"params/a": np.zeros(3)}, r"without the names of Google's ViTs: params/a; convert it"),
        ({"embedding/kernel": np.array([{}], dtype=object)}, r"not a readable checkpoint"),
        ({"embedding/kernel": np.zeros((16, 16, 3))}, r"not a readable checkpoint|do not fit"),
    ],
)
def test_other_archives_are_one_clear_error(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(BackboneError, match=said):
        load_backbone(resolve_backbone(TIMMS, weights=tmp_path / "other.npz"))


def test_a_compressed_archive_of_arrays_is_refused_unread(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"embedding/kernel": np.zeros((16, 16, 3, 10_000))}
    np.savez_compressed(tmp_path / "bomb.npz", **arrays)
    with pytest.raises(BackboneError, match=r"are a compressed NumPy archive; save it with numpy\.savez\."):
        resolve_backbone(TIMMS, weights=tmp_path / "bomb.npz")
