"""An object store in memory that counts what it is asked for, as S3 would count it and send the bill."""

import bisect
import threading
import time
from collections import Counter
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

NAMES_PER_LISTING = 1000


class CountedFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec says nothing of its types
    """`counted://`: whole keys without folders, listings in pages of a thousand names, and every request counted."""

    protocol = "counted"
    cachable = False
    objects: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[Counter[str]] = Counter()
    octets: ClassVar[int] = 0
    # The most requests that were under way at one time.
    side_by_side: ClassVar[int] = 0
    latency_s: ClassVar[float] = 0.0
    _under_way: ClassVar[int] = 0
    _keys: ClassVar[list[str] | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def register(cls) -> None:
        """Let fsspec know `counted://`, with nothing in it."""
        fsspec.register_implementation("counted", cls, clobber=True)
        cls.objects.clear()
        cls._keys = None
        cls.forget()

    @classmethod
    def forget(cls) -> None:
        """Count from nothing."""
        cls.requests.clear()
        cls.octets = 0
        cls.side_by_side = 0

    @classmethod
    def _count(cls, kind: str, *, octets: int = 0, times: int = 1) -> None:
        with cls._lock:
            cls.requests[kind] += times
            cls.octets += octets
            cls._under_way += 1
            cls.side_by_side = max(cls.side_by_side, cls._under_way)
        if cls.latency_s:
            time.sleep(cls.latency_s * times)
        with cls._lock:
            cls._under_way -= 1

    @classmethod
    def delete(cls, url: str) -> None:
        """Remove an object behind everybody's back, uncounted."""
        with cls._lock:
            del cls.objects[cls._strip_protocol(url)]
            cls._keys = None

    @classmethod
    def _below(cls, prefix: str) -> list[str]:
        with cls._lock:
            if cls._keys is None:
                cls._keys = sorted(cls.objects)
            keys = cls._keys
        return keys[bisect.bisect_left(keys, prefix) : bisect.bisect_left(keys, prefix[:-1] + chr(ord(prefix[-1]) + 1))]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("counted://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """One GET."""
        content = self.objects.get(self._strip_protocol(path))
        found = b"" if content is None else content[start:end]
        self._count("GET", octets=len(found))
        if content is None:
            raise FileNotFoundError(path)
        return found

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """One HEAD, and a listing where there is no such key."""
        key = self._strip_protocol(path)
        self._count("HEAD")
        if key in self.objects:
            return {"name": key, "size": len(self.objects[key]), "type": "file"}
        self._count("LIST")
        if self._below(f"{key}/"):
            return {"name": key, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What is directly below, in pages."""
        prefix = f"{self._strip_protocol(path)}/"
        found: dict[str, dict[str, Any]] = {}
        for key in self._below(prefix):
            name, deeper, _ = key.removeprefix(prefix).partition("/")
            size = 0 if deeper else len(self.objects[key])
            found[prefix + name] = {"name": prefix + name, "size": size, "type": "directory" if deeper else "file"}
        self._count("LIST", times=max(1, -(-len(found) // NAMES_PER_LISTING)))
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def find(self, path: str, detail: bool = False, **options: Any) -> Any:
        """Every key below, in pages."""
        found = {key: {"name": key, "size": len(self.objects[key]), "type": "file"}
                 for key in self._below(f"{self._strip_protocol(path)}/")}  # fmt: skip
        self._count("LIST", times=max(1, -(-len(found) // NAMES_PER_LISTING)))
        return found if detail else list(found)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """One PUT."""
        key = self._strip_protocol(path)
        self._count("PUT", octets=len(value))
        with self._lock:
            if mode == "create" and key in self.objects:
                raise FileExistsError(path)
            if key not in self.objects:
                type(self)._keys = None
            self.objects[key] = bytes(value)

    def rm_file(self, path: str) -> None:
        """One DELETE."""
        self._count("DELETE")
        with self._lock:
            if self.objects.pop(self._strip_protocol(path), None) is not None:
                type(self)._keys = None
