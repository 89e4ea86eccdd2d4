"""Checkpoint files: read without running anything in them."""

import contextlib
import pickle
import struct
import textwrap
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.backbones.contents import ROOT, Choice, ContentsError, choose
from pipelines.backbones.file_kind import CUT_SHORT, EMPTY, POINTER, TEXT, kind_of
from pipelines.backbones.held_file import HeldFile
from pipelines.backbones.inert_pickle import TensorRecord
from pipelines.backbones.numpy_archives import NumpyArchiveError, is_numpy_archive, read_numpy_archive
from pipelines.backbones.parts import is_index, misplaced, parts_of
from pipelines.backbones.torch_archives import is_code, is_script, open_torch_file
from pipelines.backbones.weight_files import BackboneError, placed_names, require_file, weight_parts

_TENSORS = (torch.Tensor, TensorRecord)
_REASON_CHARACTERS = 160
# What torch's refusal says of a file that is a pickle at all; other bytes are no checkpoint.
_HOLDS_OBJECTS = ("Unsupported global", "unsupported GLOBAL", "not an allowed global", "Unsupported class")
_EXPECTED = "give a file that torch.save (.pt, .pth) or safetensors (.safetensors) wrote"
_LENGTH = struct.Struct("<Q")
# As safetensors' own reader has it.
_MAX_HEADER_BYTES = 100_000_000
# Of types that no network's numbers have; the others are floating.
_SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


class _ObjectsInsideError(BackboneError):
    """A file with objects other than tensors, which torch's own reader refuses."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of one network in a checkpoint file, and what stands around them.

    Attributes:
        tensors: by name, wrappers such as {"model": ...} and prefixes such as `module.` taken off.
        wrapper: the keys around the network, outermost first; empty for a flat file.
        prefix: what stood before its names, such as `backbone.`; empty where nothing did.
        network: the name of the network that was taken, wrapper and prefix with dots between; `.` for the file itself.
        networks: the names of all networks in the file.
        beside: what else the file holds at its top, such as `optimizer` or `config`.
        passed_over: how many tensors were not taken, by network or group of names.
        left_unread: dotted names of the pickled objects in it, none of which was made.
    """

    tensors: dict[str, torch.Tensor]
    wrapper: tuple[str, ...] = ()
    prefix: str = ""
    network: str = ROOT
    networks: tuple[str, ...] = (ROOT,)
    beside: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    left_unread: tuple[str, ...] = ()


def read_state(path: Path, *, network: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of the network in a checkpoint by name, wrappers and prefixes taken off.

    Raises:
        BackboneError: no regular file, not a checkpoint, truncated, with tensors that claim more memory than the file
            has bytes, with values that are not finite, or with several networks and nothing that says which.
    """
    return read_checkpoint(path, network=network).tensors


def read_checkpoint(path: Path, *, device: str = "cpu", network: str | None = None) -> Checkpoint:
    """Read a checkpoint file, and run nothing in it.

    What torch's own reader takes with `weights_only=True`, and safetensors, is read by these. Where a file holds other
    pickled objects (a configuration, training arguments), its tensors alone are read, by `torch_archives`: no object
    is made, no code runs, and nothing but the tensors' numbers is taken from it.

    Args:
        path: the file.
        device: `cpu`, or `meta` for names and shapes alone.
        network: the name of the network to take, or a part of it; None for the one that authors publish.

    Raises:
        BackboneError: as `read_state`.
    """
    require_file(path)
    try:
        if device == "cpu":
            _look_for_objects(path)
        choice = _taken(load_tensors(path, device=device), path, network)
        checkpoint = _checkpoint(choice, dict(choice.network.tensors))
    except _ObjectsInsideError as refused:
        checkpoint = _read_beside_objects(path, device=device, network=network, refused=refused)
    if device == "cpu":
        for name, tensor in checkpoint.tensors.items():
            _check_tensor(name, tensor, path)
    return checkpoint


def read_tensor(path: Path, name: str, *, network: str | None = None) -> torch.Tensor | None:
    """One tensor of a network, without reading the others; None where there is none of that name.

    Raises:
        BackboneError: not a checkpoint, or truncated.
    """
    require_file(path)
    try:
        if is_index(path) or is_numpy_archive(path):
            shapes = load_tensors(path, device="meta")
            stored = _taken({raw: raw for raw in shapes}, path, network, (str,)).network.tensors
            return load_tensors(path)[stored[name]] if name in stored else None
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as opened:
                # The names stand for their tensors, so that the same rule finds the network.
                stored = _taken({raw: raw for raw in opened.keys()}, path, network, (str,)).network.tensors  # noqa: SIM118
                return opened.get_tensor(stored[name]) if name in stored else None
        with open_torch_file(path) as file:
            found = _taken(file.content, path, network).network.tensors
            return file.read(found[name]) if name in found else None
    except BackboneError:
        raise
    except Exception as error:  # hostile bytes make a pickle raise anything
        raise BackboneError(
            f"weights {path} are not a readable checkpoint ({_reason(error)}); fetch the file again."
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        head = file.read(_LENGTH.size + 1)
    return head[_LENGTH.size :] == b"{" and _LENGTH.unpack_from(head)[0] <= _MAX_HEADER_BYTES


def _look_for_objects(path: Path) -> None:
    """Raise now what torch's reader would raise behind the numbers, which would then be read twice."""
    if is_index(path) or _is_safetensors(path) or not zipfile.is_zipfile(path):
        return
    try:
        load_tensors(path, device="meta")
    except _ObjectsInsideError:
        raise
    except BackboneError:
        return  # what is wrong beside it is better said by the reader that takes the numbers too


def _read_beside_objects(path: Path, *, device: str, network: str | None, refused: BackboneError) -> Checkpoint:
    """The tensors of a file that holds other objects, which stay unread."""
    try:
        with open_torch_file(path) as file:
            choice = _taken(file.content, path, network)
            read = file.read if device == "cpu" else _meta
            tensors = {name: read(record) for name, record in choice.network.tensors.items()}
            return _checkpoint(choice, tensors, file.left_unread)
    except BackboneError as error:
        raise error from refused
    except Exception as error:  # hostile bytes make a pickle raise anything
        raise BackboneError(
            f"{refused} Its tensors could not be read beside them ({type(error).__name__}: {_reason(error)})."
        ) from error


def _meta(record: TensorRecord) -> torch.Tensor:
    return torch.empty(record.shape, dtype=record.storage.dtype, device="meta")


def load_tensors(path: Path, *, what: str = "weights", device: str = "cpu") -> Any:
    """What `torch.save` or safetensors left in a file, without running anything in it.

    Args:
        path: the file.
        what: how to call it in an error.
        device: where to; `meta` reads names and shapes alone.

    Raises:
        BackboneError: no regular file, not such a file, truncated, compressed, or with objects that would have to be
            executed.
    """
    require_file(path, what=what)
    if is_index(path):
        return _tensors_of_parts(path, what, device)
    try:
        if _is_safetensors(path):
            return load_file(path) if device == "cpu" else _safetensors_shapes(path)
        if is_numpy_archive(path):
            return read_numpy_archive(path, device=device)
        _refuse_compressed(path, what)
        if is_script(path):
            raise _ObjectsInsideError(
                f"{what} {path} hold a TorchScript program, which loading would execute; save its state_dict() alone, "
                "best as .safetensors."
            )
        return _load_torch(path, device)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if any(words in line for words in _HOLDS_OBJECTS)), "")
        if not reason:
            raise BackboneError(f"{what} {path} are not a checkpoint but {kind_of(path)}; {_EXPECTED}.") from error
        raise _ObjectsInsideError(
            f"{what} {path} hold objects other than tensors, which loading would execute "
            f"({reason.strip()[:_REASON_CHARACTERS]}); save its tensors alone, best as .safetensors."
        ) from error
    except NumpyArchiveError as error:
        raise BackboneError(f"{what} {path} {error}.") from error
    except BackboneError:
        raise
    except Exception as error:  # torch's reader lets hostile bytes raise anything, an IndexError for one
        kind = kind_of(path)
        if kind == CUT_SHORT:
            raise BackboneError(f"{what} {path} are {kind}; fetch the file again.") from error
        if kind in {EMPTY, TEXT, POINTER}:
            raise BackboneError(f"{what} {path} are not a checkpoint but {kind}; {_EXPECTED}.") from error
        raise BackboneError(
            f"{what} {path} are not a readable checkpoint ({_reason(error)}); fetch the file again."
        ) from error


def _tensors_of_parts(path: Path, what: str, device: str) -> dict[str, Any]:
    """The tensors of all files that an index names.

    Raises:
        BackboneError: a file that does not hold just the tensors that the index places in it.
    """
    tensors: dict[str, Any] = {}
    placed = placed_names(path)
    for part in weight_parts(path):
        loaded = load_tensors(part, what=what, device=device)
        if not isinstance(loaded, Mapping):
            raise BackboneError(
                f"{what} {path} name {part.name!r}, which is no part of one model; fetch the folder again."
            )
        if said := misplaced(part.name, placed.get(part.name, ()), [str(name) for name in loaded]):
            raise BackboneError(f"{what} {path} {said}.")
        tensors |= loaded
    return tensors


def _load_torch(path: Path, device: str) -> Any:
    # Torch itself goes by the ending, unless it is given an open file.
    misnamed = path.suffix == ".safetensors" and not isinstance(path, HeldFile)
    named = path.open("rb") if misnamed else contextlib.nullcontext(path)
    with named as source, warnings.catch_warnings():
        # Of pickle protocols and sparse tensors; both are refused or harmless here.
        warnings.simplefilter("ignore")
        # Nobody writes to a file that is held in memory, so its tensors may stay where they are; torch cannot map files
        # of before its archives.
        mapped = isinstance(path, HeldFile) and device == "cpu" and zipfile.is_zipfile(path)
        return torch.load(source, weights_only=True, map_location=device, mmap=mapped)


def _reason(error: Exception) -> str:
    """The first sentence of an error, whole words of it."""
    first = next(iter(str(error).splitlines()), "").partition(". ")[0]
    return textwrap.shorten(first, _REASON_CHARACTERS, placeholder=" ...") or type(error).__name__


def _safetensors_shapes(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: torch.empty(
                part.get_shape(), dtype=_SAFETENSORS_DTYPES.get(part.get_dtype(), torch.float32), device="meta"
            )
            for name, part in slices.items()
        }


def _refuse_compressed(path: Path, what: str) -> None:
    """Torch stores its archives uncompressed; a compressed one can claim any amount of memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(
            entry.compress_type != zipfile.ZIP_STORED and not is_code(entry.filename) for entry in archive.infolist()
        ):
            raise BackboneError(f"{what} {path} are a compressed archive; save them with torch.save or safetensors.")


def _taken(content: object, path: Path, network: str | None, tensor_types: tuple[type, ...] = _TENSORS) -> Choice:
    """The network that is read.

    Raises:
        BackboneError: there is none, or nothing says which.
    """
    try:
        return choose(content, tensor_types=tensor_types, wanted=network)
    except ContentsError as error:
        raise BackboneError(f"weights {path} {error}.") from error


def _checkpoint(choice: Choice, tensors: dict[str, torch.Tensor], left_unread: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(
        tensors=tensors,
        wrapper=choice.network.wrapper,
        prefix=choice.network.prefix,
        network=choice.network.name,
        networks=choice.names,
        beside=choice.beside,
        passed_over=choice.passed_over,
        left_unread=left_unread,
    )


def _check_tensor(name: str, tensor: torch.Tensor, path: Path) -> None:
    require_plain(name, tensor, path)
    if tensor.is_floating_point() and not tensor.float().isfinite().all():
        raise BackboneError(f"weights {path} have values that are not finite in {name!r}; fetch the file again.")


def require_plain(name: str, tensor: torch.Tensor, path: Path, *, what: str = "weights") -> None:
    """Refuse a tensor that is not dense, or claims more memory than its file has bytes.

    Raises:
        BackboneError: such a tensor.
    """
    # A view of stride 0 over one number can claim a terabyte, which the next copy would take.
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not plain or tensor.numel() * tensor.element_size() > sum(part.stat().st_size for part in parts_of(path)):
        raise BackboneError(
            f"{what} {path} hold {name!r} in a form that is not {list(tensor.shape)} plain numbers; "
            "save dense tensors alone, best as .safetensors."
        )
