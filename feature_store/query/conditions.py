"""Conditions: SQL over the columns of a manifest, perhaps a stranger's, answered by DuckDB.

DuckDB sees one stream of record batches with the columns that the condition names, and nothing else: no file, no
network, no extension, bounded memory. What it may be asked is held by its own parser: the statement around a condition
must parse to the same tree as around `true`, so nothing can close the bracket and go on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from feature_store.errors import QueryError, StoreError
from feature_store.query.columns import COLUMNS, column_batches, column_schema
from feature_store.reader import FeatureSet
from feature_store.token_reader import RowNumbers

Parameters = Sequence[Any] | Mapping[str, Any]

_TABLE = "manifest"
_MAX_CHARACTERS = 1 << 20
_SHOWN_CHARACTERS = 200
_SEVERAL = "it holds more than one statement"
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "threads": "2",
    "memory_limit": "1GB",
    # Nothing is spilled: a condition looks at one row at a time.
    "temp_directory": "",
    "lock_configuration": "true",
}


def matching_rows(features: FeatureSet, condition: str, parameters: Parameters = ()) -> RowNumbers:
    """The rows for which a condition is true, ascending.

    Args:
        features: the feature set.
        condition: an SQL expression over the columns of the manifest and `row`, `valid`, `class_name`.
        parameters: values for `?` or `$name` in it.

    Raises:
        QueryError: no condition, or one with more in it than the columns of one row.
        CorruptError: the manifest cannot be read.
    """
    with duckdb.connect(":memory:", config=_SETTINGS) as connection:
        names = _columns_named(_parsed(connection, condition), condition)
        stream = _Stream(column_batches(features, names))
        connection.register(_TABLE, pa.RecordBatchReader.from_batches(column_schema(names), stream))
        try:
            found = connection.execute(_statement(condition), parameters).fetchnumpy()["row"]
        except (duckdb.Error, RuntimeError, TypeError, ValueError) as error:
            if stream.error is not None:
                raise stream.error from error
            raise _refused(condition, str(error)) from error
    rows: RowNumbers = np.sort(np.asarray(found, dtype=np.int64))
    return rows


def _statement(condition: str) -> str:
    # The bracket closes on a line of its own, where no comment of the condition reaches it.
    return f"SELECT row FROM {_TABLE} WHERE (\n{condition}\n)"


def _refused(condition: str, reason: str) -> QueryError:
    shown = condition if len(condition) <= _SHOWN_CHARACTERS else f"{condition[:_SHOWN_CHARACTERS]}..."
    first_line = (reason.strip().splitlines() or ["no reason given"])[0]
    return QueryError(
        f"the condition {shown!r} cannot be asked: {first_line.rstrip('.')}. Give one SQL expression over the "
        "manifest's columns, with text in single quotes, e.g. split = 'train' AND label IN (3, 5)."
    )


# Connections are annotated as Any: Beartype keeps the classes it checks, and DuckDB's must not outlive the interpreter.
def _parsed(connection: Any, condition: str) -> Any:
    """The tree of the condition alone, as DuckDB's parser sees it."""
    if not condition.strip() or len(condition) > _MAX_CHARACTERS or "\0" in condition:
        raise _refused(condition, f"it must have 1 to {_MAX_CHARACTERS} characters, none of them NUL")
    given, plain = (_tree(connection, text, condition) for text in (condition, "true"))
    where = given.pop("where_clause", None)
    plain.pop("where_clause")
    if _without_places(given) != _without_places(plain):
        raise _refused(condition, "it holds more than one expression")
    return where


def _tree(connection: Any, text: str, condition: str) -> dict[str, Any]:
    try:
        answer = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [_statement(text)]).fetchall()[0][0]
        parsed = json.loads(answer)
    except (duckdb.Error, RuntimeError, RecursionError, UnicodeError) as error:
        raise _refused(condition, str(error)) from error
    if parsed["error"]:
        # Anything but a SELECT among several statements is refused as such; a lone expression cannot get there.
        several = parsed.get("error_type") == "not implemented"
        raise _refused(condition, _SEVERAL if several else str(parsed.get("error_message")))
    if len(parsed["statements"]) != 1:
        raise _refused(condition, _SEVERAL)
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


def _without_places(value: Any) -> Any:
    """A tree without the positions in the text, which differ between any two statements."""
    if isinstance(value, dict):
        return {name: _without_places(item) for name, item in value.items() if not name.startswith("query_location")}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _columns_named(tree: Any, condition: str) -> list[str]:
    """The columns of the manifest that a condition names, and `row`, which it gives."""
    nodes = list(_nodes(tree))
    if any(node.get("class") == "SUBQUERY" for node in nodes):
        raise _refused(condition, "it holds a query of its own; a condition looks at one row at a time")
    if any(node.get("class") == "STAR" for node in nodes):
        raise _refused(condition, "it names all columns at once; name those that it needs")
    bound = {
        _first_name(inner) for node in nodes if node.get("class") == "LAMBDA" for inner in _references(node.get("lhs"))
    }
    known = {name.lower(): name for name in COLUMNS.names}
    names = ["row"]
    for reference in _references(tree):
        name = _first_name(reference)
        if name in known:
            names.append(known[name])
        elif name not in bound:
            reason = f"there is no column {reference['column_names'][0]!r}, only {', '.join(COLUMNS.names)}"
            raise _refused(condition, reason)
    return list(dict.fromkeys(names))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _references(tree: Any) -> Iterator[dict[str, Any]]:
    return (node for node in _nodes(tree) if node.get("class") == "COLUMN_REF")


def _first_name(reference: dict[str, Any]) -> str:
    """The column that a reference names: `tile` of `tile.x` and of `manifest.tile.x`."""
    names = [str(name).lower() for name in reference["column_names"]]
    return names[1] if names[0] == _TABLE and len(names) > 1 else names[0]


class _Stream:
    """Batches for DuckDB, which wraps what goes wrong while it takes them; the error itself is kept here."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self.error: StoreError | None = None

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StoreError as error:
            self.error = error
            raise
