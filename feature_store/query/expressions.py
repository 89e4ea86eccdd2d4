"""What a condition may be: one expression, made of functions whose value never outgrows what they are given.

DuckDB's own parser says what a text is. The text alone must parse to one nameless expression, and within the brackets
of the statement to the same one, so nothing can close a bracket and go on. DuckDB's memory limit does not count the
vectors of an expression and its interrupt waits for a function to come back, so the functions themselves are chosen:
none makes lists or text from numbers, none depends on chance, on a setting or on the clock.
"""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from feature_store.errors import QueryError
from feature_store.query.columns import COLUMNS, shortened

MAX_CHARACTERS = 1 << 16
MAX_CALLS = 256
MAX_LIST_VALUES = 256
TABLE = "manifest"
_SHOWN_CHARACTERS = 200
_SHOWN_REASON = 800
_SEVERAL = "it holds more than one statement"
_ONE = "it holds more than one expression, or brackets that do not pair"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPERATORS = _words(
    "+ - * / // % @ & | ^ ** ~~ !~~ ~~* !~~* ~~~ ^@ like_escape not_like_escape ilike_escape not_ilike_escape"
)
# Of these only the length, a place or a truth comes back, whatever list they are given.
_MEASURES = _words(
    "array_contains array_length contains hash len length list_contains list_has list_has_all list_has_any "
    "list_position"
)
FUNCTIONS = _MEASURES | _words(
    "abs ceil ceiling ends_with floor greatest if instr isfinite isnan least left list_filter ln log10 log2 lower "
    "ltrim mod nullif parse_filename position pow prefix regexp_extract regexp_full_match regexp_matches right round "
    "rtrim sign split_part sqrt starts_with strlen strpos struct_extract substr substring suffix trim trunc upper"
)
# A list in square brackets, as in label IN [1, 2]; held to few values, all of them written out.
_LIST = "list_value"
_KINDS = _words("BETWEEN CASE CAST COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR PARAMETER TYPE")
_OPERATIONS = _words(
    "ARRAY_EXTRACT COMPARE_IN COMPARE_NOT_IN OPERATOR_COALESCE OPERATOR_IS_NOT_NULL OPERATOR_IS_NULL OPERATOR_NOT "
    "STRUCT_EXTRACT"
)
_TYPES = _words(
    "bigint bool boolean decimal double float float4 float8 hugeint int int1 int2 int4 int8 integer long numeric real "
    "short smallint string text tinyint ubigint uinteger usmallint utinyint varchar"
)
_CALLS = _words("FUNCTION CAST CASE LAMBDA")


def statement(condition: str) -> str:
    """The statement that asks for the rows of a condition."""
    return f"SELECT row FROM {TABLE} WHERE (\n{condition}\n)"


def refused(condition: str, reason: str) -> QueryError:
    """The error of a condition that cannot be asked."""
    shown = condition if len(condition) <= _SHOWN_CHARACTERS else f"{condition[:_SHOWN_CHARACTERS]}..."
    first_line = (reason.strip().splitlines() or ["no reason given"])[0][:_SHOWN_REASON]
    return QueryError(
        f"the condition {shown!r} cannot be asked: {first_line.rstrip('.')}. Give one SQL expression over the "
        "manifest's columns, with text in single quotes, e.g. split = 'train' AND label IN (3, 5)."
    )


# Connections are annotated as Any: Beartype keeps the classes it checks, and DuckDB's must not outlive the interpreter.
def columns_of(connection: Any, condition: str) -> list[str]:
    """The columns of the manifest that a condition names, and `row`, which it gives.

    Raises:
        QueryError: it is not one expression over the columns of one row, of the functions that are allowed.
    """
    tree = _expression(connection, condition)
    nodes = list(_nodes(tree))
    _check_kinds(nodes, condition)
    _check_functions(nodes, condition)
    _check_sizes(nodes, condition)
    return _columns_named(nodes, condition)


def _expression(connection: Any, condition: str) -> Any:
    """The tree of the condition, which is one expression."""
    if not condition.strip() or len(condition) > MAX_CHARACTERS or "\0" in condition:
        raise refused(condition, f"it must have 1 to {MAX_CHARACTERS} characters, none of them NUL")
    within, plain = (_tree(connection, statement(text), condition) for text in (condition, "true"))
    where = within.pop("where_clause", None)
    plain.pop("where_clause")
    if within != plain:
        raise refused(condition, _ONE)
    try:
        alone = _tree(connection, f"SELECT\n{condition}\n", condition)
    except QueryError as error:
        raise refused(condition, _ONE) from error
    bare = _tree(connection, "SELECT\ntrue\n", condition)
    chosen = alone.pop("select_list")
    bare.pop("select_list")
    if alone != bare or chosen != [where]:
        raise refused(condition, _ONE)
    if any("comment" in str(kind) for _, kind in duckdb.tokenize(condition)):
        raise refused(condition, "it holds a comment; leave it out")
    return where


def _tree(connection: Any, text: str, condition: str) -> dict[str, Any]:
    """What the parser makes of a statement, without the positions in the text."""
    try:
        answer = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchall()[0][0]
        parsed = json.loads(answer)
        if parsed["error"]:
            # Anything but a SELECT among several statements is refused as such; a lone expression cannot get there.
            several = parsed.get("error_type") == "not implemented"
            raise refused(condition, _SEVERAL if several else str(parsed.get("error_message")))
        if len(parsed["statements"]) != 1:
            raise refused(condition, _SEVERAL)
        node: dict[str, Any] = _without_places(parsed["statements"][0]["node"])
    except (duckdb.Error, RuntimeError, RecursionError, UnicodeError) as error:
        raise refused(condition, str(error)) from error
    return node


def _without_places(value: Any) -> Any:
    """A tree without the positions in the text, which differ between any two statements."""
    if isinstance(value, dict):
        return {name: _without_places(item) for name, item in value.items() if not name.startswith("query_location")}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _check_kinds(nodes: list[dict[str, Any]], condition: str) -> None:
    kinds = {node["class"] for node in nodes if "class" in node}
    if "SUBQUERY" in kinds:
        raise refused(condition, "it holds a query of its own; a condition looks at one row at a time")
    if "STAR" in kinds:
        raise refused(condition, "it names all columns at once; name those that it needs")
    for kind in sorted(kinds - _KINDS):
        raise refused(condition, f"it holds a {kind.lower().replace('_', ' ')}, which no condition may")
    for node in nodes:
        operation, kind = str(node.get("type")), node.get("class")
        if kind == "OPERATOR" and operation not in _OPERATIONS:
            raise refused(condition, f"the operation {operation.lower().replace('_', ' ')} is not allowed in it")
        if kind == "TYPE" and _name_of(node, "type_name") not in _TYPES:
            shown = shortened(_name_of(node, "type_name"))
            raise refused(condition, f"a cast to {shown!r} is not allowed in it, only to {', '.join(sorted(_TYPES))}")


def _check_functions(nodes: list[dict[str, Any]], condition: str) -> None:
    for node in nodes:
        if node.get("class") == "FUNCTION":
            name = _name_of(node, "function_name")
            if name not in FUNCTIONS | _OPERATORS | {_LIST}:
                allowed = ", ".join(sorted(FUNCTIONS))
                raise refused(condition, f"the function {shortened(name)!r} is not allowed in it, only {allowed}")
            if name == "+" and any(_gives_list(item["expression"]) for item in node["arguments"]):
                raise refused(condition, "lists cannot be joined in it")


def _check_sizes(nodes: list[dict[str, Any]], condition: str) -> None:
    calls = sum(node.get("class") in _CALLS for node in nodes)
    if calls > MAX_CALLS:
        raise refused(
            condition, f"it calls {calls} functions, of {MAX_CALLS} that it may; give values as a list, label IN ?"
        )
    lists = [node for node in nodes if node.get("class") == "FUNCTION" and _name_of(node, "function_name") == _LIST]
    values = sum(len(node["arguments"]) for node in lists)
    if values > MAX_LIST_VALUES or any(True for node in lists for _ in _references(_nodes(node))):
        raise refused(
            condition, f"its lists in square brackets may hold {MAX_LIST_VALUES} values, and no column; use IN (...)"
        )
    lambdas = [node for node in nodes if node.get("class") == "LAMBDA"]
    if any(inner.get("class") == "LAMBDA" for node in lambdas for inner in _nodes(node.get("expr"))):
        raise refused(condition, "it holds a lambda within a lambda")


def _gives_list(tree: Any) -> bool:
    """Whether a value may be a list, seen from where its parts come from."""
    if isinstance(tree, list):
        return any(_gives_list(item) for item in tree)
    if not isinstance(tree, dict):
        return False
    if tree.get("class") == "COLUMN_REF":
        return str(tree["column_names"][-1]).lower() == "objects"
    if tree.get("class") == "FUNCTION":
        name = _name_of(tree, "function_name")
        if name == _LIST or name in _MEASURES:
            return name == _LIST
    return tree.get("type") != "ARRAY_EXTRACT" and any(_gives_list(item) for item in tree.values())


def _columns_named(nodes: list[dict[str, Any]], condition: str) -> list[str]:
    bound = {
        _first_name(inner)
        for node in nodes
        if node.get("class") == "LAMBDA"
        for inner in _references(_nodes(node.get("lhs")))
    }
    known = {name.lower(): name for name in COLUMNS.names}
    names = ["row"]
    for reference in _references(nodes):
        name = _first_name(reference)
        if name in known:
            names.append(known[name])
        elif name not in bound:
            shown = shortened(str(reference["column_names"][0]))
            raise refused(condition, f"there is no column {shown!r}, only {', '.join(COLUMNS.names)}")
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


def _references(nodes: Any) -> Iterator[dict[str, Any]]:
    return (node for node in nodes if node.get("class") == "COLUMN_REF")


def _first_name(reference: dict[str, Any]) -> str:
    """The column that a reference names: `tile` of `tile.x` and of `manifest.tile.x`."""
    names = [str(name).lower() for name in reference["column_names"]]
    return names[1] if names[0] == TABLE and len(names) > 1 else names[0]


def _name_of(node: dict[str, Any], key: str) -> str:
    """The name of a function or type with its schema, where it has one: that of another schema is another."""
    path = [node.get("catalog"), node.get("schema"), node.get(key)]
    return ".".join(str(part) for part in path if part).lower()
