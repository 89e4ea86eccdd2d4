"""What an inspection of a store finds, and what it says of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

# Called with the bytes that were just read, and how many will be in all.
ReadProgress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about one place in a store.

    Attributes:
        path: of the file or folder.
        kind: one word: `missing`, `size`, `checksum`, `unreadable`, `record`, `metadata`, `content`, `stray`; of notes
            `unfinished`, `partial`, `removal`, `aside`, `coverage`.
        text: what is there, what should be, and the way out.
        suspects: the files that `repair` moves aside for it, those of them that are there.
    """

    path: str
    kind: str
    text: str
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify_store` found.

    Attributes:
        url: of the store, without secrets.
        problems: what is not as it must be, in the order of paths.
        notes: what is legal and still worth saying, such as an unfinished extraction.
        objects_checked: objects that stand where they are stated, in their sizes, each record among them read.
        objects_read: objects of data whose every byte was held to its checksum.
        bytes_read: how many bytes that were.
        bytes_in_all: of all data that records state.
        share_over_time: the share of the data (by bytes) that this and earlier samples of the present round have read;
            None for an inspection that is no sample.
    """

    url: str
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    objects_checked: int
    objects_read: int
    bytes_read: int
    bytes_in_all: int
    share_over_time: float | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "sound": self.sound}
