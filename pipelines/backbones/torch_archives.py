"""What `torch.save` leaves in a file, in its archives and in the form before them, read without running anything."""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.backbones.inert_pickle import (
    MAX_PICKLE_BYTES,
    InertPickleError,
    InertUnpickler,
    ScriptModule,
    StorageRecord,
    TensorRecord,
)

# The first pickles of the form before archives; torch writes them on every machine.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """An open checkpoint.

    Attributes:
        content: what was pickled, with a `TensorRecord` for each tensor and stubs for other objects.
        left_unread: dotted names of those objects.
        read: the numbers of a tensor.
    """

    content: Any
    left_unread: tuple[str, ...]
    read: Callable[[TensorRecord], torch.Tensor]


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Read the pickle of a checkpoint, and its tensors when they are asked for.

    Raises:
        InertPickleError: broken, compressed, or not as torch saves.
        OSError, zipfile.BadZipFile, and whatever broken bytes make a pickle raise.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _open_archive(archive, path)
    else:
        with path.open("rb") as file:
            yield _open_legacy(file, path)


def is_code(entry: str) -> bool:
    """Whether an entry of an archive is code of a TorchScript program, by its name."""
    return entry.partition("/")[2].startswith("code/")


def is_script(path: Path) -> bool:
    """Whether a file is an archive of a TorchScript program, as torch tells it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def _open_archive(archive: zipfile.ZipFile, path: Path) -> TorchFile:
    entries = {entry.filename: entry for entry in archive.infolist()}
    name = next((name for name in entries if name.endswith("/data.pkl")), None)
    # A TorchScript program has its code in compressed entries, which are never read.
    read_ones = [entry for entry in entries.values() if not is_code(entry.filename)]
    # Entries that share bytes would let a small file claim any amount of memory.
    if sum(entry.file_size for entry in read_ones) > path.stat().st_size:
        raise InertPickleError("an archive whose entries are larger than itself")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in read_ones):
        raise InertPickleError("a compressed archive")
    if name is None or entries[name].file_size > MAX_PICKLE_BYTES:
        raise InertPickleError(f"an archive without a pickle of at most {MAX_PICKLE_BYTES >> 20} MiB")
    folder = name.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in entries and archive.read(order) != b"little":
        raise InertPickleError("numbers that are not little-endian")
    unpickler = InertUnpickler(io.BytesIO(archive.read(name)))
    content = unpickler.load()
    if isinstance(content, ScriptModule):
        content = content.tensors()
    storages: dict[str, bytearray] = {}

    def read(record: TensorRecord) -> torch.Tensor:
        key = record.storage.key
        if key not in storages:
            storages[key] = bytearray(archive.read(f"{folder}data/{key}"))
        return _tensor(record, storages[key])

    return TorchFile(content=content, left_unread=tuple(unpickler.left_unread), read=read)


def _open_legacy(file: io.BufferedReader, path: Path) -> TorchFile:
    magic, protocol = InertUnpickler(file).load(), InertUnpickler(file).load()
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise InertPickleError("a pickle that torch.save did not write")
    InertUnpickler(file).load()  # of the machine that wrote it
    unpickler = InertUnpickler(file)
    content = unpickler.load()
    keys = InertUnpickler(file).load()
    places = dict(_legacy_places(file, keys, unpickler.storages, path.stat().st_size))
    storages: dict[str, bytearray] = {}

    def read(record: TensorRecord) -> torch.Tensor:
        key = record.storage.key
        if key not in storages:
            start, n_bytes = places[key]
            file.seek(start)
            storages[key] = bytearray(file.read(n_bytes))
        return _tensor(record, storages[key])

    return TorchFile(content=content, left_unread=tuple(unpickler.left_unread), read=read)


def _legacy_places(
    file: io.BufferedReader, keys: object, storages: dict[str, StorageRecord], file_bytes: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where each storage begins, and how many bytes it has; they follow one another, each behind its count."""
    if not isinstance(keys, list):
        raise InertPickleError("a checkpoint without a list of its storages")
    for key in keys:
        storage = storages.get(str(key))
        header = file.read(_COUNT.size)
        if storage is None or len(header) < _COUNT.size:
            raise InertPickleError("storages that end early")
        (count,) = _COUNT.unpack(header)
        n_bytes, start = count * storage.dtype.itemsize, file.tell()
        if count < 0 or start + n_bytes > file_bytes:
            raise InertPickleError("storages that end early")
        yield storage.key, (start, n_bytes)
        file.seek(start + n_bytes)


def _tensor(record: TensorRecord, storage: bytearray) -> torch.Tensor:
    n_bytes = record.storage.numel * record.storage.dtype.itemsize
    if len(storage) < n_bytes:
        raise InertPickleError("a storage that ends early")
    # A view of stride 0 over one number can claim a terabyte, which the next copy would take.
    if math.prod(record.shape) > record.storage.numel:
        raise InertPickleError(f"a tensor in a form that is not {list(record.shape)} plain numbers")
    if not record.storage.numel or 0 in record.shape:
        return torch.empty(record.shape, dtype=record.storage.dtype)
    flat = torch.frombuffer(storage, dtype=record.storage.dtype, count=record.storage.numel)
    return flat.as_strided(record.shape, record.stride, record.offset)
