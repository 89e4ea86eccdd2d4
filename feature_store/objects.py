"""Objects under one root, on a local disk or behind any fsspec URL: read, list, and written so that they stay.

On a local disk an object appears whole or not at all: it is written beside its place, synced, renamed, and the folder
is synced (zarr-python does none of the syncing). On an object store an answered PUT is the commit.
"""

import contextlib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import google_crc32c
import numpy as np

from feature_store.errors import CorruptError, StoreError, StoreNotFoundError

PARTIAL_SUFFIX = ".partial"
Buffer = bytes | memoryview
_WRITE_ATTEMPTS = 5
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")
_QUERY = re.compile(r"\?.*$")


def open_root(url: str) -> "ObjectRoot":
    """The objects under `url`: a path, `file://`, or any URL that fsspec knows.

    Raises:
        StoreError: fsspec knows no such protocol, or lacks the package for it.
    """
    protocol, _, path = url.partition("://")
    if not path:
        return LocalRoot(Path(url).expanduser().resolve())
    if protocol in {"file", "local"}:
        return LocalRoot(Path(path).expanduser().resolve())
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"cannot open {redact(url)!r}: {error}. Use a folder or a URL that fsspec can open."
        ) from error
    return RemoteRoot(filesystem, root, redact(url))


def redact(url: str) -> str:
    """`url` without user, password and query, fit for logs and records."""
    return _QUERY.sub("", _CREDENTIALS.sub("", url))


class ObjectRoot:
    """What the store needs of a place; paths are relative, with `/`."""

    url: str

    def read(self, path: str) -> bytes:
        """The whole object.

        Raises:
            StoreNotFoundError: there is none.
        """
        raise NotImplementedError

    def size_bytes(self, path: str) -> int | None:
        """The object's size, or None where there is none."""
        raise NotImplementedError

    def list(self, folder: str) -> list[str]:
        """Sorted names directly in `folder`, files and folders; empty where there is no folder."""
        raise NotImplementedError

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """Write an object whole, over any other, and return when it will survive a crash."""
        raise NotImplementedError

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless one stands there; False when one does. Two writers never both get True on a local disk."""
        raise NotImplementedError

    def sweep_partials(self, folder: str) -> int:
        """Remove what killed writers left under `folder`, and say how many; a live writer's file is left alone."""
        raise NotImplementedError

    def local_path(self, path: str) -> Path | None:
        """Where the object is on this machine's disk, or None."""
        raise NotImplementedError

    def zarr_store(self, path: str) -> Any:
        """What zarr-python opens to read the group or array at `path`."""
        raise NotImplementedError

    def exists(self, path: str) -> bool:
        """Whether an object stands at `path`."""
        return self.size_bytes(path) is not None


class LocalRoot(ObjectRoot):
    """Objects that are files of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def local_path(self, path: str) -> Path:
        """Where the object is; never outside the root, symlinks resolved."""
        place = self._root / path
        resolved = place.resolve()
        if resolved != self._root and self._root not in resolved.parents:
            raise CorruptError(f"{path!r} leads out of the store {self._root}; remove the link or fix the name.")
        return place

    def read(self, path: str) -> bytes:
        try:
            return self.local_path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise StoreNotFoundError(f"{self._root / path} does not exist.") from error

    def size_bytes(self, path: str) -> int | None:
        try:
            status = self.local_path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.local_path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        place = self.local_path(path)
        make_folder(place.parent)
        for attempt in range(1, _WRITE_ATTEMPTS + 1):
            try:
                with _partial_file(place) as partial:
                    _write_and_sync(partial, parts)
                    partial.rename(place)
                break
            except OSError as error:
                # EIO: the pages are lost, so only a new file helps. ENOENT: somebody removed the partial file.
                if error.errno not in {errno.EIO, errno.ENOENT} or attempt == _WRITE_ATTEMPTS:
                    raise
        sync_folder(place.parent)

    def put_new(self, path: str, data: bytes) -> bool:
        place = self.local_path(path)
        make_folder(place.parent)
        with _partial_file(place) as partial:
            _write_and_sync(partial, [data])
            try:
                os.link(partial, place)  # unlike rename, link refuses to replace
            except FileExistsError:
                return False
        sync_folder(place.parent)
        return True

    def sweep_partials(self, folder: str) -> int:
        swept = 0
        for partial in self.local_path(folder).rglob(f"*{PARTIAL_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError), partial.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives: the kernel drops the lock when a process dies
                partial.unlink()
                swept += 1
        return swept

    def zarr_store(self, path: str) -> Any:
        return str(self.local_path(path))


class RemoteRoot(ObjectRoot):
    """Objects behind fsspec; a PUT that was answered is durable."""

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.url = url

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def local_path(self, path: str) -> Path | None:
        return None

    def read(self, path: str) -> bytes:
        try:
            return bytes(self._filesystem.cat_file(self._full(path)))
        except FileNotFoundError as error:
            raise StoreNotFoundError(f"{self.url}/{path} does not exist.") from error

    def size_bytes(self, path: str) -> int | None:
        try:
            return int(self._filesystem.info(self._full(path))["size"])
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> list[str]:
        self._filesystem.invalidate_cache(self._full(folder))
        try:
            entries = self._filesystem.ls(self._full(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        self._filesystem.pipe_file(self._full(path), b"".join(parts))

    def put_new(self, path: str, data: bytes) -> bool:
        # Not exclusive everywhere; harmless, since an object's content is a function of its name.
        if self.exists(path):
            return False
        self.put(path, [data])
        return True

    def sweep_partials(self, folder: str) -> int:
        return 0

    def zarr_store(self, path: str) -> Any:
        # Imported late: reading a local store by memory map needs no zarr storage backend.
        from zarr.storage import FsspecStore

        filesystem = self._filesystem
        if not filesystem.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            filesystem = AsyncFileSystemWrapper(filesystem, asynchronous=True)
        return FsspecStore(filesystem, path=self._full(path), read_only=True)


def crc32c(parts: Iterable[Buffer], start: int = 0) -> int:
    """The CRC-32C of the concatenated parts."""
    value = start
    for part in parts:
        octets = np.frombuffer(part, dtype=np.uint8)
        octets.flags.writeable = False  # the C code takes read-only buffers alone, and this copies nothing
        value = google_crc32c.extend(value, octets)
    return value


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents so that they survive a crash."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _partial_file(place: Path) -> Iterator[Path]:
    """A name beside `place` that is gone afterwards, whatever happened short of a kill."""
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _write_and_sync(partial: Path, parts: Sequence[Buffer]) -> None:
    with partial.open("xb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[file.write(view) :]  # a raw write may be short
        os.fsync(file.fileno())
