"""The records of runs: outside `features/`, since they hold times, hosts and versions.

The name of a run says when it began, which feature set it worked on and in which environments. So one listing of `runs`
tells which few records answer a question, however many runs there are.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from feature_store.canonical import digest_of
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec
from feature_store.layout import FEATURES, RUNS, run_file
from feature_store.objects import ObjectRoot
from feature_store.records import read_record

RUN_FILE, PLAN_FILE = "run.json", "plan.json"
_TIME = "%Y%m%dT%H%M%S"
_DIGITS = 8


def new_run_id() -> str:
    """An id for what begins now: the time to the microsecond, by which ids sort, and a random part."""
    now = datetime.now(UTC)
    return f"{now:{_TIME}}-{now.microsecond:06d}{secrets.token_hex(2)}"


def id_for_run(record: Mapping[str, Any], *, begun: str | None = None) -> str:
    """An id for the run of a record: when it began, then digits for its feature set and for its environments.

    Args:
        record: with the feature set's folder and the environments.
        begun: what `new_run_id` gave when the run began; None for a run that begins now.
    """
    return f"{begun or new_run_id()}-{_place_digits(str(record['feature_set']))}-{_environment_digits(record)}"


def is_id_of_run(run_id: str, record: Mapping[str, Any]) -> bool:
    """Whether an id tells the feature set and the environments of a record, as `id_for_run` makes it."""
    digits = [_place_digits(str(record.get("feature_set"))), _environment_digits(record)]
    return run_id.split("-")[2:] == digits


def run_time(run_id: str) -> datetime | None:
    """When a run began, as its id says; None for an id that says no time."""
    try:
        return datetime.strptime(run_id.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


class RunHistory:
    """What the runs of a store tell of its feature sets: runs are listed once, and each record is read at most once.

    A run whose name does not tell its feature set and environments is passed over; `verify` names it.
    """

    def __init__(self, root: ObjectRoot) -> None:
        self._root = root
        # By the digits of the feature set, then by those of the environments; ids ascend, so the oldest run is first.
        self._ids: dict[str, dict[str, list[str]]] = {}
        self._records: dict[tuple[str, str], dict[str, Any] | None] = {}
        for run_id in _run_ids(root):
            match run_id.split("-"):
                case [_, _, place, environments]:
                    self._ids.setdefault(place, {}).setdefault(environments, []).append(run_id)

    def environments(self, feature_set: str) -> list[dict[str, Any]]:
        """The distinct environments that rows of a feature set may come from, oldest run first.

        They are those of the runs that may have committed shards of it, and of the feature sets that those runs copied
        rows from. A run that was killed says nothing of what it committed, and counts; one that says it committed
        nothing does not.

        Args:
            feature_set: its folder.
        """
        # Runs of the same digits say the same: one of them that counts is enough.
        alike = list(self._ids.get(_place_digits(feature_set), {}).values())
        counting = self._root.side_by_side(lambda ids: self._first_that_counts(ids, feature_set), alike)
        found: list[dict[str, Any]] = []
        for run_id in sorted(run_id for run_id in counting if run_id is not None):
            record = self._record(run_id, RUN_FILE) or {}
            found += [one for one in _environments(record) if one not in found]
        return found

    def latest(self, names: Sequence[str]) -> dict[str, str]:
        """The id of the latest run that made or extended each feature set, by the feature set's name; see `run_time`.

        Args:
            names: of the feature sets; those of which no run tells are left out.
        """
        folders = [f"{FEATURES}/{name}" for name in names]
        ids = self._root.side_by_side(
            lambda folder: self._first_that_counts(reversed(self._all_ids(folder)), folder), folders
        )
        return {name: run_id for name, run_id in zip(names, ids, strict=True) if run_id is not None}

    def plan(self, feature_set: str) -> dict[str, Any] | None:
        """The plan of the latest run that worked on a feature set, as its pipeline wrote it; None where none is read.

        Args:
            feature_set: its folder.
        """
        plans = (self._record(run_id, PLAN_FILE) for run_id in reversed(self._all_ids(feature_set)))
        return next((plan for plan in plans if plan is not None and plan.get("folder") == feature_set), None)

    def _all_ids(self, feature_set: str) -> list[str]:
        return sorted(run_id for ids in self._ids.get(_place_digits(feature_set), {}).values() for run_id in ids)

    def _first_that_counts(self, run_ids: Iterable[str], feature_set: str) -> str | None:
        """The first of these runs that worked on the feature set and may have committed a shard of it."""
        for run_id in run_ids:
            record = self._record(run_id, RUN_FILE)
            if record is not None and record.get("feature_set") == feature_set and not _committed_nothing(record):
                return run_id
        return None

    def _record(self, run_id: str, file: str) -> dict[str, Any] | None:
        """A record of a run, or None where it has none to read."""
        if (run_id, file) not in self._records:
            try:
                self._records[run_id, file] = read_record(self._root, run_file(run_id, file))
            except (CorruptError, StoreNotFoundError):
                self._records[run_id, file] = None
        return self._records[run_id, file]


def earlier_environments(root: ObjectRoot, feature_set: str) -> list[dict[str, Any]]:
    """The environments of one feature set; whoever asks for several keeps a `RunHistory`."""
    return RunHistory(root).environments(feature_set)


def stored_plan(root: ObjectRoot, feature_set: str) -> dict[str, Any] | None:
    """The last plan of one feature set; whoever asks for several keeps a `RunHistory`."""
    return RunHistory(root).plan(feature_set)


def planned_spec(history: RunHistory, feature_set: str) -> FeatureSetSpec | None:
    """The record that a feature set had when it was last worked on; None where no plan tells it."""
    spec = (history.plan(feature_set) or {}).get("spec")
    try:
        return FeatureSetSpec.from_json(spec, name=f"the plan of {feature_set}") if isinstance(spec, dict) else None
    except CorruptError:
        return None


def _place_digits(feature_set: str) -> str:
    """Not the identity's: one identity may stand under the names of two datasets."""
    return digest_of(feature_set)[:_DIGITS]


def _environment_digits(record: Mapping[str, Any]) -> str:
    return digest_of(_environments(record))[:_DIGITS]


def _run_ids(root: ObjectRoot) -> list[str]:
    """Those of all runs, oldest first; none where `runs` is a link that leads out of the store."""
    try:
        return root.list(RUNS)
    except CorruptError:
        return []


def _committed_nothing(record: Mapping[str, Any]) -> bool:
    """Whether a run says so; one that was killed says nothing."""
    outcome = record.get("outcome")
    return isinstance(outcome, dict) and outcome.get("committed") == 0


def _environments(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The distinct environments of a run: its own, and those of the feature sets that it copied rows from."""
    found: list[dict[str, Any]] = []
    own = [record.get("environment")]
    copied = [
        environment
        for source in _list(record.get("reused_from"))
        if isinstance(source, dict)
        for environment in _list(source.get("environments"))
    ]
    for environment in own + copied:
        if isinstance(environment, dict) and environment not in found:
            found.append(environment)
    return found


def _list(value: Any) -> list[Any]:
    """A stranger's value where it is a list, else nothing."""
    return value if isinstance(value, list) else []
