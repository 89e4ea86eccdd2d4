"""The record that a shard is committed: what stands where, how large, its checksums, and which rows are invalid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from feature_store.records import Fields

# The reason code of a row that is only the place of a view that a grown dataset has no more: nothing went wrong.
REMOVED_ROW = "removed"


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What a record states of an object.

    Attributes:
        path: relative to the folder of the feature set or dataset.
        size_bytes: of the whole object.
        crc32c: of the whole object.
    """

    path: str
    size_bytes: int
    crc32c: int

    @classmethod
    def from_fields(cls, fields: Fields) -> "StoredObject":
        """Read one from a record.

        Raises:
            CorruptError: a field is missing, of the wrong type or impossible.
        """
        return cls(
            path=fields.text("path"),
            size_bytes=fields.integer("size_bytes"),
            crc32c=fields.integer("crc32c", most=(1 << 32) - 1),
        )


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
        feature_set: the identity's digest, so that the receipt of another feature set is never taken for this one's.
        shard: its index.
        start, stop: its rows, half open.
        objects: every object of the shard, in writing order.
        invalid: the rows that are not valid, ascending.
    """

    feature_set: str
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
            feature_set=fields.text("feature_set"),
            shard=fields.integer("shard"),
            start=start,
            stop=stop,
            objects=tuple(StoredObject.from_fields(entry) for entry in fields.members("objects")),
            invalid=invalid,
        )
