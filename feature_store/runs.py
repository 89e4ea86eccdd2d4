"""The records of runs: outside `features/`, since they hold times, hosts and versions."""

from typing import Any

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.layout import RUNS, run_file
from feature_store.objects import ObjectRoot


def earlier_environments(root: ObjectRoot, feature_set: str) -> list[dict[str, Any]]:
    """The distinct environments of the runs that committed shards of a feature set, oldest run first."""
    found: list[dict[str, Any]] = []
    for run_id in root.list(RUNS):
        path = run_file(run_id, "run.json")
        try:
            record = parse_json(root.read(path), name=path)
        except (CorruptError, StoreNotFoundError):
            continue
        environment = record.get("environment")
        if record.get("feature_set") == feature_set and isinstance(environment, dict) and environment not in found:
            found.append(environment)
    return found
