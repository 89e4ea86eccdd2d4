"""canonical: one spelling for every value, and JSON from strangers."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.canonical import MAX_JSON_BYTES, MAX_JSON_DEPTH, canonical_json, digest_of, parse_json, pretty_json
from feature_store.errors import CorruptError

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), _VALUES, max_size=4))
def test_what_is_written_is_read_back_with_the_same_digest(value: dict[str, Any]) -> None:
    again = parse_json(pretty_json(value), name="x")
    assert again == json.loads(json.dumps(value))
    assert digest_of(again) == digest_of(value)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), _VALUES, max_size=4))
def test_the_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest_of(dict(reversed(value.items()))) == digest_of(value)


def test_tuples_and_lists_are_spelled_alike() -> None:
    assert canonical_json({"mean": (0.5, 1)}) == canonical_json({"mean": [0.5, 1]}) == '{"mean":[0.5,1]}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": 1e999}', "1e999 is not a number of JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (rb'{"a": "\ud800"}', "not valid JSON"),
        (rb'{"\udfff": 1}', "not valid JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nests deeper than 64 levels"),
        (b" " * (MAX_JSON_BYTES + 1), "at most 16777216 are read"),
    ],
)
def test_what_is_no_json_object_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=f"^some file .*{message}"):
        parse_json(data, name="some file")


def test_the_deepest_nesting_that_is_allowed_is_read() -> None:
    text = '{"a":' * MAX_JSON_DEPTH + "1" + "}" * MAX_JSON_DEPTH
    assert parse_json(text.encode(), name="x") == json.loads(text)


def test_a_whole_surrogate_pair_and_a_byte_order_mark_are_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', name="x") == {"a": "\N{GRINNING FACE}"}


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        pretty_json({"a": float("nan")})
