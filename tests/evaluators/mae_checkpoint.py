"""A MAE of `transformers` with random weights, and its tensors as the published `mae_visualize_*` files name them."""

from typing import Any

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

BLOCK_NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def random_mae(
    *, width: int = 48, decoder_width: int = 64, depth: int = 2, decoder_depth: int = 3, side: int = 64
) -> Any:
    """A MAE that masks nothing, in which every bias, norm and position matters; double precision."""
    config = ViTMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=3,
        intermediate_size=2 * width,
        image_size=side,
        patch_size=16,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_width // 32,
        decoder_intermediate_size=3 * decoder_width,
        mask_ratio=0.0,
        layer_norm_eps=1e-6,
    )
    model = ViTMAEForPreTraining(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            values = 0.3 * values + (0.0 if name.endswith("bias") else 1.0)
        elif "pos_embed" not in name and "position" not in name and "token" not in name:
            values /= parameter[0].numel() ** 0.5
        parameter.copy_(values)
    return model.double()


def published(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors as the authors of MAE name them."""
    own = model.state_dict()
    state = {
        "cls_token": own["vit.embeddings.cls_token"],
        "pos_embed": own["vit.embeddings.position_embeddings"],
        **_pair(own, "vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        **_pair(own, "vit.layernorm", "norm"),
        "mask_token": own["decoder.mask_token"],
        "decoder_pos_embed": own["decoder.decoder_pos_embed"],
    }
    for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
        state |= _pair(own, f"decoder.{name}", name)
    for theirs, ours in (("vit.layers", "blocks"), ("decoder.decoder_layers", "decoder_blocks")):
        for index in range(len({name.split(".")[2] for name in own if name.startswith(f"{theirs}.")})):
            block, place = f"{theirs}.{index}", f"{ours}.{index}"
            for name, renamed in BLOCK_NAMES.items():
                state |= _pair(own, f"{block}.{name}", f"{place}.{renamed}")
            for part in ("weight", "bias"):
                parts = [own[f"{block}.attention.{letter}_proj.{part}"] for letter in "qkv"]
                state[f"{place}.attn.qkv.{part}"] = torch.cat(parts)
    return state


def _pair(own: dict[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    return {f"{ours}.{part}": own[f"{theirs}.{part}"] for part in ("weight", "bias")}
