"""MAE's decoder, from the tensors of a published checkpoint: encoder tokens in, pixels out.

Key names, sizes and the order of a patch's pixels are those of the `mae_visualize_*` files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import nn

from feature_store import StoreError

PREFIX = "decoder_"
# What Scale-MAE's decoder has beside MAE's names, and how those of transformers begin.
_SCALE_MAE = ("fpn.", "fcn", "mask_token_decoder")
_TRANSFORMERS = "decoder.decoder_"
# Every published decoder has 16 heads of 32; the tensors do not say it.
_HEAD_WIDTH = 32
_NORM_EPSILON = 1e-6
# The target of the `mae_visualize_*` files: pixels normalised by the statistics of ImageNet.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class DecoderError(StoreError, ValueError):
    """A checkpoint without MAE's decoder, or with one that does not fit what is to be decoded."""


class MaeDecoder(nn.Module):
    """MAE's decoder with nothing masked: a linear map, position embedding, plain blocks, a norm, a linear map.

    Args:
        token_width: features of an encoder token.
        width: features of a decoder token.
        depth: blocks.
        hidden: features between the two layers of a block's MLP.
        n_positions: patches of a view and one for the class token.
        patch_values: pixels of a patch times three channels.
    """

    def __init__(self, token_width: int, width: int, *, depth: int, hidden: int, n_positions: int, patch_values: int):
        super().__init__()
        self.embed = nn.Linear(token_width, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, n_positions, width), requires_grad=False)
        self.blocks = nn.ModuleList([_Block(width, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.pred = nn.Linear(width, patch_values)

    @property
    def n_features(self) -> int:
        """Width of the encoder tokens that it takes."""
        return int(self.embed.in_features)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the patch lattice that it was trained on, which is square."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        return side, side

    @property
    def patch_size_px(self) -> int:
        """Side of a patch in pixels."""
        side_px: int = round((self.pred.out_features / 3) ** 0.5)
        return side_px

    def forward(
        self, patches: Float[torch.Tensor, "views patches features"], cls: Float[torch.Tensor, "views features"]
    ) -> Float[torch.Tensor, "views patches values"]:
        """Decode the encoder's last tokens, all patches in their order, after the encoder's norm.

        Returns:
            The pixels of every patch, ordered (row, column, channel), as the checkpoint was trained to give them: for
            the `mae_visualize_*` files normalised by the statistics of ImageNet.
        """
        hidden = self.embed(torch.cat([cls[:, None], patches], dim=1)) + self.pos_embed
        for block in self.blocks:
            hidden = block(hidden)
        predicted: torch.Tensor = self.pred(self.norm(hidden))[:, 1:]
        return predicted

    def images(
        self, patches: Float[torch.Tensor, "views patches features"], cls: Float[torch.Tensor, "views features"]
    ) -> Float[torch.Tensor, "views height width 3"]:
        """As `forward`, laid out as images; values are normalised as `normalise_pixels` does it, and may leave 0..1."""
        return unpatchify(self(patches, cls), self.grid)


class _Block(nn.Module):
    """A transformer block that norms first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.mlp = _Mlp(width, hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        mixed: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        views, n_tokens, width = tokens.shape
        qkv = self.qkv(tokens).reshape(views, n_tokens, 3, width // _HEAD_WIDTH, _HEAD_WIDTH)
        attended = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind())
        mixed: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(views, n_tokens, width))
        return mixed


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return mixed


def _refuse_other_decoders(state: Mapping[str, torch.Tensor]) -> None:
    """Refuse decoders that share names with MAE's, or have others, before they are taken for it or for none."""
    if any(name.startswith(_SCALE_MAE) for name in state):
        raise DecoderError(
            "the checkpoint's decoder is not MAE's but Scale-MAE's, which goes on through a pyramid; give a "
            "mae_visualize_* file."
        )
    if any(name.startswith(_TRANSFORMERS) for name in state):
        raise DecoderError(
            "the checkpoint is one of transformers, whose decoder is not read; give a mae_visualize_* file of MAE's "
            "authors, and extract with it too."
        )


def read_decoder(state: Mapping[str, torch.Tensor]) -> MaeDecoder:
    """The decoder among the tensors of a checkpoint, in float32 and evaluation mode.

    Width, depth and patch come from the tensors' shapes; heads are 32 features wide, as in every published file.

    Args:
        state: the checkpoint's tensors by name; those of the encoder are passed over.

    Raises:
        DecoderError: no decoder, or not MAE's.
    """
    _refuse_other_decoders(state)
    own = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not own:
        raise DecoderError(
            "the checkpoint has no decoder, only an encoder, as the mae_pretrain_* files do; take the file of "
            "mae_visualize_vit_base.pth's kind, which has both, and extract with it too."
        )
    try:
        width, token_width = own["embed.weight"].shape
        hidden = own["blocks.0.mlp.fc1.weight"].shape[0]
        _, n_positions, _ = own["pos_embed"].shape
        depth = len({name.split(".")[1] for name in own if name.startswith("blocks.")})
        if width % _HEAD_WIDTH:
            raise ValueError(f"its width {width} is no multiple of {_HEAD_WIDTH}")
        # On the meta device, so that nothing is allocated for shapes that a stranger's file claims.
        with torch.device("meta"):
            decoder = MaeDecoder(
                token_width,
                width,
                depth=depth,
                hidden=hidden,
                n_positions=n_positions,
                patch_values=own["pred.weight"].shape[0],
            )
        decoder.load_state_dict({name: tensor.float() for name, tensor in own.items()}, strict=True, assign=True)
        _check_square(decoder)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = f"no {PREFIX}{error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise DecoderError(
            f"the checkpoint's decoder is not MAE's ({reason}); give a mae_visualize_* file, or one that was trained "
            "with the same code."
        ) from error
    return decoder.eval().requires_grad_(False)


def _check_square(decoder: MaeDecoder) -> None:
    (side, _), patch_px = decoder.grid, decoder.patch_size_px
    if side < 1 or side * side + 1 != decoder.pos_embed.shape[1]:
        raise ValueError(f"{decoder.pos_embed.shape[1]} positions are no square of patches and a class token")
    if 3 * patch_px * patch_px != decoder.pred.out_features:
        raise ValueError(f"{decoder.pred.out_features} values are no square patch of three channels")


def encoder_depth(state: Mapping[str, torch.Tensor]) -> int:
    """How many blocks the encoder of a checkpoint has."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def unpatchify(
    values: Float[torch.Tensor, "views patches values"], grid: tuple[int, int]
) -> Float[torch.Tensor, "views height width 3"]:
    """Lay the pixels of patches, each ordered (row, column, channel), out as images."""
    height, width = grid
    side = round((values.shape[2] / 3) ** 0.5)
    tiled = values.reshape(len(values), height, width, side, side, 3).permute(0, 1, 3, 2, 4, 5)
    return tiled.reshape(len(values), height * side, width * side, 3)


def normalise_pixels(
    images: Float[torch.Tensor, "views height width 3"],
) -> Float[torch.Tensor, "views height width 3"]:
    """Images in 0..1 as the decoder is trained to give them."""
    return (images - images.new_tensor(_MEAN)) / images.new_tensor(_STD)


def denormalise_pixels(
    images: Float[torch.Tensor, "views height width 3"],
) -> Float[torch.Tensor, "views height width 3"]:
    """What `normalise_pixels` undoes: back to 0..1, which the decoder may leave."""
    return images * images.new_tensor(_STD) + images.new_tensor(_MEAN)
