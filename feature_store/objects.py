"""Objects under one root, on a local disk or behind any fsspec URL: read, list, and written so that they stay.

On a local disk an object appears whole or not at all, see `durable_files`. On an object store an answered PUT is the
commit.
"""

import contextlib
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import google_crc32c
import numpy as np

from feature_store.durable_files import (
    Buffer,
    link_file,
    make_folder,
    remove_empty_folders,
    share,
    sweep_partials,
    sync_folder,
    take_alone,
    write_file,
)
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.lock_holder import HOLDER_FILE, naming_holder, share_or_wait

# To the last @ of the host's part: a password may hold one too.
_CREDENTIALS = re.compile(r"(?<=://)[^/]*@")
_QUERY = re.compile(r"[?#].*$")
_FILE, _FOLDER = "file", "folder"
# What file systems allow; a name of the store's own is far shorter.
_MAX_NAME_BYTES, _MAX_PATH_CHARACTERS = 255, 2048
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def local_folder(path: str) -> Path:
    """The folder of this machine that `path` names, links resolved.

    Raises:
        StoreError: an empty or impossible path.
    """
    if not path:
        raise StoreError("the store's path is empty; name a folder or a URL.")
    try:
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # an unknown ~user, a NUL, a loop of links
        raise StoreError(f"{path!r} cannot be a store's path ({error}); name a folder or a URL.") from error


def redact(url: str) -> str:
    """`url` without user, password, query and fragment, fit for logs and records."""
    return _QUERY.sub("", _CREDENTIALS.sub("", url))


class ObjectRoot:
    """What the store needs of a place; paths are relative, with `/`."""

    url: str

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """The whole object, or its first `max_bytes`.

        Raises:
            StoreNotFoundError: there is none.
        """
        raise NotImplementedError

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes `start`:`stop` of an object, all of them.

        Raises:
            StoreNotFoundError: there is none.
            CorruptError: it ends before `stop`.
        """
        raise NotImplementedError

    def read_ranges(self, path: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Several ranges of an object in the order asked for, as `read_range` gives them."""
        return (self.read_range(path, start, stop) for start, stop in spans)

    def size_bytes(self, path: str) -> int | None:
        """The object's size, or None where there is none."""
        raise NotImplementedError

    def list(self, folder: str) -> list[str]:
        """Sorted names directly in `folder`, of files and folders; empty where there is no folder.

        Links, pipes and the like are passed over, see `strays`.
        """
        raise NotImplementedError

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """Write an object whole, over any other, and return when it will survive a crash."""
        raise NotImplementedError

    def put_new(self, path: str, data: bytes) -> bool:
        """Write an object unless one stands there; False when one does.

        Of two writers on a local disk never both get True. Nor on an object store that fsspec can ask for it; on others
        they may, so whoever needs one winner reads and compares.
        """
        raise NotImplementedError

    def side_by_side(self, action: Callable[[_Item], _Result], items: Sequence[_Item]) -> Sequence[_Result]:
        """`action` of each item, in order: for requests that do not depend on one another.

        Behind a URL many are under way at a time, since each is mostly waiting; a disk answers at once. An action
        should be one request or a few, with small answers.
        """
        return [action(item) for item in items]

    def sizes(self, folders: Sequence[str]) -> dict[str, int]:
        """The size in bytes of every object under these folders, by path: one listing a folder, whatever it holds."""
        return dict(chain.from_iterable(self.side_by_side(lambda folder: list(self.walk(folder)), folders)))

    def share(self, path: str, to: str) -> None:
        """Let an object stand under a second name too, over any other of that name, as durably as after `put`.

        On a local disk both names lead to one file; an object store copies the object by itself. Where neither is
        possible, it is read and put.

        Raises:
            StoreNotFoundError: there is no such object.
        """
        self.put(to, [self.read(path)])

    def sweep_partials(self, folder: str, *, recursive: bool = True) -> int:
        """Remove what killed writers left under `folder`, and say how many; a live writer's file is left alone."""
        raise NotImplementedError

    def settle(self, folder: str) -> None:
        """Make the names in `folder` survive a crash, whoever gave them and was perhaps killed before that."""

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """The path and size in bytes of every object under `folder`, at any depth, in the order of paths."""
        raise NotImplementedError

    def strays(self, folder: str) -> Iterator[tuple[str, str]]:
        """The path and the kind of whatever is neither file nor folder under `folder`, at any depth: links, pipes."""
        return iter(())

    def remove(self, path: str) -> None:
        """Remove an object, so that it stays removed, of a link the link; nothing happens where there is none."""
        raise NotImplementedError

    def tidy(self, folder: str) -> None:
        """Remove `folder` and the folders in it, as far as they are empty."""

    def join_writers(self, path: str) -> None:
        """Let `alone` know, on this machine, that this process writes here, for as long as this root is in use.

        Waits while another process is alone, and says for whom. Nothing that is written depends on it: it only keeps
        removals away.

        Args:
            path: of an object that every user of this root names, and that is never replaced.
        """

    @contextlib.contextmanager
    def alone(self, path: str, *, command: str) -> Iterator[bool | None]:
        """Keep those out who `join_writers` while the block runs.

        Args:
            path: see `join_writers`.
            command: for whom those who come meanwhile are told to wait.

        Yields:
            Whether they are out; False when one is at work, None where nobody can tell, as on object stores.
        """
        yield None

    def move(self, path: str, to: str) -> None:
        """Give an object another name, over any other of that name; at no instant is its content under neither.

        A link is renamed, not what it leads to.

        Raises:
            StoreNotFoundError: there is none.
        """
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

    def not_found(self, path: str) -> StoreNotFoundError:
        """The error that says that there is no object at `path`."""
        return StoreNotFoundError(
            f"{self.url}/{path} does not exist, and the store needs it. Restore it from a copy, or extract again."
        )


class LocalRoot(ObjectRoot):
    """Objects that are files of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._shared: int | None = None
        self.url = str(root)

    def local_path(self, path: str) -> Path:
        """Where the object is; never outside the root, symlinks resolved."""
        self._inside(path, path)
        return self._root / path

    def _inside(self, path: str, followed: str) -> None:
        """Refuse a `path` of which the part `followed` leads out of the root, symlinks resolved."""
        try:
            if max(map(len, os.fsencode(path).split(b"/"))) > _MAX_NAME_BYTES or len(path) > _MAX_PATH_CHARACTERS:
                raise ValueError("too long")
            resolved = (self._root / followed).resolve()
        except (RuntimeError, ValueError, OSError) as error:  # a loop of links, a NUL, a name beyond all bounds
            raise CorruptError(
                f"{path[:200]!r} cannot be a path in {self._root} ({error}); fix the name or remove the link."
            ) from error
        if resolved != self._root and self._root not in resolved.parents:
            raise CorruptError(f"{path[:200]!r} leads out of the store {self._root}; remove the link or fix the name.")

    def _own_place(self, path: str) -> Path:
        """Where the entry of this name is; what it leads to, when it is a link, does not matter."""
        self._inside(path, path.rpartition("/")[0])
        if path.rpartition("/")[2] in {"", ".", ".."}:
            raise CorruptError(f"{path[:200]!r} names nothing in {self._root}; fix the name.")
        return self._root / path

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `ObjectRoot.read`."""
        try:
            with self._open(path) as file:
                return file.read(-1 if max_bytes is None else max_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self.not_found(path) from error

    def _open(self, path: str) -> BinaryIO:
        """The file at `path`, for reading; a pipe has nobody at its other end, and is not waited for.

        Raises:
            FileNotFoundError: there is none, or it is no regular file.
        """
        file = open(self.local_path(path), "rb", opener=_open_at_once)  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise FileNotFoundError(path)
        return file

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """See `ObjectRoot.read_range`."""
        try:
            with self._open(path) as file:
                file.seek(start)
                data = file.read(stop - start)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self.not_found(path) from error
        if len(data) != stop - start:
            raise CorruptError(
                f"{self.url}/{path} ends at byte {start + len(data)}, and bytes {start}:{stop} of it are needed: it "
                "was cut off. Remove it and run the same `vitrine extract` again."
            )
        return data

    def size_bytes(self, path: str) -> int | None:
        """See `ObjectRoot.size_bytes`; a folder is no object."""
        try:
            status = self.local_path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, folder: str) -> list[str]:
        """See `ObjectRoot.list`."""
        try:
            with os.scandir(self.local_path(folder)) as entries:
                return sorted(
                    entry.name for entry in entries if _kind(entry) in {_FILE, _FOLDER} and entry.name != HOLDER_FILE
                )
        except (FileNotFoundError, NotADirectoryError):
            return []

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """See `ObjectRoot.put`."""
        write_file(self.local_path(path), parts, root=self._root, replace=True)

    def put_new(self, path: str, data: bytes) -> bool:
        """See `ObjectRoot.put_new`."""
        return write_file(self.local_path(path), [data], root=self._root, replace=False)

    def share(self, path: str, to: str) -> None:
        """See `ObjectRoot.share`."""
        source = self.local_path(path)
        if self.size_bytes(path) is None or source.is_symlink():
            raise self.not_found(path)
        try:
            linked = link_file(source, self.local_path(to), root=self._root)
        except FileNotFoundError as error:
            raise self.not_found(path) from error
        if not linked:
            super().share(path, to)

    def sweep_partials(self, folder: str, *, recursive: bool = True) -> int:
        """See `ObjectRoot.sweep_partials`."""
        return sweep_partials(self.local_path(folder), recursive=recursive)

    def settle(self, folder: str) -> None:
        """See `ObjectRoot.settle`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            sync_folder(self.local_path(folder))

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `ObjectRoot.walk`; links are not followed."""
        found: list[tuple[str, int]] = []
        waiting = [(str(self.local_path(folder)), folder.strip("/"))]
        while waiting:
            place, path = waiting.pop()
            # A folder or a file may be gone by now: a writer beside has just given it its name.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
                for entry in entries:
                    below = f"{path}/{entry.name}" if path else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, below))
                    elif entry.is_file(follow_symlinks=False) and below != HOLDER_FILE:
                        with contextlib.suppress(FileNotFoundError):
                            found.append((below, entry.stat(follow_symlinks=False).st_size))
        yield from sorted(found)

    def strays(self, folder: str) -> Iterator[tuple[str, str]]:
        """See `ObjectRoot.strays`."""
        waiting = [folder]
        while waiting:
            inside = waiting.pop()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                with os.scandir(self.local_path(inside)) as entries:
                    found = [(f"{inside}/{entry.name}".lstrip("/"), _kind(entry)) for entry in entries]
                waiting += [path for path, kind in found if kind == _FOLDER]
                yield from ((path, kind) for path, kind in found if kind not in {_FILE, _FOLDER})

    def remove(self, path: str) -> None:
        """See `ObjectRoot.remove`."""
        place = self._own_place(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.unlink()
            sync_folder(place.parent)

    def tidy(self, folder: str) -> None:
        """See `ObjectRoot.tidy`."""
        remove_empty_folders(self.local_path(folder))

    def join_writers(self, path: str) -> None:
        """See `ObjectRoot.join_writers`."""
        if self._shared is None:
            self._shared = os.open(self.local_path(path), os.O_RDONLY | os.O_NONBLOCK)
            weakref.finalize(self, os.close, self._shared)
            share_or_wait(self._shared, self._root)

    @contextlib.contextmanager
    def alone(self, path: str, *, command: str) -> Iterator[bool | None]:
        """See `ObjectRoot.alone`."""
        if self._shared is not None:
            # Our own share is exchanged; a second lock of ours would stand in the way of the first.
            try:
                with self._taking_alone(self._shared, command) as taken:
                    yield taken
            finally:
                share(self._shared)
            return
        try:
            descriptor = os.open(self.local_path(path), os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, CorruptError):
            yield True  # no writer can join without it, nor by a link that leads away
            return
        try:
            with self._taking_alone(descriptor, command) as taken:
                yield taken
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _taking_alone(self, descriptor: int, command: str) -> Iterator[bool | None]:
        taken = take_alone(descriptor)
        with naming_holder(self._root, command) if taken else contextlib.nullcontext():
            yield taken

    def move(self, path: str, to: str) -> None:
        """See `ObjectRoot.move`."""
        source, target = self._own_place(path), self._own_place(to)
        make_folder(target.parent, root=self._root)
        try:
            source.rename(target)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.not_found(path) from error
        sync_folder(target.parent)
        sync_folder(source.parent)

    def zarr_store(self, path: str) -> Any:
        """See `ObjectRoot.zarr_store`."""
        return str(self.local_path(path))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _kind(entry: "os.DirEntry[str]") -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    return _FILE if entry.is_file(follow_symlinks=False) else "pipe, socket or device"


def crc32c(parts: Iterable[Buffer], start: int = 0) -> int:
    """The CRC-32C of the concatenated parts."""
    value = start
    for part in parts:
        octets = np.frombuffer(part, dtype=np.uint8)
        octets.flags.writeable = False  # the C code takes read-only buffers alone, and this copies nothing
        value = google_crc32c.extend(value, octets)
    return value
