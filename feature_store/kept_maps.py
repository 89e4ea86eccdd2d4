"""Files mapped for reading; a bounded number stays mapped, since one made anew costs a page fault every few pages."""

import mmap
import os
import stat
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8

Octets: TypeAlias = UInt8[np.ndarray, " bytes"]
_Signature: TypeAlias = tuple[int, int, int, int]
# Each holds a file descriptor, and a process may have 1024 of them.
_MOST_KEPT = 64
_kept: OrderedDict[Path, tuple[_Signature, Octets]] = OrderedDict()
_lock = threading.Lock()


def mapped(path: Path, size_bytes: int, *, keep: bool) -> Octets | None:
    """The file's bytes, read-only and not yet read; None where it has another size.

    Args:
        path: of the file.
        size_bytes: that it must have.
        keep: let the map stand for the next caller, until the file is replaced or changed, or 64 others were used.

    Raises:
        FileNotFoundError: no file is there.
    """
    if keep and (kept := _kept_map(path)) is not None and len(kept) == size_bytes:
        return kept
    # Without waiting: what stood there may have been replaced by a named pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{path} is no file")
        if status.st_size != size_bytes:
            return None
        octets = np.frombuffer(mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ), dtype=np.uint8)
    finally:
        os.close(descriptor)
    if keep:
        _keep_map(path, status, octets)
    return octets


def _kept_map(path: Path) -> Octets | None:
    signature = _signature(path.stat())
    with _lock:
        found = _kept.get(path)
        if found is None or found[0] != signature:
            return None
        _kept.move_to_end(path)
        return found[1]


def _keep_map(path: Path, status: os.stat_result, octets: Octets) -> None:
    with _lock:
        _kept[path] = (_signature(status), octets)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
