"""The state of one inspection: what stands in the store, what was found, and which objects are still to be read."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from feature_store import layout
from feature_store.durable_files import PARTIAL_SUFFIX
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.intact import object_crc32c
from feature_store.objects import ObjectRoot
from feature_store.receipts import StoredObject
from feature_store.records import parse_record, read_bounded, record_bytes
from feature_store.twins import FileKey, file_key
from feature_store.upkeep.findings import Finding, ReadProgress


@dataclass(frozen=True, kw_only=True)
class StatedData:
    """An object of data whose checksum a sound record states.

    Attributes:
        path: in the store.
        stated: size and checksum.
        owner: the folder of the feature set or dataset that it belongs to.
        place: its number among all objects that its owner can have.
        suspects: what `repair` moves aside when it fails.
        remedy: the way out.
    """

    path: str
    stated: StoredObject
    owner: str
    place: int
    suspects: tuple[str, ...]
    remedy: str


class Inspection:
    """Collects findings; a file that a live writer makes or replaces meanwhile is never taken for damage.

    Args:
        root: the store.
        folders: what to look at; everything by default.
    """

    def __init__(self, root: ObjectRoot, folders: Sequence[str] = ("",)) -> None:
        self.root = root
        self.sizes = {path: size for folder in folders for path, size in root.walk(folder)}
        self.strays = {path: kind for folder in folders for path, kind in root.strays(folder)}
        self._paths = sorted(self.sizes)
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []
        self.data: list[StatedData] = []
        self.objects_checked = 0
        self._known: set[str] = set()
        # Of each file with several names: the name under which it was read, and its checksum.
        self._read: dict[FileKey, tuple[str, int]] = {}

    def under(self, folder: str) -> list[str]:
        """The paths of all files under a folder."""
        # "0" is what follows "/".
        return self._paths[bisect_left(self._paths, f"{folder}/") : bisect_left(self._paths, f"{folder}0")]

    def problem(self, path: str, kind: str, text: str, suspects: Iterable[str] | None = None) -> None:
        """Something that is not as it must be."""
        moved = (path,) if suspects is None else tuple(suspects)
        self.problems.append(Finding(path=path, kind=kind, text=text, suspects=moved))

    def note(self, path: str, kind: str, text: str) -> None:
        """Something legal that is worth saying."""
        self.notes.append(Finding(path=path, kind=kind, text=text))

    def know(self, *paths: str) -> None:
        """Say that these files belong."""
        self._known.update(paths)

    def size_of(self, path: str) -> int | None:
        """The size of a file; what was not there when the inspection began is looked for again."""
        size = self.sizes.get(path)
        return self._size_now(path) if size is None else size

    def _size_now(self, path: str) -> int | None:
        try:
            return self.root.size_bytes(path)
        except CorruptError:
            return None  # a link on the way leads out of the store, and is named as a stray

    def record(self, path: str, remedy: str) -> dict[str, Any] | None:
        """The content of a record; None after a problem was found, or when the file has gone meanwhile."""
        self.know(path)
        if path in self.strays:
            return None  # named as what it is
        try:
            data = read_bounded(self.root, path)
            content = parse_record(data, name=path)
        except StoreNotFoundError:
            return None
        except CorruptError as error:
            self.problem(path, "record", str(error))
            return None
        except OSError as error:
            self.problem(path, "unreadable", f"{path} cannot be read ({error.strerror or error}). {remedy}")
            return None
        if data != record_bytes(content):
            self.problem(
                path,
                "record",
                f"{path} says what it must, but not in the bytes that Vitrine writes: something changed it. {remedy}",
            )
            return None
        self.objects_checked += 1
        return content

    def left_behind(self, folder: str) -> list[str]:
        """The files that stand where a record is lost, which belong; none where a removal was begun, which is noted."""
        there = [path for path in self.under(folder) if not is_partial(path)]
        self.know(*there)
        if f"{folder}/{layout.REMOVED_FILE}" not in there:
            return there
        text = f"the removal of {folder} was begun and not finished; `vitrine gc --yes` or the same `vitrine rm` does."
        self.note(folder, "removal", text)
        return []

    def stands(self, path: str, size_bytes: int, *, remedy: str, suspects: tuple[str, ...]) -> bool:
        """Whether a stated object is there in its size; a problem where it is not."""
        self.know(path)
        found = self.size_of(path)
        if found != size_bytes:
            # A live writer may have replaced it since the inspection began.
            found = self._size_now(path)
        if found is None:
            self.problem(path, "missing", f"{path} is missing, though its record states it. {remedy}", suspects)
        elif found != size_bytes:
            text = f"{path} has {found} bytes, and its record states {size_bytes}. {remedy}"
            self.problem(path, "size", text, suspects)
        else:
            self.objects_checked += 1
            return True
        return False

    def read_data(self, chosen: Iterable[StatedData], bytes_in_all: int, progress: ReadProgress | None) -> set[str]:
        """Hold the bytes of objects to their checksums; the paths of those that were read and are sound."""
        sound = set()
        for data in chosen:
            if self._is_intact(data):
                sound.add(data.path)
            if progress is not None:
                progress(data.stated.size_bytes, bytes_in_all)
        return sound

    def _crc32c(self, path: str) -> int:
        """The checksum of a file, which is read once whatever names it has."""
        key = file_key(self.root, path)
        if key is None:
            return object_crc32c(self.root, path)
        if key not in self._read:
            self._read[key] = (path, object_crc32c(self.root, path))
        return self._read[key][1]

    def _same_file(self, path: str) -> str:
        """Where the same file was read under another name, a sentence that says so."""
        key = file_key(self.root, path)
        first = path if key is None or key not in self._read else self._read[key][0]
        return "" if first == path else f"It is the same file as {first}. "

    def _is_intact(self, data: StatedData) -> bool:
        try:
            found = self._crc32c(data.path)
        except (OSError, StoreNotFoundError, CorruptError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problem(
                data.path, "unreadable", f"{data.path} cannot be read ({reason}). {data.remedy}", data.suspects
            )
            return False
        if found != data.stated.crc32c:
            self.problem(
                data.path,
                "checksum",
                f"{data.path} has the CRC-32C {found:08x}, and its record states {data.stated.crc32c:08x}: its bytes "
                f"were changed after they were written. {self._same_file(data.path)}{data.remedy}",
                data.suspects,
            )
        return found == data.stated.crc32c

    def report_strangers(self) -> None:
        """Name whatever nothing accounts for: partial files as a note, other files, links and pipes as a problem."""
        for path, kind in self.strays.items():
            if not path.startswith(f"{layout.ASIDE}/"):
                text = f"{path} is a {kind}, and a store is made of files and folders. `vitrine repair` moves it aside."
                self.problem(path, "stray", text)
        for path in sorted(set(self.sizes) - self._known):
            if is_partial(path):
                text = f"{path} is being written, or its writer died; then `vitrine gc` or the next run removes it."
                self.note(path, "partial", text)
            elif self.root.exists(path):
                text = f"{path} does not belong to the store. `vitrine repair` moves it aside."
                self.problem(path, "stray", text)


def is_partial(path: str) -> bool:
    """Whether a path is that of a file that is not finished."""
    return path.rpartition("/")[2].startswith(".") and path.endswith(PARTIAL_SUFFIX)
