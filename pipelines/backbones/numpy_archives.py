"""Google's ViTs (google-research/vision_transformer): NumPy archives with JAX's names, read as timm names the same."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MEMBER = ".npy"
_EMBEDDING = "embedding/kernel"
# What training keeps around the weights.
_PREFIX = "opt/target/"
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_ATTENTION = "MultiHeadDotProductAttention_1/"
_ROOTS = {
    "embedding": "patch_embed.proj",
    "cls": "cls_token",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm": "norm",
    "head": "head",
    "pre_logits": "pre_logits.fc",
}
_IN_BLOCKS = {
    "LayerNorm_0": "norm1",
    "LayerNorm_2": "norm2",
    "MlpBlock_3/Dense_0": "mlp.fc1",
    "MlpBlock_3/Dense_1": "mlp.fc2",
    f"{_ATTENTION}out": "attn.proj",
}
_KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TOLD = 3


class NumpyArchiveError(ValueError):
    """A NumPy archive that is no ViT of Google's, said so that it follows `weights FILE`."""


def is_numpy_archive(path: Path) -> bool:
    """Whether a file is a zip archive of arrays, whatever its name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(_MEMBER) for name in names)


def read_numpy_archive(path: Path, *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of one of Google's ViTs under timm's names; no pickled object in it is made.

    Args:
        path: the file.
        device: `cpu`, or `meta` for names and shapes alone.

    Raises:
        NumpyArchiveError: compressed, with entries larger than the file, or with other names.
        OSError, ValueError, zipfile.BadZipFile: broken, or with pickled objects.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # A compressed array, or entries that share bytes, would let a small file claim any amount of memory.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise NumpyArchiveError("are a compressed NumPy archive; save it with numpy.savez")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name.removeprefix(_PREFIX): archive[name] for name in archive.files}
    if _EMBEDDING not in arrays:
        raise NumpyArchiveError(
            f"are a NumPy archive without the names of Google's ViTs: {', '.join(list(arrays)[:_TOLD])}; convert "
            "it to a state dict of timm, and save that as .safetensors"
        )
    return {name: tensor.to(device) for name, tensor in _state(arrays).items()}


def _state(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for name, array in arrays.items():
        new = _ROOTS.get(name) or _renamed(name)
        if new is not None:
            state[new] = _turned(array, name)
    for query in [name for name in arrays if name.endswith(f"{_ATTENTION}query/kernel")]:
        block = _BLOCK.fullmatch(query)
        if block is None:
            continue
        stem = query.removesuffix("query/kernel")
        parts = [arrays[f"{stem}{part}/kernel"] for part in ("query", "key", "value")]
        # From (features, heads, features of a head): heads side by side, as timm has them.
        joined = np.concatenate([part.reshape(part.shape[0], -1).T for part in parts])
        bias = np.concatenate([arrays[f"{stem}{part}/bias"].reshape(-1) for part in ("query", "key", "value")])
        state[f"blocks.{block[1]}.attn.qkv.weight"] = torch.from_numpy(joined.copy())
        state[f"blocks.{block[1]}.attn.qkv.bias"] = torch.from_numpy(bias)
    return state


def _renamed(name: str) -> str | None:
    """Timm's name; None for queries, keys and values, which are joined, and the name itself for what is not known."""
    module, _, kind = name.rpartition("/")
    found = _BLOCK.fullmatch(module)
    if found and found[2] in {f"{_ATTENTION}{part}" for part in ("query", "key", "value")}:
        return None
    new = _ROOTS.get(module) if found is None else _IN_BLOCKS.get(found[2])
    if new is None or kind not in _KINDS:
        return name.replace("/", ".")
    return f"{new}.{_KINDS[kind]}" if found is None else f"blocks.{found[1]}.{new}.{_KINDS[kind]}"


def _turned(array: Any, name: str) -> torch.Tensor:
    """JAX's kernels have their outputs last, and torch's first."""
    if name.endswith("out/kernel"):
        array = array.reshape(-1, array.shape[-1]).T
    elif name.endswith("/kernel"):
        array = array.T if array.ndim == len(("in", "out")) else array.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))
