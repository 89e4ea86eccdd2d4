"""Files and folders outside a store that appear whole or not at all, in place of nothing but what they may replace.

What is being written stands beside its place under a name that begins with a dot and ends in `.partial`, locked while
its writer lives. A kill leaves no more than that; the next export to the same place removes it.
"""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from feature_store.durable_files import PARTIAL_SUFFIX, sync_folder
from feature_store.errors import StoreError
from feature_store.exports.places import check_place

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ExportFailedError(StoreError, OSError):
    """The disk does not take an export; nothing of it stays."""

    def __str__(self) -> str:
        # OSError's own form would print "(errno, message)".
        return str(self.args[0])


@contextlib.contextmanager
def appearing_file(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write one file at, which becomes `place` when the block ends well and vanishes when it does not.

    Raises:
        ExportRefusedError: see `check_place`.
        ExportFailedError: it cannot be written.
    """
    with _partial(place, folder=False, overwrite=overwrite) as (partial, real):
        partial.touch()
        with _locked(partial):
            yield partial
            _sync(partial)
            check_place(place, folder=False, overwrite=overwrite)  # again, since much may happen while it is written
            partial.rename(real)
            sync_folder(real.parent)


@contextlib.contextmanager
def appearing_folder(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """As `appearing_file`, for a folder with all that the block writes in it."""
    with _partial(place, folder=True, overwrite=overwrite) as (partial, real):
        partial.mkdir()
        with _locked(partial):
            yield partial
            for path in sorted(partial.rglob("*")):
                _sync(path)
            _sync(partial)
            check_place(place, folder=True, overwrite=overwrite)
            if real.exists():
                _swap(partial, real)
            else:
                partial.rename(real)
            sync_folder(real.parent)


@contextlib.contextmanager
def _partial(place: Path, *, folder: bool, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Where to write, and the place itself without links on the way to it."""
    real = check_place(place, folder=folder, overwrite=overwrite)
    _sweep(real)
    partial = real.with_name(f".{real.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial, real
    except OSError as error:
        # What reading the store raises has words of its own; a file elsewhere is named by the error.
        if isinstance(error, StoreError) or not _is_within(error.filename, real.parent):
            raise
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        way_out = "free some space, or choose another path" if error.errno in _NO_SPACE else "choose another path"
        raise ExportFailedError(f"{place} cannot be written ({reason}); {way_out}. Nothing of it was kept.") from error
    finally:
        _remove(partial)


def _is_within(name: object, folder: Path) -> bool:
    """Whether an error is about a file in `folder`; writing to an open file names none."""
    return not isinstance(name, str | bytes) or Path(os.fsdecode(name)).is_relative_to(folder)


def _swap(partial: Path, place: Path) -> None:
    """Put `partial` where a folder stands, which rename alone refuses."""
    old = place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    place.rename(old)
    partial.rename(place)
    _remove(old)


def _sweep(place: Path) -> None:
    """Remove what killed exports to this place left; a live one's is locked and stays."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*{PARTIAL_SUFFIX}"):
        if len(left.name) != len(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"):
            continue  # another place's, whose name begins with this one's
        with contextlib.suppress(OSError), _locked(left):
            _remove(left)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
