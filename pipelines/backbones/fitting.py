"""A checkpoint's tensors into a model: converted as timm converts them, and held to fit exactly."""

import math
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from pipelines.backbones.checkpoint import read_checkpoint, read_state
from pipelines.backbones.formats.nearness import by
from pipelines.backbones.networks import not_floating
from pipelines.backbones.positions import RULES, Rule, position_text, resample
from pipelines.backbones.weight_files import BackboneError

# What a checkpoint may hold beyond the frozen backbone: heads, and the parts that only pre-training uses.
_SURPLUS_PREFIXES = ("head.", "head_dist.", "fc_norm.", "decoder_", "mask_token", "projection_head.", "proj_head.")
# FlexiViT and RADIO are the two of timm whose position embedding is resampled in other ways than the rest.
_FLEXIBLE, _RADIO = "flexivit", "radio"
_AS_STORED, _TIMM = "as stored", "timm"
_REASON_CHARACTERS = 200
_IMAGE_CHANNELS = 3
_OF_CLIP = "class_embedding"
# As OpenAI names it, whose files timm renames.
_OF_OPENAI = "positional_embedding"
_State = dict[str, torch.Tensor]


def load_weights(
    module: Any, weights: Path, architecture: str, *, rule: str | None = None, network: str | None = None
) -> str:
    """Fill a model with a checkpoint.

    Args:
        module: from `build_module`.
        weights: the checkpoint file.
        architecture: timm's name, for errors.
        rule: how the position embedding is resampled, a name in `positions.RULES`; None for timm's own way.
        network: which network of the file, by its name; None where it holds one.

    Returns:
        How the position embedding came to the model's size, as the identity records it.

    Raises:
        BackboneError: the file cannot be read, or lacks a tensor, has another, or one of another shape.
    """
    state = _without_decoder(read_state(weights, network=network))
    _require_same_patch(module, state, weights, architecture)
    position_embedding = _resampling(module, state, architecture, rule)
    try:
        converted = _convert(module, state, architecture)
        has_embedding = "pos_embed" in state and getattr(module, "pos_embed", None) is not None
        if has_embedding and position_embedding != _AS_STORED and _FLEXIBLE not in architecture:
            # timm's own rule too: a file then has the same tokens by timm's name and by its family's.
            converted["pos_embed"] = _resampled(module, state["pos_embed"], RULES[rule or _TIMM])
        wanted = module.state_dict()
        kept = {name: value for name, value in converted.items() if name in wanted}
        problems = _problems(module, converted, wanted)
        if not problems:
            module.load_state_dict(kept, strict=True)
    except (RuntimeError, KeyError, ValueError, IndexError, AttributeError, TypeError, AssertionError) as error:
        reason = textwrap.shorten(" ".join(str(error).split()), _REASON_CHARACTERS, placeholder=" ...")
        raise BackboneError(f"weights {weights} do not fit {architecture!r} ({reason}).") from error
    if problems:
        raise BackboneError(f"weights {weights} do not fit {architecture!r}: {problems}")
    return position_embedding


def embedding_resampling(
    module: Any, weights: Path, architecture: str, *, rule: str | None = None, network: str | None = None
) -> str:
    """What `load_weights` would return, from the names and shapes in the checkpoint alone.

    Args:
        module: from `build_module`; may be on the meta device.
        weights: the checkpoint file.
        architecture: timm's name.
        rule, network: see `load_weights`.

    Raises:
        BackboneError: the file is no checkpoint, or its patches have another size.
    """
    shapes = _without_decoder(read_checkpoint(weights, device="meta", network=network).tensors)
    _require_same_patch(module, shapes, weights, architecture)
    return _resampling(module, shapes, architecture, rule)


def _problems(module: Any, converted: _State, wanted: _State) -> str:
    """What keeps tensors from a model, in sentences with the way out; empty where all fit."""
    missing = sorted(set(wanted) - set(converted))
    surplus = [n for n in converted if n not in wanted and not n.startswith(_SURPLUS_PREFIXES)]
    if missing or surplus:
        told = [
            f"{len(names)} tensors {what}, {', '.join(map(repr, names[:3]))}{' ...' if names[3:] else ''}"
            for names, what in ((missing, "missing"), (surplus, "unexpected"))
            if names
        ]
        return f"{'; '.join(told)}. Name the architecture that the file was saved from."
    kept = {name: value for name, value in converted.items() if name in wanted}
    if other_types := not_floating(module, kept):
        return (
            f"{len(other_types)} tensors whose numbers are of a type that is not supported, not floating: "
            f"{list(other_types[:3])}; save them in float32, float16 or bfloat16."
        )
    other_shapes = [
        f"{name} ({by(value.shape)}, the model's {by(wanted[name].shape)})"
        for name, value in kept.items()
        if value.shape != wanted[name].shape
    ]
    if not other_shapes:
        return ""
    return f"{len(other_shapes)} tensors of other shapes {other_shapes[:3]}. {_way_out(converted)}"


def _way_out(converted: _State) -> str:
    embedding = converted.get("patch_embed.proj.weight")
    if embedding is None or embedding.ndim < len(("out", "in")) or embedding.shape[1] == _IMAGE_CHANNELS:
        return "Name the architecture that the file was saved from."
    return f"Images have {_IMAGE_CHANNELS} channels here; a model of {embedding.shape[1]} cannot see them."


def _without_decoder(state: _State) -> _State:
    # timm takes every checkpoint with a mask token for DINOv2; MAE's belongs to the decoder, which is not used.
    if any(name.startswith("decoder_") for name in state):
        return {name: value for name, value in state.items() if not name.startswith(("decoder_", "mask_token"))}
    return state


def _convert(module: Any, state: _State, architecture: str) -> _State:
    """Names and sizes as the model has them, by the conversion that timm registers for the model's family."""
    if isinstance(module, VisionTransformer) and _OF_CLIP in state:
        state = {f"visual.{name}": value for name, value in state.items()}  # as timm knows CLIP's towers
    convert = sys.modules[type(module).__module__].__dict__["checkpoint_filter_fn"]
    arguments: dict[str, Any] = {}
    if isinstance(module, VisionTransformer):
        arguments["adapt_layer_scale"] = True  # timm asks for it for DeiT III alone; no other file has such names
        if _FLEXIBLE in architecture:
            arguments.update(interpolation="bilinear", antialias=False)
    with warnings.catch_warnings():
        # Torch dislikes how timm resamples relative positions; nobody who extracts can change that.
        warnings.filterwarnings("ignore", category=UserWarning, module="timm")
        converted: _State = convert(dict(state), module, **arguments)
    return converted


def _require_same_patch(module: Any, state: _State, weights: Path, architecture: str) -> None:
    """Refuse another patch size: timm would resample the patch embedding without a word."""
    own = tuple(module.patch_embed.proj.weight.shape[2:])
    for name, value in state.items():
        if name.endswith("patch_embed.proj.weight") and value.ndim == 4 and tuple(value.shape[2:]) != own:
            height, width = value.shape[2:]
            raise BackboneError(
                f"weights {weights} do not fit {architecture!r}: their patches are {height} x {width} pixels, the "
                f"model's {own[0]} x {own[1]}. Name the architecture that the file was saved from."
            )


def _resampled(module: Any, stored: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Positions by a rule that was asked for, instead of timm's; models with registers keep those of patches alone."""
    grid = _stored_grid(module, stored.shape[1])
    if grid is None:
        raise ValueError(f"{stored.shape[1]} stored positions are no square of patches with the model's prefix tokens")
    resampled = resample(stored, stored=grid, wanted=tuple(module.patch_embed.grid_size), rule=rule)
    return resampled[:, -module.pos_embed.shape[1] :]


def _stored_grid(module: Any, n_stored: int) -> tuple[int, int] | None:
    """The (height, width) of the grid that a file's positions are of, from their number; None where it has none.

    A file does not say the grid. It is that of the model's own input, or a square, as timm takes it; where the number
    is neither, the file was saved at another size, and if it has as many positions as the model, at the model's.
    """
    wanted = tuple(module.patch_embed.grid_size)
    own_size = module.pretrained_cfg["input_size"][-2:]
    own = tuple(side // patch for side, patch in zip(own_size, module.patch_embed.patch_size, strict=True))
    in_model = int(module.pos_embed.shape[1]) - wanted[0] * wanted[1]
    # The class token's place may be stored or not, the registers' likewise; the model's own way is the likeliest.
    for n_prefix in dict.fromkeys((in_model, 1, int(module.num_prefix_tokens), 0)):
        n_patches = n_stored - n_prefix
        side = math.isqrt(max(n_patches, 0))
        for grid in (own, (side, side)):
            if n_patches > 0 and grid[0] * grid[1] == n_patches:
                return grid
        if n_prefix == in_model and wanted[0] * wanted[1] == n_patches:
            return wanted
    return None


def _resampling(module: Any, state: _State, architecture: str, rule: str | None) -> str:
    height, width = module.patch_embed.grid_size
    stored, own = state.get("pos_embed"), getattr(module, "pos_embed", None)
    if rule is not None and (rule not in RULES or stored is None or own is None):
        raise BackboneError(
            f"--position-embedding {rule!r} does not apply to {architecture!r}; the rules are {', '.join(RULES)}, for "
            "models that store an embedding."
        )
    # As OpenAI names it, whose files timm renames.
    stored = state.get(_OF_OPENAI) if stored is None else stored
    if stored is None or own is None:
        wanted = module.state_dict()
        tables = [name for name in state if name.endswith("relative_position_bias_table") and name in wanted]
        if any(state[name].shape != wanted[name].shape for name in tables):
            return f"relative bias resampled to {height}x{width} (timm)"
        return _AS_STORED if tables else "none stored"
    n_stored = int(stored.shape[-2])
    grid = _stored_grid(module, n_stored)
    if grid == (height, width):
        return _AS_STORED
    if _RADIO in architecture:
        raise BackboneError(
            f"model {architecture!r} resamples its position embedding in a way of its own, which is not supported; "
            "leave --image-size out."
        )
    if grid is None:
        raise BackboneError(
            f"the weights do not fit {architecture!r}: the {n_stored} positions that they store are no square of "
            f"patches with the model's prefix tokens, and not the {height} x {width} patches of its input; give "
            "--image-size HEIGHTxWIDTH as it was when the file was saved."
        )
    if rule is not None:
        return position_text(rule, grid, (height, width))
    how = "bilinear without antialias" if _FLEXIBLE in architecture else "bicubic with antialias"
    return f"{how} from {grid[0]}x{grid[1]} to {height}x{width} (timm)"
