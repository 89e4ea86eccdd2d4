"""Files with several names: which names of a store are one file, and what a removal of some of them gives back."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from feature_store.objects import ObjectRoot

# The device and the number of a file, which all of its names share.
FileKey = tuple[int, int]


def file_key(root: ObjectRoot, path: str) -> FileKey | None:
    """What tells a file that has several names; None for one with a single name, and for whatever is no local file."""
    status = _status(root, path)
    return None if status is None or status.st_nlink < 2 else (status.st_dev, status.st_ino)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What objects take of a disk.

    Attributes:
        n_bytes: of all their files, each counted once, however many of its names are among the objects.
        freed_bytes: what removing them gives back: a file that has a name elsewhere too gives nothing.
    """

    n_bytes: int
    freed_bytes: int


def room_of(root: ObjectRoot, sizes: Mapping[str, int]) -> Room:
    """The room that these objects take, and what removing all of them gives back.

    Args:
        root: the store.
        sizes: the size in bytes of each object, by its path.
    """
    n_bytes = freed = 0
    names: dict[FileKey, int] = {}
    for path, size_bytes in sizes.items():
        status = _status(root, path)
        if status is None or status.st_nlink < 2:
            n_bytes += size_bytes
            freed += size_bytes
            continue
        key = (status.st_dev, status.st_ino)
        names[key] = names.get(key, 0) + 1
        if names[key] == 1:
            n_bytes += size_bytes
        if names[key] == status.st_nlink:
            freed += size_bytes
    return Room(n_bytes=n_bytes, freed_bytes=freed)


def sizes_under(root: ObjectRoot, paths: Iterable[str]) -> dict[str, int]:
    """The size in bytes of every object at, or under, these paths."""
    found: dict[str, int] = {}
    for path in paths:
        under = dict(root.walk(path))
        found |= under or {path: root.size_bytes(path) or 0}
    return found


def _status(root: ObjectRoot, path: str) -> os.stat_result | None:
    place = root.local_path(path)
    try:
        return None if place is None else place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
