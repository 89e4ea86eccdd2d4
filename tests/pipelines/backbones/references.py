"""Other people's implementations of the same models, filled with the same weights and run in float64."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from scipy.interpolate import RectBivariateSpline

from tests.pipelines.backbones.published_files import Size, State

TABLE = "encoder.rel_pos_bias.relative_position_bias_table"
# {layer: every token, prefix first}, through the final norm.
Reference = dict[int, torch.Tensor]


def split_qkv(state: State, source: str, target: str, parts: tuple[str, str, str]) -> State:
    """A joined projection as three."""
    found: State = {}
    for kind in ("weight", "bias"):
        if f"{source}.{kind}" in state:
            chunks = state[f"{source}.{kind}"].chunk(3)
            found |= {f"{target}.{part}.{kind}": chunk for part, chunk in zip(parts, chunks, strict=True)}
    return found


def transformers_vit_names(state: State, size: Size) -> State:
    """A plain ViT under the names of the folders on the hub."""
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for index in range(size.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
        found |= split_qkv(state, f"{ours}.attn.qkv", f"{theirs}.attention.attention", ("query", "key", "value"))
        for mine, other in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
        ):
            for kind in ("weight", "bias"):
                found[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
    return found


def transformers_dinov2_names(state: State, size: Size) -> State:
    """DINOv2 under the names of the folders on the hub."""
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "register_tokens" in state:
        found["embeddings.register_tokens"] = state["register_tokens"]
    renames = {
        "attn.proj": "attention.output.dense",
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    }
    for index in range(size.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
        found |= split_qkv(state, f"{ours}.attn.qkv", f"{theirs}.attention.attention", ("query", "key", "value"))
        found[f"{theirs}.layer_scale1.lambda1"] = state[f"{ours}.ls1.gamma"]
        found[f"{theirs}.layer_scale2.lambda1"] = state[f"{ours}.ls2.gamma"]
        for mine, other in renames.items():
            for kind in ("weight", "bias"):
                if f"{ours}.{mine}.{kind}" in state:
                    found[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
    return found


def transformers_beit_names(own: State, size: Size) -> State:
    """BEiT, and SimMIM's encoder without its prefix, under the names of BEiT's folders on the hub."""
    norm = "norm" if "norm.weight" in own else "fc_norm"
    found = {
        "embeddings.cls_token": own["cls_token"],
        "embeddings.patch_embeddings.projection.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patch_embed.proj.bias"],
        ("layernorm" if norm == "norm" else "pooler.layernorm") + ".weight": own[f"{norm}.weight"],
        ("layernorm" if norm == "norm" else "pooler.layernorm") + ".bias": own[f"{norm}.bias"],
    }
    if "mask_token" in own:
        found["embeddings.mask_token"] = own["mask_token"]
    table = "relative_position_bias_table"
    if f"rel_pos_bias.{table}" in own:
        found[f"encoder.relative_position_bias.{table}"] = own[f"rel_pos_bias.{table}"]
    for index in range(size.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layer.{index}"
        found |= split_qkv(own, f"{ours}.attn.qkv", f"{theirs}.attention.attention", ("query", "key", "value"))
        if f"{ours}.attn.{table}" in own:
            found[f"{theirs}.attention.attention.relative_position_bias.{table}"] = own[f"{ours}.attn.{table}"]
        found[f"{theirs}.attention.attention.query.bias"] = own[f"{ours}.attn.q_bias"]
        found[f"{theirs}.attention.attention.value.bias"] = own[f"{ours}.attn.v_bias"]
        found[f"{theirs}.lambda_1"], found[f"{theirs}.lambda_2"] = own[f"{ours}.gamma_1"], own[f"{ours}.gamma_2"]
        for mine, other in (
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
        ):
            for kind in ("weight", "bias"):
                found[f"{theirs}.{other}.{kind}"] = own[f"{ours}.{mine}.{kind}"]
    return found


def transformers_dinov3_names(state: State, size: Size) -> State:
    """DINOv3 under the names of the folders on the hub; keys have no bias there."""
    found = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"][None],
        "embeddings.register_tokens": state["storage_tokens"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": state["patch_embed.proj.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    renames = {
        "attn.proj": "attention.o_proj",
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
        "mlp.w1": "mlp.gate_proj",
        "mlp.w2": "mlp.up_proj",
        "mlp.w3": "mlp.down_proj",
    }
    for index in range(size.depth):
        ours, theirs = f"blocks.{index}", f"layer.{index}"
        found |= split_qkv(state, f"{ours}.attn.qkv", f"{theirs}.attention", ("q_proj", "k_proj", "v_proj"))
        del found[f"{theirs}.attention.k_proj.bias"]
        found[f"{theirs}.layer_scale1.lambda1"] = state[f"{ours}.ls1.gamma"]
        found[f"{theirs}.layer_scale2.lambda1"] = state[f"{ours}.ls2.gamma"]
        for mine, other in renames.items():
            for kind in ("weight", "bias"):
                if f"{ours}.{mine}.{kind}" in state:
                    found[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
    return found


def openai_clip_names(state: State, size: Size) -> State:
    """A plain ViT with a norm before its blocks as OpenAI and OpenCLIP name it, with parts of the text tower."""
    found = {
        "visual.class_embedding": state["cls_token"].flatten(),
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
        "visual.proj": torch.ones(size.width, 8, dtype=torch.float64),
        "transformer.resblocks.0.ln_1.weight": torch.ones(8, dtype=torch.float64),
        "token_embedding.weight": torch.ones(8, 8, dtype=torch.float64),
        "logit_scale": torch.ones(1, dtype=torch.float64),
    }
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = state[f"norm_pre.{kind}"]
        found[f"visual.ln_post.{kind}"] = state[f"norm.{kind}"]
        for index in range(size.depth):
            ours, theirs = f"blocks.{index}", f"visual.transformer.resblocks.{index}"
            found[f"{theirs}.ln_1.{kind}"] = state[f"{ours}.norm1.{kind}"]
            found[f"{theirs}.ln_2.{kind}"] = state[f"{ours}.norm2.{kind}"]
            found[f"{theirs}.attn.in_proj_{kind}"] = state[f"{ours}.attn.qkv.{kind}"]
            found[f"{theirs}.attn.out_proj.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            found[f"{theirs}.mlp.c_fc.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            found[f"{theirs}.mlp.c_proj.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
    return found


def transformers_tower_names(state: State, size: Size) -> State:
    """The image tower of CLIP (with `norm_pre`) or SigLIP under the names of the folders on the hub."""
    found = {
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
    }
    if "cls_token" in state:
        found["embeddings.class_embedding"] = state["cls_token"].flatten()
    if "norm_pre.weight" not in state:
        found["embeddings.patch_embedding.bias"] = state["patch_embed.proj.bias"]
    for kind in ("weight", "bias"):
        if f"norm_pre.{kind}" in state:
            found[f"pre_layrnorm.{kind}"] = state[f"norm_pre.{kind}"]
        found[f"post_layernorm.{kind}"] = state[f"norm.{kind}"]
    for index in range(size.depth):
        ours, theirs = f"blocks.{index}", f"encoder.layers.{index}"
        found |= split_qkv(state, f"{ours}.attn.qkv", f"{theirs}.self_attn", ("q_proj", "k_proj", "v_proj"))
        for mine, other in (
            ("attn.proj", "self_attn.out_proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
            ("norm1", "layer_norm1"),
            ("norm2", "layer_norm2"),
        ):
            for kind in ("weight", "bias"):
                found[f"{theirs}.{other}.{kind}"] = state[f"{ours}.{mine}.{kind}"]
    return {f"vision_model.{name}": tensor for name, tensor in found.items()}


def config(size: Size, **others: Any) -> dict[str, Any]:
    """What config.json says of the size."""
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": size.mlp,
        "patch_size": size.patch,
        "image_size": size.side,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        **others,
    }


def transformers_folder(folder: Path, state: State, settings: Mapping[str, Any], architecture: str) -> Path:
    """A folder as on the hub."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**settings, "architectures": [architecture]}))
    contiguous = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def transformers_model(
    folder: Path, state: State, settings: Mapping[str, Any], architecture: str, **arguments: Any
) -> Any:
    """transformers' own model of a folder, in float64, with every tensor of the folder in it and none made up."""
    transformers_folder(folder, state, settings, architecture)
    # Its explicit attention takes the softmax in float32; torch's own stays in float64.
    model, told = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="sdpa", output_loading_info=True, **arguments
    )
    assert not told["missing_keys"], told
    assert not told["unexpected_keys"], told
    return model.eval()


@torch.inference_mode()
def transformers_tokens(model: Any, inputs: torch.Tensor, norm: Any, **arguments: Any) -> Reference:
    """Tokens after every block through the final norm."""
    states = model(pixel_values=inputs, output_hidden_states=True, **arguments).hidden_states
    return {layer: norm(states[layer]) for layer in range(1, len(states))}


def final_norm(model: Any) -> Any:
    """Where a model of transformers keeps the norm behind its blocks."""
    inner = getattr(model, "vision_model", model)
    return next(getattr(inner, name) for name in ("layernorm", "post_layernorm", "norm") if hasattr(inner, name))


@torch.inference_mode()
def hooked_tokens(model: Any, blocks: Iterable[Any], inputs: torch.Tensor, norm: Any) -> Reference:
    """As `transformers_tokens`, from any model; its blocks are observed."""
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _block, _in, out: seen.append(out)) for block in blocks]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return {layer: norm(tokens) for layer, tokens in enumerate(seen, 1)}


def replace_positions(model: Any, resample: Callable[[torch.Tensor, int, int], torch.Tensor]) -> None:
    """Give a model of transformers the position embedding that the original code would make.

    Args:
        model: with `embeddings.interpolate_pos_encoding`.
        resample: (position embedding, height, width in patches) -> position embedding.
    """
    embeddings, patch = model.embeddings, model.config.patch_size

    def interpolate(_tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return resample(embeddings.position_embeddings, height // patch, width // patch)

    embeddings.interpolate_pos_encoding = interpolate


class FileRotation(torch.nn.Module):
    """DINOv3's rotary angles (facebookresearch/dinov3, RopePositionEmbedding, coordinates by axis), transcribed.

    With the file's periods, which transformers computes anew; coordinates in float32 as there, the rest in float64.
    """

    def __init__(self, patch: int, periods: torch.Tensor) -> None:
        super().__init__()
        self._patch, self._periods = patch, periods

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = [torch.arange(0.5, side // self._patch) / (side // self._patch) for side in pixels.shape[-2:]]
        coordinates = 2.0 * torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 1) - 1.0
        coordinates = coordinates.double()
        angles = 2 * math.pi * coordinates[:, :, None] / self._periods[None, None]
        angles = angles.flatten(1, 2).tile(2)
        return angles.cos(), angles.sin()


def dino_positions(pos_embed: torch.Tensor, h0: float, w0: float) -> torch.Tensor:
    """facebookresearch/dino @7c446df and dinov2 @b8931f7 without registers: interpolate_pos_encoding, transcribed."""
    n = pos_embed.shape[1] - 1
    side = math.isqrt(n)
    if (h0, w0) == (side, side):
        return pos_embed
    dim = pos_embed.shape[-1]
    h0, w0 = h0 + 0.1, w0 + 0.1
    patches = torch.nn.functional.interpolate(
        pos_embed[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2),
        scale_factor=(h0 / math.sqrt(n), w0 / math.sqrt(n)),
        mode="bicubic",
    )
    assert (int(h0), int(w0)) == tuple(patches.shape[-2:])
    return torch.cat((pos_embed[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, dim)), dim=1)


def register_positions(pos_embed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """facebookresearch/dinov2 with registers (offset 0.0, antialias): interpolate_pos_encoding, transcribed."""
    side, dim = math.isqrt(pos_embed.shape[1] - 1), pos_embed.shape[-1]
    if (height, width) == (side, side):
        return pos_embed
    patches = torch.nn.functional.interpolate(
        pos_embed[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2),
        size=(height, width),
        mode="bicubic",
        antialias=True,
    )
    return torch.cat((pos_embed[:, :1], patches.permute(0, 2, 3, 1).reshape(1, -1, dim)), dim=1)


def ground_positions(distances_m: torch.Tensor, grid: int, width: int) -> torch.Tensor:
    """Scale-MAE @89280d8 and torchgeo: get_2d_sincos_pos_embed_with_resolution, transcribed."""
    places = torch.arange(grid, dtype=torch.float64)
    lattice = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=0)
    lattice = torch.einsum("chw,n->cnhw", lattice, distances_m)
    halves = []
    for axis in lattice:
        omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4.0))
        out = torch.einsum("m,d->md", axis.reshape(-1), omega)
        halves.append(torch.cat([torch.sin(out), torch.cos(out)], dim=1))
    embedding = torch.cat(halves, dim=1).reshape(len(distances_m), grid * grid, width)
    return torch.cat([torch.zeros(len(distances_m), 1, width, dtype=torch.float64), embedding], dim=1)


def simmim_table(table: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """SimMIM @0e71746, remap_pretrained_keys_vit, transcribed; its `interp2d` is now another spline of scipy's."""
    extra, heads = table[-3:], table.shape[1]
    src_size, dst_size = 2 * source - 1, 2 * target - 1
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2.0
        gp = (1.0 - q ** (src_size // 2)) / (1.0 - q)
        if gp > dst_size // 2:
            right = q
        else:
            left = q
    dis, cur = [], 1.0
    for i in range(src_size // 2):
        dis.append(cur)
        cur += q ** (i + 1)
    x = [-d for d in reversed(dis)] + [0.0, *dis]
    t = dst_size // 2.0
    dx = np.arange(-t, t + 0.1, 1.0)
    columns = []
    for head in range(heads):
        z = table[:-3, head].reshape(src_size, src_size).numpy()
        columns.append(torch.from_numpy(RectBivariateSpline(x, x, z)(dx, dx)).reshape(-1, 1))
    return torch.cat([torch.cat(columns, dim=1), extra])


def eva02_tokens(state: State, inputs: torch.Tensor, size: Size) -> Reference:
    """EVA-02's forward pass (baaivision/EVA, modeling_finetune.py), transcribed; positions rotate on a 16 x 16 grid."""
    norm, linear = torch.nn.functional.layer_norm, torch.nn.functional.linear

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = x.unflatten(-1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
        patches = x[:, :, 1:] * angles.cos() + turned[:, :, 1:] * angles.sin()
        return torch.cat([x[:, :, :1], patches], dim=2)

    embedding = (state["patch_embed.proj.weight"], state["patch_embed.proj.bias"])
    x = torch.nn.functional.conv2d(inputs, *embedding, stride=size.patch)
    quarter = size.width // size.heads // 4
    frequencies = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    places = torch.outer(torch.arange(size.grid, dtype=torch.float64) / size.grid * 16, frequencies)
    places = places.repeat_interleave(2, dim=1)
    rows, columns = places[:, None].expand(-1, size.grid, -1), places[None].expand(size.grid, -1, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + state["pos_embed"]
    found: Reference = {}
    for index in range(size.depth):
        block = f"blocks.{index}"
        query_bias, value_bias = state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"]
        bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
        joined = linear(normed(x, f"{block}.norm1"), state[f"{block}.attn.qkv.weight"], bias)
        q, k, v = (part.unflatten(-1, (size.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        weights = (rotated(q) @ rotated(k).transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + dense((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        gate, value = dense(normed(x, f"{block}.norm2"), f"{block}.mlp.w12").chunk(2, dim=-1)
        x = x + dense(torch.nn.functional.silu(gate) * value, f"{block}.mlp.w3")
        found[index + 1] = normed(x, "norm")
    return found
