"""One spelling for every value, so that equal content has equal digests.

JSON with sorted keys, no white space, no NaN: the subset on which every writer agrees.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from feature_store.errors import CorruptError

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64


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


def parse_json(data: bytes, *, name: str, unique_names: bool = False) -> dict[str, Any]:
    """The JSON object in `data`, which may come from a stranger.

    What it returns can be written again: no NaN or infinity, no half of a surrogate pair, no nesting that would exhaust
    the stack.

    Args:
        data: the bytes of the file.
        name: what to call the file in an error.
        unique_names: refuse an object that has a name twice, of which JSON's readers take the last in silence.

    Raises:
        CorruptError: too large, not JSON, nested deeper than `MAX_JSON_DEPTH`, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise too_large(name, len(data))
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            parse_constant=_refuse_number,
            parse_float=_finite,
            object_pairs_hook=_with_unique_names if unique_names else None,
        )
        if b"\\u" in data:
            canonical_json(value).encode()  # raises for half a surrogate pair
        deep = _is_deeper(value, MAX_JSON_DEPTH)
    except (ValueError, RecursionError) as error:
        raise CorruptError(
            f"{name} is not valid JSON ({error}). Restore it from a copy, or remove it and rerun."
        ) from error
    if deep:
        raise CorruptError(
            f"{name} nests deeper than {MAX_JSON_DEPTH} levels, which no file of Vitrine does. Restore it from a copy."
        )
    if not isinstance(value, Mapping):
        raise CorruptError(
            f"{name} holds a JSON {type(value).__name__}, not an object. Restore it from a copy, or remove it."
        )
    return dict(value)


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"the name {twice[:60]!r} stands there twice")
    return value


def too_large(name: str, size_bytes: int) -> CorruptError:
    """The refusal of a JSON file that is larger than any of Vitrine."""
    return CorruptError(
        f"{name} has {size_bytes} bytes; at most {MAX_JSON_BYTES} are read. It is not a file of Vitrine: remove it."
    )


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _refuse_number(text)


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        children = (child for node in level for child in (node.values() if isinstance(node, dict) else node))
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            return False
    return bool(level)
