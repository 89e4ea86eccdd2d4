"""Checkpoint files: read without running anything in them, told from one another by their sha256."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_BLOCK_BYTES = 1 << 24
_WRAPPERS = ("model", "state_dict")


class BackboneError(ValueError):
    """A model or checkpoint that cannot be used, with the reason and the way out."""


def file_sha256(path: Path) -> str:
    """Sha256 of a file, in hexadecimal, read in bounded memory.

    Raises:
        BackboneError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise BackboneError(
            f"weights {path} cannot be read ({error.strerror}); give an existing .pth or .safetensors file."
        ) from error
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, wrappers such as {"model": ...} taken off.

    Loads with `weights_only=True` or safetensors, and never falls back: a file that holds other objects is refused.

    Raises:
        BackboneError: not a checkpoint, truncated, with objects that would have to be executed, or with NaNs.
    """
    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:160]
        raise BackboneError(
            f"weights {path} hold objects other than tensors, which loading would execute ({reason}); "
            "save its tensors alone, best as .safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise BackboneError(
            f"weights {path} are not a readable checkpoint ({reason}); fetch the file again."
        ) from error
    state = _unwrap(loaded, path)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise BackboneError(f"weights {path} have values that are not finite in {broken[0]!r}; fetch the file again.")
    return state


def _unwrap(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping):
        raise BackboneError(f"weights {path} hold a {type(loaded).__name__}, not a mapping of names to tensors.")
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise BackboneError(f"weights {path} hold no tensors under their names; a ViT's state dict is needed.")
    return state
