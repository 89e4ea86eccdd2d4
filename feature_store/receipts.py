"""The record that a shard is committed: what stands where, how large, its checksums, and which rows are invalid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from feature_store.records import Fields


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object of a shard.

    Attributes:
        path: relative to the feature set's folder.
        size_bytes: of the whole object.
        crc32c: of the whole object.
    """

    path: str
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, kw_only=True)
class InvalidRow:
    """A row whose view gave no tokens; its tokens are zero.

    Attributes:
        row: in the feature set.
        reason: the code, e.g. `truncated`.
    """

    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A committed shard.

    Attributes:
        shard: its index.
        start, stop: its rows, half open.
        objects: every object of the shard, in writing order.
        invalid: the rows that are not valid, ascending.
    """

    shard: int
    start: int
    stop: int
    objects: tuple[StoredObject, ...]
    invalid: tuple[InvalidRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of the receipt's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, name: str) -> "Receipt":
        """Read what `to_json` wrote.

        Raises:
            CorruptError: a field is missing, of the wrong type or impossible.
        """
        fields = Fields(value, name=name, remedy="Remove it and run the extraction again: it computes the shard anew.")
        start, stop = fields.integer("start"), fields.integer("stop")
        invalid = tuple(
            InvalidRow(row=entry.integer("row", least=start, most=stop - 1), reason=entry.text("reason"))
            for entry in fields.members("invalid")
        )
        if any(later.row <= earlier.row for earlier, later in pairwise(invalid)):
            raise fields.corrupt("the rows of 'invalid' do not ascend")
        return cls(
            shard=fields.integer("shard"),
            start=start,
            stop=stop,
            objects=tuple(
                StoredObject(
                    path=entry.text("path"),
                    size_bytes=entry.integer("size_bytes"),
                    crc32c=entry.integer("crc32c", most=(1 << 32) - 1),
                )
                for entry in fields.members("objects")
            ),
            invalid=invalid,
        )
