"""Files of this machine that appear whole or not at all, and stay.

A file is written beside its place, synced, renamed or linked, and then its folder is synced. A folder is synced into
its parent once a process, even where it stood before: whoever made it may have been killed before syncing it.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
Buffer = bytes | memoryview
_WRITE_ATTEMPTS = 5
# EIO: the kernel has dropped the pages, so only a new file helps. ENOENT: somebody removed the file or its folder.
_WORTH_ANOTHER_FILE = {errno.EIO, errno.ENOENT}
# Another file system, one without links, a file of somebody else's, or one with as many names as a file may have.
_LINKS_UNSUPPORTED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
_LOCKS_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_durable_folders: set[Path] = set()
_PIECE_BYTES = 8 << 20
# Linux has it, and Python does not wrap it.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def write_file(place: Path, parts: Sequence[Buffer], *, root: Path, replace: bool) -> bool:
    """Write a file whole, and return when it will survive a crash.

    Args:
        place: where, under `root`.
        parts: the content.
        root: folders from here down are made and synced as needed.
        replace: whether a file that stands there gives way.

    Returns:
        False when a file stands at `place` and `replace` is False; it is then synced, whoever made it. Of two writers
        with `replace` False, never both get True.

    Raises:
        OSError: the disk is full, failing or forbidden; at `place` stands what stood there before, or all of the new.
    """
    created = False
    for attempt in range(1, _WRITE_ATTEMPTS + 1):
        try:
            make_folder(place.parent, root=root)
            created = _write_once(place, parts, replace=replace) or created
            sync_folder(place.parent)
            break
        except OSError as error:
            if error.errno not in _WORTH_ANOTHER_FILE or attempt == _WRITE_ATTEMPTS:
                # A failed fsync names no file, and a failed rename one that the user has never heard of.
                error.filename, error.filename2 = str(place), None
                raise
            _durable_folders.clear()
    return created


def _write_once(place: Path, parts: Sequence[Buffer], *, replace: bool) -> bool:
    partial = _partial_of(place)
    try:
        with partial.open("xb", buffering=0) as file:
            _lock(file.fileno())
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    written = file.write(view[:_PIECE_BYTES])  # a raw write may be short
                    _begin_write_back(file.fileno(), written)
                    view = view[written:]
            os.fsync(file.fileno())
            # The lock is held until the file has its name, so that no sweeper takes it for a dead writer's.
            if replace:
                partial.rename(place)
            else:
                os.link(partial, place)  # unlike rename, link refuses to replace
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _partial_of(place: Path) -> Path:
    """A name of its own beside a place, for what is not finished."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def link_file(source: Path, place: Path, *, root: Path) -> bool:
    """Give a file a second name, over any other file of that name, and return when the name will survive a crash.

    Args:
        source: the file.
        place: the new name, under `root`.
        root: folders from here down are made and synced as needed.

    Returns:
        False where the file system or the file allows no second name.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the disk is full, failing or forbidden.
    """
    for attempt in range(1, _WRITE_ATTEMPTS + 1):
        partial = _partial_of(place)
        try:
            make_folder(place.parent, root=root)
            with source.open("rb", buffering=0) as file:
                _lock(file.fileno())  # so that no sweeper takes the name for a dead writer's
                os.link(source, partial)
                partial.rename(place)
            sync_folder(place.parent)
            return True
        except OSError as error:
            if error.errno in _LINKS_UNSUPPORTED:
                return False
            if error.errno != errno.ENOENT or attempt == _WRITE_ATTEMPTS or not source.exists():
                raise
            _durable_folders.clear()
        finally:
            # A rename between two names of one file does nothing, and leaves both.
            partial.unlink(missing_ok=True)
    raise AssertionError("unreachable")


def _begin_write_back(descriptor: int, n_bytes: int) -> None:
    """Have the disk begin with the last bytes of a large write, so that it does not wait for the fsync at the end."""
    if n_bytes >= _PIECE_BYTES and _sync_file_range is not None:
        # Only a hint: whatever goes wrong shows in the fsync.
        _sync_file_range(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - n_bytes, n_bytes, _SYNC_FILE_RANGE_WRITE)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        # Such a file system cannot tell a live writer from a dead one, so `sweep_partials` takes nothing there.
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def share(descriptor: int) -> None:
    """Lock an open file together with others who share it; waits while somebody has it alone."""
    with contextlib.suppress(OSError):  # without locks nobody is held off, and `take_alone` never says yes
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def take_alone(descriptor: int) -> bool | None:
    """Lock an open file alone: True, or False where others share it, or None where the file system cannot tell."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno == errno.EWOULDBLOCK else None
    return True


def remove_empty_folders(folder: Path) -> None:
    """Remove `folder` and what is under it, as far as there is no file in it."""
    for parent, _, _ in os.walk(folder, topdown=False):
        # A live writer that loses an empty folder makes it again.
        with contextlib.suppress(OSError):
            Path(parent).rmdir()


def sweep_partials(folder: Path, *, recursive: bool) -> int:
    """Remove what killed writers left in `folder`, and say how many; a live writer's file is left alone."""
    swept = 0
    for partial in _partials(folder, recursive=recursive):
        # Whatever cannot be opened, locked or removed is left: its writer lives (the kernel drops the lock when a
        # process dies), has just finished, or is not ours.
        with contextlib.suppress(OSError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()
            swept += 1
    return swept


def _partials(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        if not recursive:
            folders.clear()
        found = (Path(parent, name) for name in names if name.endswith(PARTIAL_SUFFIX))
        # Of links and pipes nobody knows where they lead, and to open a pipe may wait for ever.
        yield from (partial for partial in found if partial.is_file() and not partial.is_symlink())


def make_folder(folder: Path, *, root: Path) -> None:
    """Make `folder` and what it lacks of parents; from `root` down, all of them survive a crash."""
    if folder in _durable_folders:
        return
    if folder == root:
        _make_root(root)
    else:
        make_folder(folder.parent, root=root)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    _durable_folders.add(folder)


def _make_root(root: Path) -> None:
    missing = [folder for folder in (root, *root.parents) if not folder.is_dir()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        if folder != root:
            sync_folder(folder.parent)
    # A folder that may be entered but not listed cannot be synced.
    with contextlib.suppress(PermissionError):
        sync_folder(root.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
