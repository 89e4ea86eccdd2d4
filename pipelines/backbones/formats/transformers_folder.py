"""Folders of transformers: config.json says what the tensors are, under names of transformers' own."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.backbones.formats import evaluation
from pipelines.backbones.formats.evaluation import Evaluation
from pipelines.backbones.formats.form import (
    KeyFormat,
    Network,
    Published,
    State,
    UnsupportedFormError,
    VitForm,
    count_blocks,
    pooling,
    size_name,
    whole,
)
from pipelines.backbones.normalisation import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LEAST_MEAN,
    LEAST_STD,
    MOST,
)

PREFIX = "hf-"
_ACTIVATIONS = {"gelu": None, "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# As Pillow numbers its filters; config files have the number.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_BICUBIC = 3
# What brings bytes to 0..1, as transformers multiplies them.
_RESCALE = 1 / 255
# DINOv3's S+, L+ and H+ have a gated perceptron, as its 7B, which has no plus in its name.
_WITH_PLUS = (384, 1024, 1280)
# Where no preprocessor_config.json stands, and the authors publish no evaluation.
_WHOLE = Evaluation(source="", share=1.0)
_TOWERS = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)
_EMBEDDINGS = (
    (r"^(?:vit|beit|dinov2|dinov2_with_registers|ijepa|model)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:pooler\.)?layernorm\.", "norm."),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^(?:encoder\.)?layer\.(\d+)\.", r"blocks.\1."),
)
_BLOCKS = (
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
_SCALES = (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma")
_LEFT_OUT = (
    "embeddings.mask_token",
    "embeddings.position_ids",
    "pooler.dense.",
    "classifier.",
    "lm_head.",
    "head.",
    "decoder.",
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_",
)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What holds for one `model_type` beside its config."""

    title: str
    network: Network = "VisionTransformer"
    positions: str = "transformers"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    evaluation: Evaluation = _WHOLE
    norm_eps: float
    class_token: bool = True
    activation: str = "gelu"
    patch: int = 16
    registers: int | None = None
    renames: Sequence[tuple[str, str]] = (*_EMBEDDINGS, *_BLOCKS)
    options: Callable[[Mapping[str, Any]], dict[str, Any]] = field(default=lambda _config: {})


def _dinov2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    gated = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"} if config.get("use_swiglu_ffn") else {}
    registers = {"no_embed_class": True} if config.get("model_type") == "dinov2_with_registers" else {}
    return {"init_values": 1.0, **registers, **gated}


def _beit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "use_abs_pos_emb": bool(config.get("use_absolute_position_embeddings")),
        "use_rel_pos_bias": bool(config.get("use_relative_position_bias")),
        "use_shared_rel_pos_bias": bool(config.get("use_shared_relative_position_bias")),
        **({"init_values": 1.0} if _number(config, "layer_scale_init_value", 0.1) > 0 else {}),
    }


def _dinov3_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "qkv_bias": bool(config.get("query_bias", True)),
        "init_values": 1.0,
        "rope_type": "dinov3",
        "rope_temperature": _positive(config, "rope_theta", 100.0),
        "rope_rotate_half": True,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        **({"swiglu_mlp": True, "swiglu_align_to": 8} if config.get("use_gated_mlp") else {}),
    }


_DINOV3_RENAMES = (
    *_EMBEDDINGS,
    *_BLOCKS,
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
# Fine-tuned with mean pooling, the norm is that of the mean.
_POOLED = (r"^(?:beit\.)?pooler\.layernorm\.", "fc_norm.")
_BEIT_RENAMES = (_POOLED, *_EMBEDDINGS, *_BLOCKS, (r"\.lambda_([12])$", r".gamma_\1"))
_DINOV2_RENAMES = (*_EMBEDDINGS, *_BLOCKS, _SCALES)
# The defaults are those of transformers' own configurations, which config.json leaves out where they hold.
_KINDS = {
    "vit": _Kind(title="ViT", mean=HALF, std=HALF, norm_eps=1e-12),
    "vit_mae": _Kind(title="MAE", evaluation=evaluation.MAE, norm_eps=1e-12),
    "ijepa": _Kind(title="I-JEPA", norm_eps=1e-6, class_token=False),
    "dinov2": _Kind(
        title="DINOv2",
        evaluation=evaluation.DINOV2,
        norm_eps=1e-6,
        patch=14,
        renames=_DINOV2_RENAMES,
        options=_dinov2_options,
    ),
    "dinov2_with_registers": _Kind(
        title="DINOv2",
        positions="dinov2-registers",
        evaluation=evaluation.DINOV2,
        norm_eps=1e-6,
        patch=14,
        registers=4,
        renames=_DINOV2_RENAMES,
        options=_dinov2_options,
    ),
    "dinov3_vit": _Kind(
        title="DINOv3",
        network="Eva",
        positions="rotary",
        evaluation=evaluation.DINOV3,
        norm_eps=1e-5,
        registers=0,
        renames=_DINOV3_RENAMES,
        options=_dinov3_options,
    ),
    "beit": _Kind(
        title="BEiT",
        network="Beit",
        positions="relative-bias-transformers",
        evaluation=evaluation.BEIT,
        mean=HALF,
        std=HALF,
        norm_eps=1e-12,
        renames=_BEIT_RENAMES,
        options=_beit_options,
    ),
    "clip": _Kind(
        title="CLIP",
        evaluation=evaluation.CLIP,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        norm_eps=1e-5,
        activation="quick_gelu",
        patch=32,
        renames=_TOWERS,
        options=lambda _config: {"pre_norm": True},
    ),
    "siglip": _Kind(
        title="SigLIP",
        mean=HALF,
        std=HALF,
        norm_eps=1e-6,
        class_token=False,
        activation="gelu_pytorch_tanh",
        renames=_TOWERS,
    ),
}
MODEL_TYPES = tuple(_KINDS)
_VALUE_CHARACTERS = 40
# By config.json, in which what is left out has a value by transformers' own rule.
_SAID = frozenset({"num_heads", "act_layer", "norm_eps", "rope_temperature"})
_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def _read(model_type: str, kind: _Kind) -> Callable[[Published], VitForm | None]:
    def read(published: Published) -> VitForm | None:
        config, blocks = _settings(published.config), _renamed(published, kind)
        width, depth, heads = (_whole(config, name, default) for name, default in _SIZES.items())
        patch, side = _whole(config, "patch_size", kind.patch), _whole(config, "image_size", 224)
        _check_sizes(config, blocks, width=width, depth=depth, heads=heads)
        grid = (side // patch, side // patch)
        plus = kind.network == "Eva" and bool(config.get("use_gated_mlp")) and width in _WITH_PLUS
        _check_positions(blocks, kind, grid, side)
        return VitForm(
            family=f"{PREFIX}{model_type.replace('_', '-')}",
            title=f"{kind.title} {size_name(width, patch, plus=plus)} of transformers",
            network=kind.network,
            width=width,
            depth=depth,
            heads=heads,
            mlp_width=_mlp_width(blocks),
            patch=patch,
            plus=plus,
            grid=grid,
            registers=_registers(config, kind),
            class_token=kind.class_token,
            norm_eps=_positive(config, "layer_norm_eps", kind.norm_eps),
            options={**_activation(config, kind), **kind.options(config), **pooling(blocks)},
            positions=kind.positions,
            **_preprocessing(published.preprocessor, kind),
            said=_SAID | _said_of_values(published.preprocessor),
        )

    return read


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the image tower, which has a part of its own where there is a text tower too."""
    tower = config.get("vision_config", {})
    if not isinstance(tower, Mapping):
        raise UnsupportedFormError(f"config.json says vision_config {_shown(tower)}; an object is needed")
    return {**config, **tower}


def _whole(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if not (number := whole(value)):
        raise UnsupportedFormError(f"config.json says {name} {_shown(value)}; a positive whole number is needed")
    return number


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise UnsupportedFormError(f"config.json says {name} {_shown(value)}; a number is needed")
    return float(value)


def _positive(config: Mapping[str, Any], name: str, default: float) -> float:
    value = _number(config, name, default)
    if value <= 0:
        raise UnsupportedFormError(f"config.json says {name} {_shown(config[name])}; a number above 0 is needed")
    return value


def _registers(config: Mapping[str, Any], kind: _Kind) -> int:
    """How many register tokens there are; DINOv3's may have none."""
    name = "num_register_tokens"
    if kind.registers is None or (kind.registers == 0 and config.get(name, 0) == 0):
        return 0
    return _whole(config, name, kind.registers)


def _activation(config: Mapping[str, Any], kind: _Kind) -> dict[str, str]:
    """The network's argument for what config.json calls `hidden_act`."""
    said = config.get("hidden_act", kind.activation)
    # The gate of DINOv3 goes through it, and timm's through SiLU; that of DINOv2 always goes through SiLU.
    gated = kind.network == "Eva" and bool(config.get("use_gated_mlp"))
    supported = {"silu": None} if gated else _ACTIVATIONS
    if not isinstance(said, str) or said not in supported:
        raise UnsupportedFormError(
            f"config.json says hidden_act {_shown(said)}, which is not one of {', '.join(supported)}"
        )
    return {"act_layer": name} if (name := supported[said]) else {}


def _check_sizes(config: Mapping[str, Any], blocks: Published, *, width: int, depth: int, heads: int) -> None:
    """Refuse sizes that contradict one another or the file."""
    if width % heads:
        raise UnsupportedFormError(
            f"config.json says num_attention_heads {_shown(config.get('num_attention_heads', heads))}, which does not "
            f"divide hidden_size {width}"
        )
    found = count_blocks(blocks)
    if depth != found:
        raise UnsupportedFormError(f"config.json says num_hidden_layers {depth}, and the file holds {found} blocks")


def _check_positions(blocks: Published, kind: _Kind, grid: tuple[int, int], side: int) -> None:
    """Refuse an input whose patches are not as many as the positions that the file stores."""
    height, width = grid
    distances = (2 * height - 1) * (2 * width - 1) + len(("to the class token", "from it", "to itself"))
    for name, shape in blocks.shapes.items():
        if name.endswith(".relative_position_bias_table") and shape[:1] != (distances,):
            raise UnsupportedFormError(
                f"config.json says image_size {side}, which needs {distances} relative positions, and the file stores "
                f"{list(shape)} in {name!r}"
            )
    table = blocks.shapes.get("pos_embed")
    wanted = grid[0] * grid[1] + kind.class_token
    if table is not None and len(table) > 1 and table[-2] != wanted:
        raise UnsupportedFormError(
            f"config.json says image_size {side}, which needs {wanted} positions, and the file stores {table[-2]}"
        )


def _shown(value: object) -> str:
    return repr(value)[:_VALUE_CHARACTERS]


def _renamed(published: Published, kind: _Kind) -> Published:
    """The shapes under the network's names."""
    shapes = {}
    for name, shape in published.shapes.items():
        renamed = name
        for pattern, replacement in kind.renames:
            renamed = re.sub(pattern, replacement, renamed)
        shapes[renamed] = shape
    return Published(shapes=shapes)


def _mlp_width(blocks: Published) -> int:
    """From the shapes: some configurations have a ratio instead, and round what comes of it."""
    for name, shape in blocks.shapes.items():
        if re.fullmatch(r"blocks\.0\.mlp\.fc1(_x)?\.weight", name) and len(shape) == len(("out", "in")):
            return shape[0]
    raise UnsupportedFormError("the file holds no perceptron in its first block")


def _preprocessing(said: Mapping[str, Any], kind: _Kind) -> dict[str, Any]:
    """What preprocessor_config.json says, and the family's own where it says nothing."""
    _require_unit_range(said)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("do_normalize") is not False:
        mean = _three(said, "image_mean", kind.mean, least=LEAST_MEAN)
        std = _three(said, "image_std", kind.std, least=LEAST_STD)
    return {
        "mean": mean,
        "std": std,
        "evaluation": _evaluation(said) if said else kind.evaluation,
        "assumed": _assumed_of_crop(said),
    }


def _said_of_values(said: Mapping[str, Any]) -> set[str]:
    """Which of mean and std the folder says: both where it says that it does not normalise."""
    return {name for name in ("mean", "std") if f"image_{name}" in said or said.get("do_normalize") is False}


def _require_unit_range(said: Mapping[str, Any]) -> None:
    """Refuse a folder whose images are not brought to 0..1, as all are here."""
    factor = said.get("rescale_factor", _RESCALE)
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if said.get("do_rescale") is False:
        raise UnsupportedFormError(
            "preprocessor_config.json says do_rescale false, and every image is brought to values of 0 to 1 here"
        )
    if not is_number or not math.isclose(factor, _RESCALE, rel_tol=1e-6):
        raise UnsupportedFormError(
            f"preprocessor_config.json says rescale_factor {_shown(factor)}, and every image is divided by 255 here"
        )


def _assumed_of_crop(said: Mapping[str, Any]) -> tuple[str, ...]:
    """What is said to people where the whole view is squashed first, and a part of that cut out: not done here."""
    size, cut = said.get("size"), said.get("crop_size")
    edge = size.get("height") if isinstance(size, Mapping) else None
    cut = cut.get("height") if isinstance(cut, Mapping) else cut
    if not said.get("do_center_crop") or not whole(edge) or not whole(cut) or edge == cut:
        return ()
    return (
        f"the whole view: preprocessor_config.json squashes it to {edge} pixels and cuts {cut} out of that, which is "
        "not done here",
    )


def _evaluation(said: Mapping[str, Any]) -> Evaluation:
    size, crop, resample = said.get("size"), said.get("crop_size"), said.get("resample", _BICUBIC)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    cut = crop.get("height") if isinstance(crop, Mapping) else crop
    cropped = bool(said.get("do_center_crop")) and bool(whole(edge)) and bool(whole(cut))
    if isinstance(resample, bool) or resample not in range(len(_FILTERS)):
        raise UnsupportedFormError(
            f"preprocessor_config.json says resample {_shown(resample)}, which is not one of 0 to {len(_FILTERS) - 1}, "
            "as Pillow numbers its filters"
        )
    return Evaluation(
        source="preprocessor_config.json",
        share=min(1.0, whole(cut) / whole(edge)) if cropped else 1.0,
        interpolation=_FILTERS[resample],
        squash=not cropped and edge is None,
    )


def _three(
    said: Mapping[str, Any], name: str, otherwise: tuple[float, float, float], *, least: float
) -> tuple[float, float, float]:
    values = said.get(name)
    if not isinstance(values, list) or len(values) != len(otherwise):
        return otherwise
    if not all(isinstance(number, int | float) for number in values):
        return otherwise
    if not all(least <= number <= MOST for number in values):
        raise UnsupportedFormError(
            f"preprocessor_config.json says {name} {_shown(values)}; three numbers from {least:g} to {MOST:g} are "
            "needed"
        )
    return float(values[0]), float(values[1]), float(values[2])


def _finish(state: State, form: VitForm) -> State:
    """Join queries, keys and values, and give class token, positions and registers the network's forms."""
    joined: State = {}
    for name, tensor in state.items():
        if ".attn.q." in name and name.replace(".attn.q.", ".attn.v.") in state:
            joined |= _joined(state, name, form)
        elif not any(part in name for part in (".attn.q.", ".attn.k.", ".attn.v.")):
            joined[name] = tensor
    if "cls_token" in joined:
        joined["cls_token"] = joined["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in joined:
        joined["pos_embed"] = joined["pos_embed"].reshape(1, -1, joined["pos_embed"].shape[-1])
    if form.options.get("no_embed_class"):
        joined["cls_token"] = joined["cls_token"] + joined["pos_embed"][:, :1]
        joined["pos_embed"] = joined["pos_embed"][:, 1:]
    if not form.options.get("swiglu_mlp"):
        joined = {name.replace(".mlp.fc1_x.", ".mlp.fc1."): tensor for name, tensor in joined.items()}
    return joined


def _joined(state: State, name: str, form: VitForm) -> State:
    """The three parts of one projection; timm's Beit and Eva keep the biases of queries and values apart."""
    query, value = state[name], state[name.replace(".attn.q.", ".attn.v.")]
    block, _, kind = name.partition(".attn.q.")
    if kind == "bias" and form.network != "VisionTransformer":
        return {f"{block}.attn.q_bias": query, f"{block}.attn.v_bias": value}
    key = state.get(name.replace(".attn.q.", ".attn.k."), torch.zeros_like(query))
    return {f"{block}.attn.qkv.{kind}": torch.cat([query, key, value])}


def _model_type(published: Published) -> str:
    """CLIP's and SigLIP's image towers have a type of their own."""
    return str(published.config.get("model_type", "")).removesuffix("_vision_model")


TRANSFORMERS = tuple(
    KeyFormat(
        family=f"{PREFIX}{model_type.replace('_', '-')}",
        needs=(),
        claims=lambda published, model_type=model_type: _model_type(published) == model_type,  # type: ignore[misc]
        read=_read(model_type, kind),
        renames=kind.renames,
        left_out=_LEFT_OUT,
        finish=_finish,
    )
    for model_type, kind in _KINDS.items()
)
