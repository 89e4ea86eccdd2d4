"""The records of runs: outside `features/`, since they hold times, hosts and versions."""

from typing import Any

from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.layout import RUNS
from feature_store.objects import ObjectRoot
from feature_store.records import read_record


def earlier_environments(root: ObjectRoot, feature_set: str) -> list[dict[str, Any]]:
    """The distinct environments of the runs that may have committed shards of a feature set, oldest run first.

    A run that was killed says nothing of what it committed, and counts; one that says it committed nothing does not.
    """
    found: list[dict[str, Any]] = []
    for run_id in root.list(RUNS):
        try:
            record = read_record(root, f"{RUNS}/{run_id}/run.json")
        except (CorruptError, StoreNotFoundError):
            continue
        environment, outcome = record.get("environment"), record.get("outcome")
        if record.get("feature_set") != feature_set or not isinstance(environment, dict):
            continue
        committed_nothing = isinstance(outcome, dict) and outcome.get("committed") == 0
        if not committed_nothing and environment not in found:
            found.append(environment)
    return found
