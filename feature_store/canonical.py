"""One spelling for every value, so that equal content has equal digests.

JSON with sorted keys, no white space, no NaN: the subset on which every writer agrees.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from feature_store.errors import CorruptError

MAX_JSON_BYTES = 64 << 20


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot say.
        TypeError: `value` holds something that is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """Sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def pretty_json(value: Any) -> bytes:
    """The bytes of a JSON file of the store: sorted, indented, with a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, *, name: str) -> dict[str, Any]:
    """The JSON object in `data`, which may come from a stranger.

    Args:
        data: the bytes of the file.
        name: what to call the file in an error.

    Raises:
        CorruptError: too large, not JSON, nested beyond the parser's depth, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise CorruptError(
            f"{name} has {len(data)} bytes; at most {MAX_JSON_BYTES} are read. It is not a file of Vitrine."
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(
            f"{name} is not valid JSON ({error}). Restore it from a copy, or remove it and rerun."
        ) from error
    if not isinstance(value, Mapping):
        raise CorruptError(f"{name} holds a JSON {type(value).__name__}, not an object. It is not a file of Vitrine.")
    return dict(value)
