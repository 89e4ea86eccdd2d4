"""Results kept by content: the file's name is the digest of everything that decides the numbers."""

from collections.abc import Mapping
from typing import Any

from feature_store import layout
from feature_store.canonical import canonical_json, digest_of
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.objects import ObjectRoot
from feature_store.records import read_record, write_record


def result_digest(key: Mapping[str, Any]) -> str:
    """The digest of a result's key: what it was computed from, by what, with which parameters."""
    return digest_of(dict(key))


def write_result(root: ObjectRoot, evaluator: str, key: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Store a result, over an older one of the same key.

    Returns:
        Its digest.
    """
    digest = result_digest(key)
    write_record(root, layout.result(evaluator, digest), {"key": dict(key), "result": dict(result)})
    return digest


def read_result(root: ObjectRoot, evaluator: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored result of that key, or None; one that cannot be read counts as absent and is computed again."""
    record = _read(root, layout.result(evaluator, result_digest(key)))
    # As text: JSON has no tuples, so a key with one would never equal what was read.
    if record is None or canonical_json(record["key"]) != canonical_json(dict(key)):
        return None
    result: dict[str, Any] = record["result"]
    return result


def all_results(root: ObjectRoot) -> list[tuple[str, dict[str, Any]]]:
    """Every readable result as (evaluator, {"key", "result", "digest"}), by evaluator and digest."""
    evaluators = root.list(layout.RESULTS)
    listings = root.side_by_side(lambda evaluator: root.list(f"{layout.RESULTS}/{evaluator}"), evaluators)
    places = [
        (evaluator, name)
        for evaluator, names in zip(evaluators, listings, strict=True)
        for name in names
        if name.endswith(".json")
    ]
    records = root.side_by_side(lambda place: _read(root, f"{layout.RESULTS}/{place[0]}/{place[1]}"), places)
    return [
        (evaluator, {**record, "digest": name.removesuffix(".json")})
        for (evaluator, name), record in zip(places, records, strict=True)
        if record is not None
    ]


def _read(root: ObjectRoot, path: str) -> dict[str, Any] | None:
    """Key and result of the file at `path`, or None where it is missing, damaged or was changed."""
    try:
        record = read_record(root, path)
    except (StoreNotFoundError, CorruptError):
        return None
    key, result = record.get("key"), record.get("result")
    if not isinstance(key, dict) or not isinstance(result, dict):
        return None
    return {"key": key, "result": result}
