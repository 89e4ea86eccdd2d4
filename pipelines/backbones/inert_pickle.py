"""Unpickling that runs nothing: tensors become records of where their numbers lie, every other object a stub.

Published checkpoints hold more than tensors: a yacs configuration, argparse's namespace, paths, numpy scalars, the
state of an optimizer. To read the tensors and leave the rest, every name in the pickle is looked up here and nowhere
else: torch's rebuild functions for plain tensors stand for functions of this module, which check their arguments and
make records; whatever else is named stands for a stub, which takes any arguments and any state and does nothing. No
module is imported and no function of another module is called with what a stranger chose.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import torch

# Opcodes run in Python here; the largest published checkpoints have pickles of a few hundred kilobytes.
MAX_PICKLE_BYTES = 16 << 20
MAX_DIMENSIONS = 16
# A mapping may be made from another again and again at a few bytes each.
MAX_COPIED_NAMES = 1 << 20
_NAME_CHARACTERS = 200
_PREFIX_CHARACTERS = 1000
# Under which TorchScript puts the classes of a program.
_SCRIPT = "__torch__"
SCRIPT_PROGRAM = "a TorchScript program"
# What torch writes behind a storage: nothing, or, in older files, that it is no view of another.
_WHOLE: tuple[list[None], ...] = ([], [None])
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    # Read so that they can be refused by name.
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class InertPickleError(ValueError):
    """A pickle that is broken, or builds what no checkpoint holds."""


@dataclass(frozen=True, kw_only=True)
class StorageRecord:
    """One storage of a checkpoint: its name in the file, its type, and how many numbers it has."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A tensor that was not read: where its numbers lie in which storage."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last number of the storage that it reaches."""
        if 0 in self.shape:
            return self.offset
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))


class Stub:
    """Stands for an object that is left unread: takes any arguments, items and state, and does nothing."""

    def __new__(cls, *_arguments: object, **_named: object) -> "Stub":
        """One stub for whatever arguments."""
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_named: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None:
        """Take what a list would take, and do nothing."""

    def extend(self, items: object) -> None:
        """Take what a list would take, and do nothing."""

    def add(self, item: object) -> None:
        """Take what a set would take, and do nothing."""

    def __call__(self, *_arguments: object, **_named: object) -> "Stub":
        """Calling an object that is left unread gives another such."""
        return Stub()


class ScriptModule(Stub):
    """Stands for a module of a TorchScript program: its state is kept, and its code is never looked at.

    Attributes:
        state: what the module held, by name.
    """

    state: dict[Any, Any]

    def __new__(cls, *_arguments: object, **_named: object) -> "ScriptModule":
        """A module without state, which comes behind it in the pickle."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def tensors(self) -> dict[str, "TensorRecord"]:
        """The tensors of the module and of those in it, by the names that a state dict has."""
        found: dict[str, TensorRecord] = {}
        waiting: list[tuple[str, ScriptModule]] = [("", self)]
        seen = {id(self)}  # a pickle can put a module into itself
        while waiting:
            prefix, module = waiting.pop(0)
            if len(prefix) > _PREFIX_CHARACTERS:
                raise InertPickleError("modules in modules without end")
            for name, value in module.state.items():
                if isinstance(value, TensorRecord):
                    found[f"{prefix}{name}"] = value
                elif isinstance(value, ScriptModule) and id(value) not in seen:
                    seen.add(id(value))
                    waiting.append((f"{prefix}{name}.", value))
        return found


class _Bounded:
    """A file of which a pickle may read so much and no more."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        """At most so many bytes, as a file gives them."""
        return self._counted(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        """A line, as a file gives it."""
        return self._counted(self._file.readline(self._left + 1))

    def _counted(self, read: bytes) -> bytes:
        self._left -= len(read)
        if self._left < 0:
            raise InertPickleError(f"a pickle of more than {MAX_PICKLE_BYTES >> 20} MiB")
        return read


# The one in Python: that in C allocates for whatever memo index a stranger writes, and its opcodes cannot be replaced.
_PythonUnpickler: Any = pickle._Unpickler


class InertUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """Reads the next pickle of a file, and runs nothing in it.

    Attributes:
        left_unread: dotted names of the objects that became stubs, in order of appearance.
        storages: what the tensors lie in, by key.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(_Bounded(file), encoding="utf-8")
        self.left_unread: dict[str, None] = {}
        self.storages: dict[str, StorageRecord] = {}
        self._copied = 0

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in a pickle; nothing is imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return self._names
        if module.split(".", maxsplit=1)[0] == _SCRIPT:
            self.left_unread[SCRIPT_PROGRAM] = None
            return ScriptModule
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module in {"torch", "torch.storage"} and name in _DTYPES:
            return _DTYPES[name]
        self.left_unread[f"{module}.{name}"[:_NAME_CHARACTERS]] = None
        return Stub

    def persistent_load(self, pid: Any) -> StorageRecord:
        """A storage; torch pickles each as ("storage", type, key, device, numel), older files with a view behind."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel), *view) if numel >= 0 and view in _WHOLE:
                return self.storages.setdefault(key, StorageRecord(key=key, dtype=dtype, numel=numel))
            case _:
                raise InertPickleError("a storage of unknown form")

    def _names(self, *items: Any) -> dict[Any, Any]:
        """Stands for `collections.OrderedDict`."""
        names = dict(*items)
        self._copied += len(names)
        if self._copied > MAX_COPIED_NAMES:
            raise InertPickleError("mappings made of mappings without end")
        return names

    def _drop_state(self) -> None:
        """Instead of setting attributes, which would reach what stands for torch's functions, too."""
        state = self.stack.pop()
        if type(self.stack[-1]) is ScriptModule and isinstance(state, dict):
            self._copied += len(state)
            if self._copied > MAX_COPIED_NAMES:
                raise InertPickleError("mappings made of mappings without end")
            self.stack[-1].state.update(state)

    dispatch[pickle.BUILD[0]] = _drop_state


def _tensor(storage: object, offset: object, shape: object, stride: object, *_rest: object) -> TensorRecord | Stub:
    """Stands for `torch._utils._rebuild_tensor_v2` and `_rebuild_tensor`."""
    if not isinstance(storage, StorageRecord):
        return Stub()
    (start,), sizes, steps = _whole((offset,)), _whole(shape), _whole(stride)
    if len(sizes) != len(steps):
        raise InertPickleError("a tensor whose shape and strides differ in length")
    record = TensorRecord(storage=storage, offset=start, shape=sizes, stride=steps)
    if record.end > storage.numel:
        raise InertPickleError("a tensor that reaches beyond its storage")
    return record


def _whole(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise InertPickleError("a tensor without a shape")
    if not all(type(number) is int and number >= 0 for number in value):
        raise InertPickleError("a tensor whose shape is not made of whole numbers")
    return tuple(value)


def _parameter(data: object, *_rest: object) -> object:
    """Stands for `torch._utils._rebuild_parameter`: the tensor itself."""
    return data


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
