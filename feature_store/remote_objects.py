"""Objects behind an fsspec URL: S3, Google Cloud Storage, memory and whatever else fsspec knows.

An answered PUT is the commit. One whose answer was lost is neither done nor failed; every object's content is a
function of its name, so it is simply put again. Calls are retried here and nowhere below, see `remote_calls`.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from feature_store.durable_files import Buffer
from feature_store.errors import CorruptError, StoreError
from feature_store.objects import ObjectRoot
from feature_store.read_ahead import read_ahead
from feature_store.remote_calls import Caller, answer_of
from feature_store.remote_ranges import RangeIgnoredError, get_range

# One request's share of a large object: large against a request's own cost, small against memory.
PIECE_BYTES = 8 << 20
# On S3 objects from twice this size come in parts.
PART_BYTES = 64 << 20
# Small requests that are under way at a time. The client has as many connections, see `roots`.
SIDE_BY_SIDE = 32
_BEYOND_END = "InvalidRange"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
# Set in the threads of `side_by_side`: what asks for more threads there would multiply them.
_one_of_many = threading.local()
# A forked process must not drop its parent's clients: they would try to say goodbye through the parent's sockets.
_inherited: list[Any] = []


class ShortAnswerError(ConnectionError):
    """A body ended before its time."""


class RemoteRoot(ObjectRoot):
    """Objects behind fsspec; a PUT that was answered is durable.

    May be pickled, forked and shared by threads: the client, which may be none of it, is made anew in each process.

    Args:
        make: fsspec's class and the keywords that it takes.
        root: the path that fsspec makes of the URL.
        url: without secrets.
    """

    def __init__(self, make: tuple[Callable[..., Any], Mapping[str, Any]], root: str, url: str) -> None:
        self._make = make
        self._root = root.rstrip("/")
        self.url = url.rstrip("/")
        self._caller = Caller(self.url)
        self._opened: tuple[int, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteRoot, (self._make, self._root, self.url)

    @property
    def _filesystem(self) -> Any:
        """The client of this process. fsspec keeps one for all that ask for the same."""
        if self._opened is None or self._opened[0] != os.getpid():
            _inherited.append(self._opened)
            kind, options = self._make
            filesystem = kind(**options)
            if hasattr(filesystem, "retries"):
                filesystem.retries = 1  # s3fs's and gcsfs's own; ours would be multiplied by it
            self._opened = (os.getpid(), filesystem)
        return self._opened[1]

    def _call(self, doing: str, action: Callable[[], _Result]) -> _Result:
        return self._caller.call(doing, action)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _fresh(self, path: str) -> str:
        """The full path. fsspec may remember listings, and other processes write too: what it remembers is dropped."""
        full = self._full(path)
        self._filesystem.invalidate_cache(full)
        return full

    def local_path(self, path: str) -> Path | None:
        """None: nothing here is on this machine's disk."""
        return None

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `ObjectRoot.read`; one request for what is small."""
        most = PIECE_BYTES if max_bytes is None else min(max_bytes, PIECE_BYTES)
        try:
            first = self._call(f"read {path}", lambda: self._get(path, 0, most))
            if len(first) < PIECE_BYTES or len(first) == max_bytes:
                return first
            size_bytes = self.size_bytes(path) or 0
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self.not_found(path) from error
        stop = size_bytes if max_bytes is None else min(size_bytes, max_bytes)
        return b"".join([first, *self.read_ranges(path, pieces(len(first), stop))])

    def _get(self, path: str, start: int, stop: int) -> bytes:
        """Bytes `start`:`stop`, fewer where the object ends before."""
        try:
            # Nobody can ask for nothing, and an object that is not there must be noticed all the same.
            return get_range(self._filesystem, self._full(path), start, max(stop, start + 1))[: stop - start]
        except OSError as error:
            if answer_of(error)[1] == _BEYOND_END:
                return b""
            raise
        except RangeIgnoredError as error:
            raise StoreError(
                f"{self.url} sends whole objects where a part is asked for: its server, or a proxy before it, passes "
                "over the header `Range`. Put the store where ranged reads are honoured; `vitrine doctor` probes a "
                "place."
            ) from error

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """See `ObjectRoot.read_range`."""

        def attempt() -> bytes:
            data = self._get(path, start, stop)
            if len(data) == stop - start:
                return data
            size_bytes = self.size_bytes(path)
            if size_bytes is not None and size_bytes < stop:
                raise CorruptError(
                    f"{self.url}/{path} has {size_bytes} bytes, and bytes {start}:{stop} of it are needed: it was cut "
                    "off. Remove it and run the same `vitrine extract` again."
                )
            raise ShortAnswerError(f"{len(data)} bytes came of {stop - start}")

        try:
            return self._call(f"read {path}", attempt)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise self.not_found(path) from error

    def read_ranges(self, path: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """See `ObjectRoot.read_ranges`; a few requests are under way at any time."""
        return read_ahead(lambda span: self.read_range(path, *span), spans)

    def side_by_side(self, action: Callable[[_Item], _Result], items: Sequence[_Item]) -> Sequence[_Result]:
        """See `ObjectRoot.side_by_side`; within an action further ones come one after another."""
        if len(items) <= 1 or getattr(_one_of_many, "is_one", False):
            return [action(item) for item in items]

        def one(item: _Item) -> _Result:
            _one_of_many.is_one = True
            try:
                return action(item)
            finally:
                _one_of_many.is_one = False

        return list(read_ahead(one, items, in_flight=SIDE_BY_SIDE))

    def size_bytes(self, path: str) -> int | None:
        """See `ObjectRoot.size_bytes`."""
        try:
            entry = self._call(f"look at {path}", lambda: self._filesystem.info(self._fresh(path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def list(self, folder: str) -> list[str]:
        """See `ObjectRoot.list`."""
        try:
            entries = self._call(
                f"list {folder}".rstrip(), lambda: self._filesystem.ls(self._fresh(folder), detail=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """See `ObjectRoot.put`."""
        # A part is repeated with all others, so what fits is put in one request.
        self.put_in_parts(path, b"".join(parts), PART_BYTES)

    def put_in_parts(self, path: str, data: bytes, part_bytes: int) -> None:
        """As `put`; where the storage is S3, in parts of so many bytes once there are two of them."""
        options = {"chunksize": part_bytes} if hasattr(self._filesystem, "call_s3") else {}
        self._call(f"write {path}", lambda: self._filesystem.pipe_file(self._full(path), data, **options))

    def put_new(self, path: str, data: bytes) -> bool:
        """See `ObjectRoot.put_new`.

        Where an answer was lost, an object of this content may be ours or another's who wrote the same: True for both.
        """
        return not self.exists(path) and self.create_exclusively(path, data)

    def create_exclusively(self, path: str, data: bytes) -> bool:
        """As `put_new`, but without looking first: where the storage itself does not refuse, nothing does."""

        def attempt() -> bool:
            try:
                self._filesystem.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                # Since the look above: another's, or ours whose answer was lost. The client itself sends a request
                # again whose connection broke, so this may be so in the first attempt.
                return self.read(path, max_bytes=len(data) + 1) == data
            except OSError as error:
                if answer_of(error)[0] != HTTPStatus.NOT_IMPLEMENTED:
                    raise
                self._filesystem.pipe_file(self._full(path), data)
            return True

        return self._call(f"write {path}", attempt)

    def share(self, path: str, to: str) -> None:
        """See `ObjectRoot.share`; the storage copies by itself where fsspec can ask it to."""
        try:
            self._call(f"write {to}", lambda: self._filesystem.cp_file(self._fresh(path), self._full(to)))
        except FileNotFoundError as error:
            raise self.not_found(path) from error
        except NotImplementedError:
            super().share(path, to)

    def sweep_partials(self, folder: str, *, recursive: bool = True) -> int:
        """0: an object store shows no half-written object."""
        return 0

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `ObjectRoot.walk`."""
        try:
            found = self._call(
                f"list {folder}".rstrip(), lambda: self._filesystem.find(self._fresh(folder), detail=True)
            )
        except (FileNotFoundError, NotADirectoryError):
            return
        start = len(self._root) + 1 if self._root else 0
        yield from sorted((str(name)[start:], int(entry["size"])) for name, entry in found.items())

    def remove(self, path: str) -> None:
        """See `ObjectRoot.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._call(f"remove {path}", lambda: self._filesystem.rm_file(self._fresh(path)))

    def move(self, path: str, to: str) -> None:
        """See `ObjectRoot.move`; a copy, then a removal."""
        self.share(path, to)
        self.remove(path)

    def zarr_store(self, path: str) -> Any:
        """See `ObjectRoot.zarr_store`; its requests are zarr-python's, retried by the client alone."""
        from zarr.storage import FsspecStore

        kind, options = self._make
        if getattr(kind, "async_impl", False):
            # zarr-python needs an instance that belongs to its own event loop.
            filesystem = kind(**options, asynchronous=True)
        else:
            filesystem = AsyncFileSystemWrapper(self._filesystem, asynchronous=True)
        return FsspecStore(filesystem, path=self._full(path), read_only=True)


def pieces(start: int, stop: int) -> list[tuple[int, int]]:
    """`start`:`stop` cut into spans of at most `PIECE_BYTES`."""
    return [(begin, min(begin + PIECE_BYTES, stop)) for begin in range(start, stop, PIECE_BYTES)]
