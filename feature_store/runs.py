"""The records of runs: outside `features/`, since they hold times, hosts and versions."""

import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec
from feature_store.layout import RUNS, feature_set_name
from feature_store.objects import ObjectRoot
from feature_store.records import read_record

_TIME = "%Y%m%dT%H%M%S"


def new_run_id() -> str:
    """An id for a run that begins now: the second, by which ids sort, and a random part for others of that second."""
    return f"{datetime.now(UTC):{_TIME}}-{secrets.token_hex(3)}"


def run_time(run_id: str) -> datetime | None:
    """When a run began, as its id says; None for an id that says no time."""
    try:
        return datetime.strptime(run_id.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def earlier_environments(root: ObjectRoot, feature_set: str) -> list[dict[str, Any]]:
    """The distinct environments that rows of a feature set may come from, oldest run first.

    They are those of the runs that may have committed shards of it, and of the feature sets that those runs copied rows
    from. A run that was killed says nothing of what it committed, and counts; one that says it committed nothing does
    not.
    """
    found: list[dict[str, Any]] = []
    for _, record in _records(root, "run.json", _run_ids(root)):
        environment = record.get("environment")
        if record.get("feature_set") != feature_set or not isinstance(environment, dict):
            continue
        if not _committed_nothing(record):
            found += [one for one in (environment, *_copied_along(record)) if one not in found]
    return found


def latest_runs(root: ObjectRoot) -> dict[str, str]:
    """The id of the latest run that made or extended each feature set, by the feature set's name; see `run_time`."""
    found: dict[str, str] = {}
    for run_id, record in _records(root, "run.json", _run_ids(root)):
        folder = record.get("feature_set")
        if isinstance(folder, str) and not _committed_nothing(record):
            found[feature_set_name(folder)] = run_id
    return found


def stored_plan(root: ObjectRoot, feature_set: str) -> dict[str, Any] | None:
    """The plan of the latest run that worked on a feature set, as its pipeline wrote it; None where none can be read.

    Args:
        root: the store.
        feature_set: its folder.
    """
    plans = _records(root, "plan.json", reversed(_run_ids(root)))
    return next((plan for _, plan in plans if plan.get("folder") == feature_set), None)


def planned_spec(root: ObjectRoot, feature_set: str) -> FeatureSetSpec | None:
    """The record that a feature set had when it was last worked on; None where no plan tells it."""
    spec = (stored_plan(root, feature_set) or {}).get("spec")
    try:
        return FeatureSetSpec.from_json(spec, name=f"the plan of {feature_set}") if isinstance(spec, dict) else None
    except CorruptError:
        return None


def _run_ids(root: ObjectRoot) -> list[str]:
    """Those of all runs, oldest first; none where `runs` is a link that leads out of the store."""
    try:
        return root.list(RUNS)
    except CorruptError:
        return []


def _records(root: ObjectRoot, file: str, run_ids: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record of this name of each of these runs, with the run's id; runs that have none to read are passed over."""
    for run_id in run_ids:
        try:
            record = read_record(root, f"{RUNS}/{run_id}/{file}")
        except (CorruptError, StoreNotFoundError):
            continue
        yield run_id, record


def _committed_nothing(record: dict[str, Any]) -> bool:
    """Whether a run says so; one that was killed says nothing."""
    outcome = record.get("outcome")
    return isinstance(outcome, dict) and outcome.get("committed") == 0


def _copied_along(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The environments of the feature sets that a run copied rows from, as its record states them."""
    found = []
    for source in _list(record.get("reused_from")):
        of_source = source.get("environments") if isinstance(source, dict) else None
        found += [environment for environment in _list(of_source) if isinstance(environment, dict)]
    return found


def _list(value: Any) -> list[Any]:
    """A stranger's value where it is a list, else nothing."""
    return value if isinstance(value, list) else []
