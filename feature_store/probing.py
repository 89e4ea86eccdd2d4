"""What a storage really promises: each promise that a store rests on is put to the test in a temporary folder.

Nothing here can see a lie that only a power cut would show: a disk may answer fsync and keep the data in a cache.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from feature_store.durable_files import sync_folder
from feature_store.errors import StorageError, StoreError
from feature_store.remote_objects import RemoteRoot
from feature_store.roots import open_root

_FOLDER = "vitrine-doctor-"
_SMALL = b"x" * 1024
_LARGE_BYTES = 32 << 20
_PART_BYTES = 5 << 20  # the least that S3 takes
_ROUNDS = 10
_LONGEST_NAME = 255


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One promise, and whether it was kept.

    Attributes:
        name: the promise.
        kept: whether it was; None for what is only measured.
        needed: whether the commit protocol rests on it.
        found: what was seen.
        risk: what is at risk where it is not kept.
    """

    name: str
    kept: bool | None
    needed: bool
    found: str
    risk: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was probed.

    Attributes:
        url: of the place, without secrets.
        probes: in the order in which they were made.
    """

    url: str
    probes: tuple[Probe, ...]

    @property
    def suffices(self) -> bool:
        """Whether every promise that the commit protocol rests on was kept."""
        return all(probe.kept is not False for probe in self.probes if probe.needed)


class _BrokenPromiseError(Exception):
    """A probe saw that its promise is not kept."""


def diagnose(url: str) -> Diagnosis:
    """Probe the place that `url` names; what is written is removed again, and a folder that was missing is not made.

    Raises:
        StoreError: the place cannot be reached, written or cleaned up.
    """
    root = open_root(url)
    local = root.local_path("")
    if local is not None:
        with _temporary_folder(local) as folder:
            return Diagnosis(url=root.url, probes=tuple(_probe_disk(folder)))
    if not isinstance(root, RemoteRoot):
        raise StoreError(f"{root.url} is neither on this disk nor behind a URL, so nothing is known to probe.")
    return Diagnosis(url=root.url, probes=tuple(_probe_objects(root)))


# --- a file system ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _temporary_folder(place: Path) -> Iterator[Path]:
    """A folder of our own in `place`, or in the folder where it would be made."""
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    folder = above / f".{_FOLDER}{uuid.uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        raise StoreError(
            f"{above} cannot be written ({error.strerror}); choose a folder that you may write, or grant the right."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _probe_disk(folder: Path) -> Iterator[Probe]:
    yield _probe("fsync", lambda: _fsync(folder), "what was committed may be gone after a power cut")
    yield _probe("fsync of a folder", lambda: _sync_folder(folder), "a committed name may be gone after a power cut")
    yield _probe("rename over an existing name", lambda: _rename(folder), "a shard could not be computed anew")
    yield _probe("exclusive creation (link)", lambda: _link(folder), "two runs could mix two identities in one place")
    yield _probe("read after write", lambda: _read_back(folder), "a reader could see old bytes")
    yield _probe("list after write", lambda: _list_back(folder), "a resumed run could miss a receipt")
    yield _probe("memory map", lambda: _map(folder), "shards could not be read")
    yield _probe(
        "flock", lambda: _lock(folder), "files that killed writers left are not swept, and take space", needed=False
    )
    yield _probe("long names", lambda: _long_name(folder), "long model or selection names fail", needed=False)
    yield _probe(
        "names keep their case", lambda: _case(folder), "two models whose names differ in case alone would collide",
        needed=False,
    )  # fmt: skip
    free = shutil.disk_usage(folder).free
    yield Probe(name="free space", kept=None, needed=False, found=f"{free / 1e9:.1f} GB")
    yield from _measure_disk(folder)


def _fsync(folder: Path) -> str:
    with (folder / "fsync").open("wb", buffering=0) as file:

        def write() -> None:
            file.write(_SMALL)
            os.fsync(file.fileno())

        return _timed(write)


def _sync_folder(folder: Path) -> str:
    return _timed(lambda: sync_folder(folder))


def _rename(folder: Path) -> str:
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.rename(old)
    _require(old.read_bytes() == b"new" and not new.exists(), "the new content does not stand under the name alone")
    return "replaces at once"


def _link(folder: Path) -> str:
    one, two = folder / "one", folder / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    with contextlib.suppress(FileExistsError):
        os.link(one, two)
        raise _BrokenPromiseError("a link replaced a name that was taken")
    os.link(one, folder / "three")
    return "refuses a name that is taken"


def _read_back(folder: Path) -> str:
    for number in range(_ROUNDS):
        (folder / "again").write_bytes(str(number).encode())
        _require((folder / "again").read_bytes() == str(number).encode(), f"old bytes after write {number}")
    return f"{_ROUNDS} of {_ROUNDS}"


def _list_back(folder: Path) -> str:
    (folder / "listed").mkdir()
    for number in range(_ROUNDS):
        (folder / "listed" / str(number)).write_bytes(b"")
        _require(len(os.listdir(folder / "listed")) == number + 1, f"file {number} is not listed")  # noqa: PTH208
    return f"{_ROUNDS} of {_ROUNDS}"


def _map(folder: Path) -> str:
    (folder / "mapped").write_bytes(_SMALL)
    with (folder / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        _require(mapped[:] == _SMALL, "a map shows other bytes than were written")
    return "works"


def _lock(folder: Path) -> str:
    (folder / "locked").write_bytes(b"")
    with (folder / "locked").open("rb") as holder, (folder / "locked").open("rb") as other:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise _BrokenPromiseError("two hold the lock at once")
    return "holds"


def _long_name(folder: Path) -> str:
    longest = 0
    for length in (100, 143, 200, 242, _LONGEST_NAME):
        with contextlib.suppress(OSError):
            (folder / ("n" * length)).write_bytes(b"")
            longest = length
    _require(longest >= 242, f"only {longest} characters")
    return f"{longest} characters"


def _case(folder: Path) -> str:
    (folder / "case").write_bytes(b"lower")
    _require(not (folder / "CASE").exists(), "case and CASE are one file")
    return "case and CASE are two files"


def _measure_disk(folder: Path) -> Iterator[Probe]:
    content = os.urandom(_LARGE_BYTES)

    def write() -> None:
        with (folder / "large").open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())

    yield _speed("write with fsync", write)
    yield _speed("read (perhaps from the cache)", lambda: _require((folder / "large").read_bytes() == content, "other"))


# --- an object store -------------------------------------------------------------------------------------------------


def _probe_objects(root: RemoteRoot) -> Iterator[Probe]:
    folder = f"{_FOLDER}{uuid.uuid4().hex}"
    # The first request: what cannot be reached or written is an error of its own, not a broken promise.
    root.put(f"{folder}/first", [_SMALL])
    try:
        yield from _promises_of_objects(root, folder)
    finally:
        for path, _ in list(root.walk(folder)):
            root.remove(path)


def _promises_of_objects(root: RemoteRoot, folder: str) -> Iterator[Probe]:
    yield _probe("read after write", lambda: _object_read(root, folder), "a reader could see old bytes")
    yield _probe("list after write", lambda: _object_list(root, folder), "a resumed run could miss a receipt")
    yield _probe("gone after removal", lambda: _object_gone(root, folder), "what gc removed could come back")
    yield _probe("ranged reads", lambda: _object_range(root, folder), "tokens could not be read in part")
    yield _probe("writing in parts", lambda: _object_parts(root, folder), "large objects could not be written")
    yield _probe(
        "exclusive creation", lambda: _object_new(root, folder),
        "two runs that start within one request could both make a feature set; the loser sees it when it resumes",
        needed=False,
    )  # fmt: skip
    content = os.urandom(_LARGE_BYTES)
    yield _speed("write", lambda: root.put(f"{folder}/large", [content]))
    yield _speed("read", lambda: _require(root.read(f"{folder}/large") == content, "other bytes than were written"))
    yield _measured("latency", lambda: _timed(lambda: root.read_range(f"{folder}/first", 0, 9)))


def _object_read(root: RemoteRoot, folder: str) -> str:
    for number in range(_ROUNDS):
        content = str(number).encode()
        root.put(f"{folder}/again", [content])
        _require(root.read(f"{folder}/again") == content, f"old bytes after write {number}")
    return f"{_ROUNDS} of {_ROUNDS}"


def _object_list(root: RemoteRoot, folder: str) -> str:
    for number in range(_ROUNDS):
        root.put(f"{folder}/listed/{number}", [b""])
        _require(len(root.list(f"{folder}/listed")) == number + 1, f"object {number} is not listed")
    return f"{_ROUNDS} of {_ROUNDS}"


def _object_gone(root: RemoteRoot, folder: str) -> str:
    root.remove(f"{folder}/listed/0")
    _require(not root.exists(f"{folder}/listed/0"), "an object that was removed is still there")
    _require("0" not in root.list(f"{folder}/listed"), "an object that was removed is still listed")
    return "not read, not listed"


def _object_range(root: RemoteRoot, folder: str) -> str:
    root.put(f"{folder}/range", [bytes(range(256))])
    _require(root.read_range(f"{folder}/range", 7, 12) == bytes(range(7, 12)), "other bytes than those asked for")
    return "the bytes asked for"


def _object_parts(root: RemoteRoot, folder: str) -> str:
    content = os.urandom(2 * _PART_BYTES + 1)
    root.put_in_parts(f"{folder}/parts", content, _PART_BYTES)
    _require(root.read(f"{folder}/parts") == content, "other bytes than were written")
    return f"{len(content) / 1e6:.0f} MB in three"


def _object_new(root: RemoteRoot, folder: str) -> str:
    _require(root.put_new(f"{folder}/new", b"first"), "a free name is refused")
    _require(not root.create_exclusively(f"{folder}/new", b"second"), "a name that is taken is written over")
    return "refuses a name that is taken"


# --- both ------------------------------------------------------------------------------------------------------------


def _probe(name: str, act: Callable[[], str], risk: str, *, needed: bool = True) -> Probe:
    try:
        return Probe(name=name, kept=True, needed=needed, found=act())
    except StorageError:
        raise
    except (_BrokenPromiseError, OSError, StoreError) as error:
        return Probe(name=name, kept=False, needed=needed, found=_said(error), risk=risk)


def _said(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})" if number else str(error)


def _require(kept: bool, found: str) -> None:
    if not kept:
        raise _BrokenPromiseError(found)


def _timed(act: Callable[[], object]) -> str:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return f"{sorted(times)[_ROUNDS // 2] * 1e3:.2f} ms"


def _speed(name: str, act: Callable[[], None]) -> Probe:
    def measured() -> str:
        start = time.perf_counter()
        act()
        return f"{_LARGE_BYTES / 1e6 / (time.perf_counter() - start):.0f} MB/s"

    return _measured(name, measured)


def _measured(name: str, act: Callable[[], str]) -> Probe:
    """What `act` found; a promise that is not kept is one that was needed."""
    probe = _probe(name, act, "what is read is not what was written")
    return probe if probe.kept is False else Probe(name=name, kept=None, needed=False, found=probe.found)
