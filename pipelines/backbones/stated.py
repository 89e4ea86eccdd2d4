"""What no file says about its network: what is assumed instead, and what a user states with `--arg NAME=VALUE`."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch

from pipelines.backbones.formats.form import VitForm
from pipelines.backbones.normalisation import LEAST_MEAN, LEAST_STD, MOST
from pipelines.backbones.weight_files import BackboneError

ARGUMENT = "--arg"
_GELU = "gelu"
_ACTIVATIONS = (_GELU, "gelu_tanh", "quick_gelu", "relu", "silu")
# Of timm's arguments, those that Vitrine sets by other options or needs as they are.
_NOT_STATED = frozenset({"img_size", "num_classes", "global_pool", "weight_init", "fix_init", "dynamic_img_size"})
# Arguments of timm whose default does not show their type.
_WITHOUT_TYPE: Mapping[str, type] = {"act_layer": str, "init_values": float, "fc_norm": bool}
_PIXELS = ("mean", "std")
_CHANNELS = 3


def parsed(arguments: Sequence[str]) -> dict[str, str]:
    """Names and values of `NAME=VALUE`.

    Raises:
        BackboneError: another form, or one name twice.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (name and equals and value):
            raise BackboneError(f"{ARGUMENT} {argument!r} is not NAME=VALUE; write, for one, {ARGUMENT} num_heads=12.")
        if name in values:
            raise BackboneError(f"{ARGUMENT} {name} is given twice, as {values[name]!r} and {value!r}; give it once.")
        values[name] = value
    return values


def known_arguments(form: VitForm) -> dict[str, Any]:
    """What a network is built with and how its input is normalised, by the names that `--arg` takes."""
    options = {name: value for name, value in form.options.items() if isinstance(value, bool | int | float)}
    # timm's Beit and Eva have theirs built in.
    chosen = form.network in {"VisionTransformer", "ScaleMae"}
    activation = {"act_layer": form.options.get("act_layer", _GELU)} if chosen else {}
    return {
        "num_heads": form.heads,
        **activation,
        "norm_eps": form.norm_eps,
        "mean": form.mean,
        "std": form.std,
        "embed_dim": form.width,
        "depth": form.depth,
        "mlp_width": form.mlp_width,
        "patch_size": form.patch,
        "class_token": form.class_token,
        "reg_tokens": form.registers,
        **options,
    }


def _free(form: VitForm) -> dict[str, Any]:
    """Of these, what tensors do not decide and the file does not say."""
    names = ("num_heads", "act_layer", "norm_eps", *_PIXELS, "rope_temperature")
    known = known_arguments(form)
    return {name: known[name] for name in names if name in known and name not in form.said}


def assumptions(form: VitForm) -> tuple[str, ...]:
    """What the file does not say, with the value that is taken: `num_heads=12 (64 features each)`."""
    notes = {"num_heads": f" ({form.width // form.heads} features each)"}
    free = {name: value for name, value in _free(form).items() if name not in form.undecided}
    values = (f"{name}={value_text(value)}{notes.get(name, '')}" for name, value in free.items())
    return (*values, *form.assumed)


def with_stated(form: VitForm, arguments: Sequence[str]) -> VitForm:
    """A form with what the user states instead of what was assumed.

    Raises:
        BackboneError: no such argument, no such value, or another value than the file has.
    """
    known, free, stated = known_arguments(form), _free(form), {}
    for name, text in parsed(arguments).items():
        if name not in known:
            raise BackboneError(f"{ARGUMENT} {name}: {form.title} has no such argument; it has {', '.join(known)}.")
        stated[name] = _value(name, text, type(known[name]))
        if name not in free and stated[name] != known[name]:
            raise BackboneError(
                f"{ARGUMENT} {name}={text}: {form.title} has {value_text(known[name])}, as its file says; leave it out."
            )
    heads = stated.get("num_heads", form.heads)
    if "num_heads" in stated and form.width % heads:
        raise BackboneError(f"{ARGUMENT} num_heads={heads} does not divide the {form.width} features of {form.title}.")
    options: dict[str, Any] = {
        name: stated[name] for name in ("act_layer", "rope_temperature") if name in stated and name in free
    }
    if options.get("act_layer") == _GELU and "act_layer" not in form.options:
        del options["act_layer"]  # as the network has it anyway: one network, one digest
    return replace(
        form,
        heads=heads,
        norm_eps=stated.get("norm_eps", form.norm_eps),
        mean=stated.get("mean", form.mean),
        std=stated.get("std", form.std),
        options={**form.options, **options},
        said=form.said | set(stated),
        undecided={name: text for name, text in form.undecided.items() if name not in stated},
    )


def require_decided(form: VitForm, file: str) -> None:
    """Refuse a file for which published families differ in what it does not say.

    Raises:
        BackboneError: with both families, and the option that says which.
    """
    if form.undecided:
        name, (differ, *examples) = next(iter(form.undecided.items()))
        ways = " or ".join(f"{ARGUMENT} {name}={example}" for example in examples)
        raise BackboneError(
            f"weights {file} do not say {name}, and published models like {form.title} differ in it: {differ}. Say it "
            f"with {ways}."
        )


def network_taken(network: str | None) -> tuple[str, ...]:
    """What is said of the network that was taken out of a file which holds several; nothing where it holds one."""
    return () if network is None else (f"network={network}, of several in the file",)


def timm_arguments(architecture: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What timm's builder of an architecture is called with for what the user states; mean and std among them.

    Raises:
        BackboneError: an argument that the network's class does not have, or a value of another type.
    """
    stated = parsed(arguments)
    if not stated:
        return {}
    with torch.device("meta"):
        kind = type(timm.create_model(architecture, pretrained=False, num_classes=0))
    types: dict[str, type] = {"norm_eps": float, **dict.fromkeys(_PIXELS, tuple)}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        found = _WITHOUT_TYPE.get(name, type(parameter.default))
        if found in {bool, int, float, str} and name not in _NOT_STATED:
            types[name] = found
    if unknown := next((name for name in stated if name not in types), None):
        raise BackboneError(f"{ARGUMENT} {unknown}: {architecture!r} has no such argument; it has {', '.join(types)}.")
    return {name: _value(name, text, types[name]) for name, text in stated.items()}


def _value(name: str, text: str, kind: type) -> Any:
    """The value of a text.

    Raises:
        BackboneError: it is none of the type, or none that an argument of this name can have.
    """
    wanted, convert = _NAMED.get(name, _KINDS[kind])
    try:
        value = convert(text)
    except (ValueError, KeyError) as error:
        raise BackboneError(f"{ARGUMENT} {name}={text}: {name} must be {wanted}.") from error
    if name == "act_layer" and value not in _ACTIVATIONS:
        raise BackboneError(f"{ARGUMENT} {name}={text}: choose one of {', '.join(_ACTIVATIONS)}.")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _epsilon(text: str) -> float:
    # Networks run in float32, in which a smaller number is 0 and the norm of a constant token is none.
    value = float(text)
    if not torch.finfo(torch.float32).tiny <= value < 1:
        raise ValueError(text)
    return value


def _three(text: str, *, least: float) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != _CHANNELS or not all(least <= value <= MOST for value in values):
        raise ValueError(text)
    return values


def _channels(least: float) -> tuple[str, Callable[[str], Any]]:
    wanted = f"three numbers from {least:g} to {MOST:g} with commas between, such as 0.5,0.5,0.5"
    return wanted, partial(_three, least=least)


_KINDS: Mapping[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", {"true": True, "false": False}.__getitem__),
    int: ("a whole number above 0", _whole),
    float: ("a number above 0", _positive),
    tuple: _channels(LEAST_MEAN),
    str: ("a word", str),
}
# Arguments of which not every value of their type makes a network that can be run.
_NAMED: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "norm_eps": ("a number above 0 and below 1", _epsilon),
    "mean": _channels(LEAST_MEAN),
    "std": _channels(LEAST_STD),
}


def value_text(value: Any) -> str:
    """A value as `--arg` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
