"""Checkpoints with random weights under the names that their authors publish, written from the lists of those names.

Nothing here comes from the product's own conversions. Weights are such that an error shows: biases away from 0, scales
of norms and blocks away from 1, position embeddings of the size that trained ones have.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A small network in the proportions of a published one."""

    width: int = 128
    depth: int = 3
    heads: int = 2
    mlp: int = 512
    patch: int = 16
    side: int = 224

    @property
    def grid(self) -> int:
        return self.side // self.patch


class Draw:
    """Random tensors of float64, the same in every run."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def matrix(self, *shape: int) -> torch.Tensor:
        """Rows of unit gain."""
        return self.normal(*shape) / math.sqrt(math.prod(shape[1:]))

    def bias(self, n: int) -> torch.Tensor:
        return 0.3 * self.normal(n)

    def scale(self, n: int) -> torch.Tensor:
        """Between 0.3 and 1.7, for norms and layer scales."""
        return 0.3 + 1.4 * torch.rand(n, generator=self._generator, dtype=torch.float64)

    def linear(self, name: str, n_out: int, n_in: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", self.matrix(n_out, n_in)
        yield f"{name}.bias", self.bias(n_out)

    def norm(self, name: str, n: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", self.scale(n)
        yield f"{name}.bias", self.bias(n)


def pixels(height: int, width: int) -> torch.Tensor:
    """Two normalised views."""
    return Draw(9).normal(2, 3, height, width)


def embeddings(draw: Draw, size: Size, *, n_prefix: int = 1, token: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Class token, positions of waves' magnitude, and the convolution that embeds patches."""
    if token:
        yield "cls_token", 0.5 * draw.normal(1, 1, size.width)
    yield "pos_embed", 0.7 * draw.normal(1, size.grid**2 + n_prefix, size.width)
    yield "patch_embed.proj.weight", draw.matrix(size.width, 3, size.patch, size.patch)
    yield "patch_embed.proj.bias", draw.bias(size.width)


def plain_blocks(draw: Draw, size: Size, name: str = "blocks") -> Iterator[tuple[str, torch.Tensor]]:
    """Blocks under the names of MAE, DINO and many more (protocol 3.1, 3.4)."""
    for index in range(size.depth):
        block = f"{name}.{index}"
        yield from draw.norm(f"{block}.norm1", size.width)
        yield from draw.linear(f"{block}.attn.qkv", 3 * size.width, size.width)
        yield from draw.linear(f"{block}.attn.proj", size.width, size.width)
        yield from draw.norm(f"{block}.norm2", size.width)
        yield from draw.linear(f"{block}.mlp.fc1", size.mlp, size.width)
        yield from draw.linear(f"{block}.mlp.fc2", size.width, size.mlp)


def plain(size: Size, *, seed: int = 0) -> State:
    """A DINO backbone file: flat (protocol 3.4)."""
    draw = Draw(seed)
    return {
        **dict(embeddings(draw, size)),
        **dict(plain_blocks(draw, size)),
        **dict(draw.norm("norm", size.width)),
    }


def waves(size: Size) -> torch.Tensor:
    """MAE's positions: half for x, half for y, each sine then cosine; zero for the class token (protocol 3.1)."""
    quarter = size.width // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    places = torch.arange(size.grid, dtype=torch.float64)
    y, x = torch.meshgrid(places, places, indexing="ij")
    halves = [torch.outer(axis.flatten(), omega) for axis in (x, y)]
    patches = torch.cat([wave for half in halves for wave in (half.sin(), half.cos())], dim=1)
    return torch.cat([torch.zeros(1, size.width, dtype=torch.float64), patches])[None]


def mae(size: Size, *, decoder: bool = False, seed: int = 1) -> dict[str, Any]:
    """`mae_pretrain_vit_*.pth`, or with its decoder `mae_visualize_vit_*.pth` (protocol 3.1)."""
    state = {**plain(size, seed=seed), "pos_embed": waves(size)}
    if decoder:
        draw, small = Draw(seed + 1), Size(width=64, depth=2, mlp=256, patch=size.patch, side=size.side)
        state["mask_token"] = draw.normal(1, 1, small.width)
        state |= dict(draw.linear("decoder_embed", small.width, size.width))
        state["decoder_pos_embed"] = waves(small)
        state |= dict(plain_blocks(draw, small, "decoder_blocks"))
        state |= dict(draw.norm("decoder_norm", small.width))
        state |= dict(draw.linear("decoder_pred", 3 * size.patch**2, small.width))
    return {"model": state}


def dinov2(size: Size, *, registers: int = 0, gated: bool = False, seed: int = 2) -> State:
    """`dinov2_vit*14_pretrain.pth` and `..._reg4_pretrain.pth`: flat (protocol 3.5)."""
    draw = Draw(seed)
    state = {**plain(size, seed=seed), "mask_token": draw.normal(1, size.width)}
    if registers:
        state["register_tokens"] = 0.5 * draw.normal(1, registers, size.width)
    for index in range(size.depth):
        block = f"blocks.{index}"
        state[f"{block}.ls1.gamma"] = draw.scale(size.width)
        state[f"{block}.ls2.gamma"] = draw.scale(size.width)
        if gated:
            for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del state[f"{block}.mlp.{part}"]
            state |= dict(draw.linear(f"{block}.mlp.w12", 2 * size.mlp, size.width))
            state |= dict(draw.linear(f"{block}.mlp.w3", size.width, size.mlp))
    return state


def torchvision_vit(size: Size, *, seed: int = 3) -> State:
    """`vit_b_16-*.pth` (protocol 3.6)."""
    draw = Draw(seed)
    state = {
        "class_token": 0.5 * draw.normal(1, 1, size.width),
        "conv_proj.weight": draw.matrix(size.width, 3, size.patch, size.patch),
        "conv_proj.bias": draw.bias(size.width),
        "encoder.pos_embedding": 0.7 * draw.normal(1, size.grid**2 + 1, size.width),
    }
    for index in range(size.depth):
        block = f"encoder.layers.encoder_layer_{index}"
        state |= dict(draw.norm(f"{block}.ln_1", size.width))
        state[f"{block}.self_attention.in_proj_weight"] = draw.matrix(3 * size.width, size.width)
        state[f"{block}.self_attention.in_proj_bias"] = draw.bias(3 * size.width)
        state |= dict(draw.linear(f"{block}.self_attention.out_proj", size.width, size.width))
        state |= dict(draw.norm(f"{block}.ln_2", size.width))
        state |= dict(draw.linear(f"{block}.mlp.0", size.mlp, size.width))
        state |= dict(draw.linear(f"{block}.mlp.3", size.width, size.mlp))
    return {
        **state,
        **dict(draw.norm("encoder.ln", size.width)),
        **dict(draw.linear("heads.head", 10, size.width)),
    }


def relative_index(grid: int) -> torch.Tensor:
    """Which distance stands between which tokens (protocol 3.2)."""
    n, side = grid * grid, 2 * grid - 1
    index = torch.zeros(n + 1, n + 1, dtype=torch.int64)
    row, column = torch.arange(n) // grid, torch.arange(n) % grid
    index[1:, 1:] = (row[:, None] - row[None] + grid - 1) * side + (column[:, None] - column[None] + grid - 1)
    index[0], index[:, 0], index[0, 0] = side * side, side * side + 1, side * side + 2
    return index


def simmim(size: Size, *, seed: int = 4) -> State:
    """What SimMIM's pre-training checkpoint has under `model` (protocol 3.2)."""
    draw = Draw(seed)
    state = {
        "cls_token": 0.5 * draw.normal(1, 1, size.width),
        "mask_token": draw.normal(1, 1, size.width),
        "patch_embed.proj.weight": draw.matrix(size.width, 3, size.patch, size.patch),
        "patch_embed.proj.bias": draw.bias(size.width),
        "rel_pos_bias.relative_position_bias_table": draw.normal((2 * size.grid - 1) ** 2 + 3, size.heads),
        "rel_pos_bias.relative_position_index": relative_index(size.grid),
    }
    for index in range(size.depth):
        block = f"blocks.{index}"
        state[f"{block}.gamma_1"] = draw.scale(size.width)
        state[f"{block}.gamma_2"] = draw.scale(size.width)
        state |= dict(draw.norm(f"{block}.norm1", size.width))
        state[f"{block}.attn.q_bias"] = draw.bias(size.width)
        state[f"{block}.attn.v_bias"] = draw.bias(size.width)
        state[f"{block}.attn.qkv.weight"] = draw.matrix(3 * size.width, size.width)
        state |= dict(draw.linear(f"{block}.attn.proj", size.width, size.width))
        state |= dict(draw.norm(f"{block}.norm2", size.width))
        state |= dict(draw.linear(f"{block}.mlp.fc1", size.mlp, size.width))
        state |= dict(draw.linear(f"{block}.mlp.fc2", size.width, size.mlp))
    state |= dict(draw.norm("norm", size.width))
    decoder = {
        "decoder.0.weight": draw.matrix(3 * size.patch**2, size.width, 1, 1),
        "decoder.0.bias": draw.bias(3 * size.patch**2),
    }
    return {**{f"encoder.{name}": tensor for name, tensor in state.items()}, **decoder}


def simmim_finetuned(size: Size, *, seed: int = 14) -> dict[str, Any]:
    """What SimMIM's `save_checkpoint` writes after fine-tuning: BEiT's tensors, beside keys of its own."""
    beside = {"optimizer": {"state": {}}, "lr_scheduler": {"base_values": [1.25e-3]}, "max_accuracy": 83.8}
    config = {"MODEL": {"TYPE": "vit"}, "DATA": {"IMG_SIZE": size.side}}
    return {**beit(size, shared=False, seed=seed), **beside, "epoch": 99, "config": config}


def scale_mae(size: Size, *, projected: bool = False, seed: int = 5) -> dict[str, Any]:
    """`scalemae-vitlarge-800.pth`, its decoder in parts (protocol 3.3); with `--project_pos_emb` one part more."""
    content, draw = mae(size, decoder=True, seed=seed), Draw(seed)
    if projected:
        content["model"] |= dict(draw.linear("pos_emb_projection", 64, 64))
    content["model"]["mask_token_decoder"] = draw.normal(1, 1, 64)
    content["model"] |= dict(draw.linear("fpn.do_conv.0", 64, 64))
    content["model"] |= dict(draw.linear("fcn_high.0", 64, 64))
    return content


def ijepa(size: Size, *, seed: int = 6) -> dict[str, Any]:
    """I-JEPA's checkpoint: two encoders under `module.`, without a class token (protocol 3.7)."""

    def encoder(seed: int) -> State:
        draw = Draw(seed)
        state = {
            **dict(embeddings(draw, size, n_prefix=0, token=False)),
            **dict(plain_blocks(draw, size)),
            **dict(draw.norm("norm", size.width)),
        }
        return {f"module.{name}": tensor for name, tensor in state.items()}

    return {"encoder": encoder(seed), "target_encoder": encoder(seed + 1), "predictor": {}, "epoch": 300}


def beit(size: Size, *, shared: bool, absolute: bool = False, seed: int = 7) -> dict[str, Any]:
    """BEiT pre-trained (one table, `lm_head`) or fine-tuned (a table a block, `fc_norm` for `norm`).

    Args:
        size, seed: of the network.
        shared: pre-trained.
        absolute: with a position embedding beside the tables, as `--abs_pos_emb` has it.
    """
    draw = Draw(seed)
    state = {name.removeprefix("encoder."): tensor for name, tensor in simmim(size, seed=seed).items()}
    if absolute:
        state["pos_embed"] = 0.7 * draw.normal(1, size.grid**2 + 1, size.width)
    state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
    if shared:
        return {"model": {**state, **dict(draw.linear("lm_head", 32, size.width))}}
    table, index = (state.pop(f"rel_pos_bias.relative_position_{part}") for part in ("bias_table", "index"))
    del state["mask_token"]
    for block in range(size.depth):
        state[f"blocks.{block}.attn.relative_position_bias_table"] = draw.normal(*table.shape)
        state[f"blocks.{block}.attn.relative_position_index"] = index
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()}
    return {"model": {**state, **dict(draw.linear("head", 10, size.width))}}


def dinov3(size: Size, *, registers: int = 4, gated: bool = False, seed: int = 8) -> State:
    """`dinov3_vit*16_pretrain_*.pth`: no position embedding, storage tokens, biases of keys masked."""
    draw = Draw(seed)
    state = dinov2(size, gated=False, seed=seed)
    del state["pos_embed"]
    state["storage_tokens"] = 0.5 * draw.normal(1, registers, size.width)
    head = size.width // size.heads
    periods = 100.0 ** (2 * torch.arange(head // 4, dtype=torch.float64) / (head // 2))
    state["rope_embed.periods"] = periods.bfloat16().double()
    for index in range(size.depth):
        block = f"blocks.{index}"
        mask = torch.ones(3 * size.width, dtype=torch.float64)
        mask[size.width : 2 * size.width] = 0
        state[f"{block}.attn.qkv.bias_mask"] = mask
        if gated:
            for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del state[f"{block}.mlp.{part}"]
            state |= dict(draw.linear(f"{block}.mlp.w1", size.mlp, size.width))
            state |= dict(draw.linear(f"{block}.mlp.w2", size.mlp, size.width))
            state |= dict(draw.linear(f"{block}.mlp.w3", size.width, size.mlp))
    return state


def dinov3_teacher(size: Size, *, gated: bool = False) -> dict[str, Any]:
    """`eval/training_*/teacher_checkpoint.pth` of DINOv3's training: the backbone, and two heads beside it."""
    draw = Draw(15)
    state = {f"backbone.{name}": tensor for name, tensor in dinov3(size, gated=gated).items()}
    for head in ("dino_head", "ibot_head"):
        state |= dict(draw.linear(f"{head}.mlp.0", 16, size.width))
        state[f"{head}.last_layer.weight"] = draw.matrix(32, 16)
    return {"teacher": state}


def eva02(size: Size, *, seed: int = 12) -> State:
    """EVA-02 Ti and S pre-trained (baaivision/EVA): no bias of keys, SwiGLU with gate and value joined."""
    draw = Draw(seed)
    state = {**dict(embeddings(draw, size)), "mask_token": draw.normal(1, 1, size.width)}
    for index in range(size.depth):
        block = f"blocks.{index}"
        state |= dict(draw.norm(f"{block}.norm1", size.width))
        state[f"{block}.attn.qkv.weight"] = draw.matrix(3 * size.width, size.width)
        state[f"{block}.attn.q_bias"] = draw.bias(size.width)
        state[f"{block}.attn.v_bias"] = draw.bias(size.width)
        state |= dict(draw.linear(f"{block}.attn.proj", size.width, size.width))
        state |= dict(draw.norm(f"{block}.norm2", size.width))
        state |= dict(draw.linear(f"{block}.mlp.w12", 2 * size.mlp, size.width))
        state |= dict(draw.linear(f"{block}.mlp.w3", size.width, size.mlp))
    return {**state, **dict(draw.norm("norm", size.width)), **dict(draw.linear("lm_head", 8, size.width))}
