"""Results kept by content: the file's name is the digest of everything that decides the numbers."""

from collections.abc import Mapping
from typing import Any

from feature_store import layout
from feature_store.canonical import digest_of, parse_json, pretty_json
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.objects import ObjectRoot


def result_digest(key: Mapping[str, Any]) -> str:
    """The digest of a result's key: what it was computed from, by what, with which parameters."""
    return digest_of(dict(key))


def write_result(root: ObjectRoot, evaluator: str, key: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Store a result, over an older one of the same key.

    Returns:
        Its digest.
    """
    digest = result_digest(key)
    root.put(layout.result(evaluator, digest), [pretty_json({"key": dict(key), "result": dict(result)})])
    return digest


def read_result(root: ObjectRoot, evaluator: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The stored result of that key, or None; one that cannot be read counts as absent and is computed again."""
    path = layout.result(evaluator, result_digest(key))
    try:
        record = parse_json(root.read(path), name=path)
    except (StoreNotFoundError, CorruptError):
        return None
    result = record.get("result")
    return result if isinstance(result, dict) and record.get("key") == dict(key) else None


def all_results(root: ObjectRoot) -> list[tuple[str, dict[str, Any]]]:
    """Every readable result as (evaluator, {"key", "result", "digest"}), by evaluator and digest."""
    found = []
    for evaluator in root.list(layout.RESULTS):
        for name in root.list(f"{layout.RESULTS}/{evaluator}"):
            path = f"{layout.RESULTS}/{evaluator}/{name}"
            try:
                record = parse_json(root.read(path), name=path)
            except (CorruptError, StoreNotFoundError):
                continue
            if isinstance(record.get("result"), dict) and isinstance(record.get("key"), dict):
                found.append((evaluator, {**record, "digest": name.removesuffix(".json")}))
    return found
