"""The environment of a run: what could change last bits of a feature without changing the identity."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

import PIL

from feature_store.errors import StoreError
from feature_store.objects import ObjectRoot
from feature_store.runs import earlier_environments

EnvironmentOf: TypeAlias = Callable[[], dict[str, str]]
# Fields that a resumed run must share with the runs before it.
_COMPARED = ("torch", "timm", "pillow", "device", "cpu_capability")


class MixedEnvironmentError(StoreError, ValueError):
    """A feature set that was begun under another environment."""


def current_environment(device: str) -> dict[str, str]:
    """The environment of this process for a run on `device`."""
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "torch": torch.__version__,
        # Asked of the package, since loading timm takes seconds that the null model needs not.
        "timm": version("timm"),
        "pillow": PIL.__version__,
        "device": name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
    }


def environment_difference(made_in: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> str | None:
    """What differs between an environment and those that made a feature set so far, with both values; or None."""
    for earlier in made_in:
        differing = [name for name in _COMPARED if earlier.get(name) != environment[name]]
        if differing:
            return "; ".join(f"{n}: begun with {earlier.get(n)!r}, now {environment[n]!r}" for n in differing)
    return None


def require_same_environment(root: ObjectRoot, feature_set: str, environment: dict[str, str]) -> None:
    """Refuse to go on with a feature set that was begun elsewhere.

    Raises:
        MixedEnvironmentError: names every field that differs, with both values.
    """
    difference = environment_difference(earlier_environments(root, feature_set), environment)
    if difference is not None:
        raise MixedEnvironmentError(
            f"{feature_set} was begun in another environment ({difference}), and rows could differ in their last bits. "
            "Finish it there, use another --store, or pass --allow-mixed-environment."
        )
