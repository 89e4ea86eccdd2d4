"""JSON records of a store: written with a digest of themselves, read as if a stranger had written them.

Every record carries `record_digest`, the sha256 of the rest of it, so that a change anywhere is noticed. A stranger can
write a digest too, so size, form and every type are checked all the same.
"""

import json
from collections.abc import Mapping
from typing import Any

from feature_store.canonical import MAX_JSON_BYTES, canonical_json, digest_of, parse_json, pretty_json, too_large
from feature_store.errors import CorruptError
from feature_store.objects import ObjectRoot

RECORD_DIGEST = "record_digest"
# The whole numbers that every JSON reader keeps exactly.
_MOST = 1 << 53
_SHOWN_CHARACTERS = 60
_MESSAGE_CHARACTERS = 400


def record_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes of a record's file: its content and the digest of that."""
    # Through JSON first, which sorts keys as text and knows no tuples: the digest must be that of what is read back.
    plain = json.loads(canonical_json(dict(content)))
    return pretty_json({**plain, RECORD_DIGEST: digest_of(plain)})


def parse_record(data: bytes, *, name: str) -> dict[str, Any]:
    """The content of a record, without its digest, which has been checked.

    Raises:
        CorruptError: too large, not a JSON object, or changed after it was written.
    """
    record = parse_json(data, name=name)
    if record.pop(RECORD_DIGEST, None) != digest_of(record):
        raise CorruptError(
            f"{name} is not what its {RECORD_DIGEST!r} says, so it was changed after it was written. Restore it from a "
            "copy, or let `vitrine repair` move it aside and run again what made it."
        )
    return record


def write_record(root: ObjectRoot, path: str, content: Mapping[str, Any]) -> None:
    """Write a record, over any other at `path`."""
    root.put(path, [record_bytes(content)])


def read_record(root: ObjectRoot, path: str) -> dict[str, Any]:
    """The content of the record at `path`, see `parse_record`.

    Raises:
        StoreNotFoundError: no such file.
        CorruptError: too large, not a JSON object, or changed after it was written.
    """
    return parse_record(read_bounded(root, path), name=path)


def read_json(root: ObjectRoot, path: str) -> dict[str, Any]:
    """The JSON object at `path`, which is no record of the store's own, such as a `zarr.json`.

    Raises:
        StoreNotFoundError: no such file.
        CorruptError: too large, or not a JSON object.
    """
    return parse_json(read_bounded(root, path), name=path)


def read_bounded(root: ObjectRoot, path: str) -> bytes:
    """The bytes of a JSON file.

    Raises:
        StoreNotFoundError: no such file.
        CorruptError: larger than any of Vitrine's.
    """
    data = root.read(path, max_bytes=MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise too_large(path, root.size_bytes(path) or len(data))
    return data


class Fields:
    """The fields of one JSON object, each taken as what it must be.

    Args:
        value: the object.
        name: what to call the file in an error.
        remedy: the way out that an error offers.
    """

    def __init__(self, value: Mapping[str, Any], *, name: str, remedy: str) -> None:
        self._value, self._name, self._remedy = value, name, remedy

    def corrupt(self, what: str) -> CorruptError:
        """The error that says what is wrong with the record, and the way out."""
        shown = what if len(what) <= _MESSAGE_CHARACTERS else f"{what[:_MESSAGE_CHARACTERS]}..."
        return CorruptError(f"{self._name}: {shown}. {self._remedy}")

    def text(self, key: str) -> str:
        """A string."""
        return str(self._take(key, str, "a text"))

    def integer(self, key: str, *, least: int = 0, most: int = _MOST) -> int:
        """A whole number within bounds."""
        return self._whole(key, self._take(key, int, "a whole number"), least, most)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(self._items(key, str, "texts"))

    def integers(self, key: str, *, least: int = 0, most: int = _MOST) -> tuple[int, ...]:
        """A list of whole numbers within bounds."""
        return tuple(self._whole(key, item, least, most) for item in self._items(key, int, "whole numbers"))

    def mapping(self, key: str) -> dict[str, Any]:
        """A JSON object."""
        return dict(self._take(key, dict, "an object"))

    def members(self, key: str) -> list["Fields"]:
        """A list of JSON objects."""
        return [
            Fields(item, name=self._name, remedy=self._remedy) for item in self._items(key, dict, "a list of objects")
        ]

    def _items(self, key: str, kind: type, what: str) -> list[Any]:
        items: list[Any] = self._take(key, list, "a list")
        for item in items:
            if type(item) is not kind:
                raise self.corrupt(f"{key!r} holds {_shown(item)}, and must hold {what}")
        return items

    def _take(self, key: str, kind: type, what: str) -> Any:
        if key not in self._value:
            raise self.corrupt(f"{key!r} is missing")
        value = self._value[key]
        # Not isinstance: True would pass as a whole number.
        if type(value) is not kind:
            raise self.corrupt(f"{key!r} is {_shown(value)}, and must be {what}")
        return value

    def _whole(self, key: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            raise self.corrupt(f"{key!r} is {_shown(value)}, and must be within {least}..{most}")
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
