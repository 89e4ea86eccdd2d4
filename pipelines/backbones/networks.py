"""The network of timm that runs a published file, built from the file's form alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from pipelines.backbones import relative_bias
from pipelines.backbones.formats import State, VitForm
from pipelines.backbones.formats.nearness import by
from pipelines.backbones.ground_distance import DEFAULT_DISTANCE_M, ScaleMaeNetwork
from pipelines.backbones.positions import RULES, position_text, resample
from pipelines.backbones.weight_files import BackboneError

_NETWORKS = {"VisionTransformer": VisionTransformer, "Beit": Beit, "Eva": Eva, "ScaleMae": ScaleMaeNetwork}
_TABLE = "relative_position_bias_table"
# Of rotary positions, which timm computes and keeps out of its state.
_PERIODS = "rope.periods"
_LAYERS = {"SwiGLUPacked": SwiGLUPacked}

# How each class is told of its tokens beside the patches.
_TOKENS: dict[str, Callable[[VitForm], dict[str, Any]]] = {
    "VisionTransformer": lambda form: {"class_token": form.class_token, "reg_tokens": form.registers},
    "Eva": lambda form: {"class_token": form.class_token, "num_reg_tokens": form.registers},
    "Beit": lambda _form: {},
    "ScaleMae": lambda _form: {"default_ground_sample_distance_m": DEFAULT_DISTANCE_M},
}


def network_arguments(form: VitForm, image_size: tuple[int, int]) -> dict[str, Any]:
    """What the network's class is called with, as the identity records it."""
    return {
        "img_size": list(image_size),
        "patch_size": form.patch,
        "embed_dim": form.width,
        "depth": form.depth,
        "num_heads": form.heads,
        "mlp_width": form.mlp_width,
        "norm_eps": form.norm_eps,
        **_TOKENS[form.network](form),
        **form.options,
    }


def build_network(form: VitForm, image_size: tuple[int, int]) -> Any:
    """The network, without a head and with random weights, in evaluation mode.

    Args:
        form: of the file.
        image_size: (height, width) of the input in pixels.

    Raises:
        BackboneError: an input that is no whole number of patches.
    """
    if any(side % form.patch or side < form.patch for side in image_size):
        height, width = (max(1, round(side / form.patch)) * form.patch for side in image_size)
        raise BackboneError(
            f"--image-size {image_size[0]}x{image_size[1]} is not a multiple of the {form.patch}-pixel patch of "
            f"{form.title}; use {height}x{width}."
        )
    arguments = network_arguments(form, image_size)
    arguments["img_size"] = image_size
    # The classes multiply and cut: half a feature more keeps the whole number.
    arguments["mlp_ratio"] = (arguments.pop("mlp_width") + 0.5) / form.width
    arguments["norm_layer"] = partial(LayerNorm, eps=arguments.pop("norm_eps"))
    arguments.pop("default_ground_sample_distance_m", None)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = _LAYERS[arguments["mlp_layer"]]
    # Without pooling the final norm is `norm`; files of models that pool before it have `fc_norm` instead.
    module = _NETWORKS[form.network](num_classes=0, **{"global_pool": "", **arguments})
    return module.eval().requires_grad_(False)


def fill_network(module: Any, state: State, form: VitForm, *, rule: str | None = None) -> None:
    """Give a network the tensors of a file, its positions brought to the network's grid.

    Args:
        module: from `build_network`.
        state: under the network's names.
        form: of the file.
        rule: how positions are resampled, a name in `positions.RULES`; None for the family's own way.
    """
    state, wanted = dict(state), grid_of(module)
    if "pos_embed" in state:
        how = RULES[_embedding_rule(form, rule)]
        state["pos_embed"] = resample(state["pos_embed"], stored=form.grid, wanted=wanted, rule=how)
    for name in state:
        if name.endswith(_TABLE):
            own = own_rule(form, rule)
            state[name] = relative_bias.resample_table(state[name], stored=form.grid, wanted=wanted, rule=own)
    periods = state.pop(_PERIODS, None)
    module.load_state_dict(state, strict=True)
    if periods is not None:
        module.rope.periods.copy_(periods)
        module.rope._cache_embed(list(wanted))


def own_rule(form: VitForm, rule: str | None) -> str:
    """The rule by which positions are resampled: the one asked for, or the family's own.

    Raises:
        BackboneError: the one asked for does not exist, or not for this family.
    """
    if rule is None or rule == form.positions:
        return form.positions
    if form.positions in relative_bias.RULES and rule == "timm":
        return relative_bias.TIMM
    if form.positions not in RULES:
        raise BackboneError(
            f"--position-embedding {rule!r} does not apply to {form.title}, whose positions are {form.positions!r}; "
            "leave it out."
        )
    if rule not in RULES:
        raise BackboneError(f"--position-embedding {rule!r} is not known; give one of {', '.join(RULES)}.")
    return rule


def _embedding_rule(form: VitForm, rule: str | None) -> str:
    """The rule for a position embedding; BEiT and SimMIM can have one beside their tables, and resample it as MAE."""
    own = own_rule(form, rule)
    if own in RULES:
        return own
    return "timm" if own == relative_bias.TIMM else "mae"


def positions_text(form: VitForm, wanted: tuple[int, int], *, rule: str | None = None) -> str:
    """How a file's positions come to a network's grid, as the identity records it.

    Args:
        form: of the file.
        wanted: (height, width) of the network's grid.
        rule: the one that was asked for; None for the family's own.
    """
    text = position_text(own_rule(form, rule), form.grid, wanted)
    if form.options.get("use_abs_pos_emb") and form.grid != wanted:
        return f"{text}; embedding {position_text(_embedding_rule(form, rule), form.grid, wanted)}"
    return text


def grid_of(module: Any) -> tuple[int, int]:
    """(height, width) of a network's patch lattice."""
    height, width = module.patch_embed.grid_size
    return int(height), int(width)


def not_floating(module: Any, state: State) -> tuple[str, ...]:
    """Names and types of tensors that are whole, complex or logical where the network has floating numbers."""
    wanted: dict[str, torch.Tensor] = module.state_dict()
    return tuple(
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in state.items()
        if (name not in wanted or wanted[name].is_floating_point()) and not tensor.is_floating_point()
    )


def misfits(module: Any, state: State) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What keeps tensors from a network, positions apart: names missing, unexpected, and of other shapes, with both."""
    wanted: dict[str, torch.Tensor] = module.state_dict()
    missing = tuple(name for name in wanted if name not in state)
    unexpected = tuple(name for name in state if name not in wanted and name != _PERIODS)
    other = tuple(
        f"{name} ({by(tensor.shape)}, the network's {by(wanted[name].shape)})"
        for name, tensor in state.items()
        if name in wanted and wanted[name].shape != tensor.shape and not name.endswith(("pos_embed", _TABLE))
    )
    return missing, unexpected, other
