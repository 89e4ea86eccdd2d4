"""The record that a shard is committed: what stands where, how large, with which checksum, and which rows are invalid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from feature_store.errors import CorruptError


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
            CorruptError: a field is missing or of the wrong type.
        """
        try:
            return cls(
                shard=int(value["shard"]),
                start=int(value["start"]),
                stop=int(value["stop"]),
                objects=tuple(
                    StoredObject(path=str(o["path"]), size_bytes=int(o["size_bytes"]), crc32c=int(o["crc32c"]))
                    for o in value["objects"]
                ),
                invalid=tuple(InvalidRow(row=int(i["row"]), reason=str(i["reason"])) for i in value["invalid"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"{name} is not a receipt ({error!r}). Remove it: the shard is then computed again."
            ) from error
