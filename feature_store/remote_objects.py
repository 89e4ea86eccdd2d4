"""Objects behind an fsspec URL: S3, Google Cloud Storage, memory and whatever else fsspec knows."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.storage import FsspecStore

from feature_store.durable_files import Buffer
from feature_store.objects import ObjectRoot


class RemoteRoot(ObjectRoot):
    """Objects behind fsspec; a PUT that was answered is durable.

    fsspec may remember listings, and other processes write too, so what it remembers is dropped before each look.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.url = url.rstrip("/")

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _fresh(self, path: str) -> str:
        full = self._full(path)
        self._filesystem.invalidate_cache(full)
        return full

    def local_path(self, path: str) -> Path | None:
        """None: nothing here is on this machine's disk."""
        return None

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """See `ObjectRoot.read`."""
        # Asking for a range of an empty object is an error in some stores, so only what is too large is asked for so.
        larger = max_bytes is not None and (self.size_bytes(path) or 0) > max_bytes
        span = {"start": 0, "end": max_bytes} if larger else {}
        try:
            return bytes(self._filesystem.cat_file(self._full(path), **span))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise self.not_found(path) from error

    def size_bytes(self, path: str) -> int | None:
        """See `ObjectRoot.size_bytes`."""
        try:
            entry = self._filesystem.info(self._fresh(path))
        except FileNotFoundError:
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def list(self, folder: str) -> list[str]:
        """See `ObjectRoot.list`."""
        try:
            entries = self._filesystem.ls(self._fresh(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """See `ObjectRoot.put`."""
        self._filesystem.pipe_file(self._full(path), b"".join(parts))

    def put_new(self, path: str, data: bytes) -> bool:
        """See `ObjectRoot.put_new`."""
        if self.exists(path):
            return False
        try:
            self._filesystem.pipe_file(self._full(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def sweep_partials(self, folder: str, *, recursive: bool = True) -> int:
        """0: an object store shows no half-written object."""
        return 0

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `ObjectRoot.walk`."""
        try:
            found = self._filesystem.find(self._fresh(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        start = len(self._root) + 1 if self._root else 0
        yield from sorted((str(name)[start:], int(entry["size"])) for name, entry in found.items())

    def remove(self, path: str) -> None:
        """See `ObjectRoot.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.rm_file(self._fresh(path))

    def move(self, path: str, to: str) -> None:
        """See `ObjectRoot.move`; a copy, then a removal."""
        try:
            self._filesystem.cp_file(self._fresh(path), self._full(to))
        except FileNotFoundError as error:
            raise self.not_found(path) from error
        self.remove(path)

    def zarr_store(self, path: str) -> Any:
        """See `ObjectRoot.zarr_store`."""
        filesystem = self._filesystem
        if filesystem.async_impl:
            # zarr-python needs an instance that belongs to its own event loop.
            options = {**filesystem.storage_options, "asynchronous": True}
            filesystem = type(filesystem)(*filesystem.storage_args, **options)
        else:
            filesystem = AsyncFileSystemWrapper(filesystem, asynchronous=True)
        return FsspecStore(filesystem, path=self._full(path), read_only=True)
