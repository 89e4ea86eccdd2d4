"""Files and folders outside a store that appear whole or not at all.

What is being written stands beside its place under a name that begins with a dot and ends in `.partial`, locked while
its writer lives. A kill leaves no more than that; the next export to the same place removes it.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from feature_store.durable_files import PARTIAL_SUFFIX, sync_folder
from feature_store.errors import StoreError


class ExportRefusedError(StoreError, ValueError):
    """An export that was asked for and cannot be made, with the reason and the way out."""


@contextlib.contextmanager
def appearing_file(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write one file at, which becomes `place` when the block ends well and vanishes when it does not.

    Raises:
        ExportRefusedError: something stands at `place` and `overwrite` is False, or its folder is not there.
    """
    with _partial(place, overwrite=overwrite) as partial:
        partial.touch()
        with _locked(partial):
            yield partial
            _sync(partial)
            if place.is_dir():
                _swap(partial, place)
            else:
                partial.rename(place)
    sync_folder(place.parent)


@contextlib.contextmanager
def appearing_folder(place: Path, *, overwrite: bool) -> Iterator[Path]:
    """As `appearing_file`, for a folder with all that the block writes in it."""
    with _partial(place, overwrite=overwrite) as partial:
        partial.mkdir()
        with _locked(partial):
            yield partial
            for path in sorted(partial.rglob("*")):
                _sync(path)
            _sync(partial)
            if place.exists():
                _swap(partial, place)
            else:
                partial.rename(place)
    sync_folder(place.parent)


@contextlib.contextmanager
def _partial(place: Path, *, overwrite: bool) -> Iterator[Path]:
    if (place.exists() or place.is_symlink()) and not overwrite:
        raise ExportRefusedError(f"{place} exists; choose another path, or pass --overwrite to replace it.")
    if not place.parent.is_dir():
        raise ExportRefusedError(f"{place.parent} is not a folder; make it first, or choose another path.")
    _sweep(place)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
    finally:
        _remove(partial)


def _swap(partial: Path, place: Path) -> None:
    """Put `partial` where a folder or another kind of file stands, which rename alone refuses."""
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
