"""Whether a file of this machine still has the checksum that its receipt states; asked once while it stays as it is.

A pass over a file costs about as much as copying it out, so what was found is remembered for the life of the process,
by the file's inode, size and times. A file that was changed or replaced is checked again.
"""

import os
import time
from pathlib import Path

from feature_store.objects import ObjectRoot, crc32c

# A file system's clock ticks in milliseconds, some in seconds: a file that was written just now could be written again
# without another time to show for it, so what was found of it is not remembered.
_SETTLED_S = 2
_MOST_REMEMBERED = 1 << 17
_PIECE_BYTES = 1 << 20
_Signature = tuple[int, int, int, int, int]
_found: dict[Path, tuple[_Signature, int]] = {}


def has_checksum(place: Path, expected: int) -> bool:
    """Whether the file's bytes have this CRC-32C.

    Raises:
        OSError: it cannot be read.
    """
    signature = _signature(place.stat())
    known = _found.get(place)
    if known is None or known[0] != signature:
        known = (signature, file_crc32c(place))
        if time.time_ns() - max(signature[3:]) > _SETTLED_S * 1_000_000_000:
            if len(_found) >= _MOST_REMEMBERED:
                _found.clear()
            _found[place] = known
    return known[1] == expected


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_crc32c(place: Path) -> int:
    """The CRC-32C of a file's bytes, in bounded memory; a file that is cut short meanwhile gives another one.

    Raises:
        OSError: it cannot be read.
    """
    # By reads that stay in the processor's cache, not by a map: a map of a file that is cut short ends the process.
    piece = memoryview(bytearray(_PIECE_BYTES))
    value = 0
    with place.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(piece):
            value = crc32c([piece[:n_bytes]], value)
    return value


def object_crc32c(root: ObjectRoot, path: str) -> int:
    """The CRC-32C of an object's bytes, read now; in bounded memory on a local disk.

    Raises:
        StoreNotFoundError: there is none.
        OSError: it cannot be read.
    """
    place = root.local_path(path)
    if place is None:
        return crc32c([root.read(path)])
    try:
        return file_crc32c(place)
    except FileNotFoundError as error:
        raise root.not_found(path) from error
