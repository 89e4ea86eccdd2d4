"""The decoder against `transformers`, whose MAE is the reference that is not ours."""

from typing import Any

import pytest
import torch

from evaluators.mae_decoder import (
    DecoderError,
    denormalise_pixels,
    encoder_depth,
    normalise_pixels,
    read_decoder,
    unpatchify,
)

pytest.importorskip("transformers")

from tests.evaluators.mae_checkpoint import published, random_mae

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_mae()


@pytest.fixture
def state(model: Any) -> State:
    return published(model)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_decoded_tokens_are_those_of_transformers(
    model: Any, state: State, dtype: torch.dtype, tolerance: float
) -> None:
    """Their whole model, which shuffles patches and restores their order, against ours on tokens in order."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shuffling = torch.rand(2, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = model(images, noise=shuffling)
    in_order = model.vit(images, noise=torch.arange(16.0).repeat(2, 1)).last_hidden_state.to(dtype)
    decoder = read_decoder({name: tensor.to(dtype) for name, tensor in state.items()}).to(dtype)
    if dtype == torch.float64:
        # Read in float32, as files are; the oracle's weights have more digits than that.
        for parameter, name in zip(decoder.state_dict().values(), decoder.state_dict(), strict=True):
            parameter.copy_(state[f"decoder_{name}"])
    found = decoder(in_order[:, 1:], in_order[:, 0])
    assert relative(found, wanted.logits) <= tolerance
    pictures = decoder.images(in_order[:, 1:], in_order[:, 0])
    assert relative(pictures, model.unpatchify(wanted.logits).permute(0, 2, 3, 1)) <= tolerance


def test_sizes_come_from_the_tensors(state: State) -> None:
    decoder = read_decoder(state)
    assert (decoder.n_features, decoder.grid, decoder.patch_size_px, len(decoder.blocks)) == (48, (4, 4), 16, 3)
    assert encoder_depth(state) == 2
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}


def test_pixels_of_a_patch_run_by_row_then_column_then_channel() -> None:
    values = torch.arange(6 * 2 * 2 * 3.0).reshape(1, 6, 12)
    images = unpatchify(values, (2, 3))
    assert images.shape == (1, 4, 6, 3)
    for patch in range(6):
        for row in range(2):
            for column in range(2):
                y, x = patch // 3 * 2 + row, patch % 3 * 2 + column
                first = patch * 12 + (row * 2 + column) * 3
                assert images[0, y, x].tolist() == [first, first + 1, first + 2]


def test_normalising_is_undone() -> None:
    images = torch.rand(2, 4, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(denormalise_pixels(normalise_pixels(images)), images)
    white = normalise_pixels(torch.ones(1, 1, 1, 3))
    torch.testing.assert_close(white.flatten(), torch.tensor([2.248908, 2.428571, 2.64]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fpn.fpn1.0.weight", "not MAE's but Scale-MAE's"),
        ("fcn_high.conv.weight", "not MAE's but Scale-MAE's"),
        ("mask_token_decoder", "not MAE's but Scale-MAE's"),
        ("decoder.decoder_embed.weight", "one of transformers, whose decoder is not read"),
    ],
)
def test_a_decoder_of_another_kind_is_refused_by_name(state: State, name: str, said: str) -> None:
    with pytest.raises(DecoderError, match=said):
        read_decoder({**state, name: torch.zeros(2)})


def test_a_file_without_a_decoder_is_refused_with_the_way_out(state: State) -> None:
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("decoder_")}
    with pytest.raises(DecoderError, match="only an encoder, as the mae_pretrain_"):
        read_decoder(encoder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"decoder_pred.weight": None}, "is not MAE's .no decoder_pred.weight"),
        ({"decoder_blocks.1.norm1.bias": None}, "Missing key"),
        ({"decoder_fpn.weight": torch.zeros(2)}, "Unexpected key"),
        ({"decoder_embed.weight": torch.zeros(72, 48)}, "no multiple of 32"),
        ({"decoder_embed.weight": torch.zeros(48)}, "not enough values"),
        ({"decoder_norm.weight": torch.zeros(2)}, "size mismatch"),
        ({"decoder_pos_embed": torch.zeros(1, 16, 64)}, "no square of patches"),
        ({"decoder_pred.weight": torch.zeros(700, 64), "decoder_pred.bias": torch.zeros(700)}, "no square patch"),
        ({"decoder_blocks.99999999.norm1.bias": torch.zeros(64)}, "Missing key"),
    ],
)
def test_a_decoder_of_another_kind_is_refused(state: State, change: dict[str, torch.Tensor | None], says: str) -> None:
    changed = {**state, **change}
    with pytest.raises(DecoderError, match=says):
        read_decoder({name: tensor for name, tensor in changed.items() if tensor is not None})
