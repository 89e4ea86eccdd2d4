"""runs: under which environments a feature set may have been begun."""

from typing import Any

from feature_store import create_store
from feature_store.objects import ObjectRoot
from feature_store.records import write_record
from feature_store.runs import earlier_environments

_FOLDER = "features/tiny/vit"


def _run(root: ObjectRoot, run_id: str, torch: str, **changes: Any) -> None:
    record = {"feature_set": _FOLDER, "environment": {"torch": torch}, **changes}
    write_record(root, f"runs/{run_id}/run.json", record)


def test_environments_are_distinct_and_oldest_first(store_url: str) -> None:
    root = create_store(store_url)
    assert earlier_environments(root, _FOLDER) == []
    _run(root, "2", "2.12", outcome={"committed": 3})
    _run(root, "1", "2.11", outcome={"committed": 1})
    _run(root, "3", "2.11", outcome={"committed": 1})
    _run(root, "4", "2.13", feature_set="features/tiny/another")
    assert earlier_environments(root, _FOLDER) == [{"torch": "2.11"}, {"torch": "2.12"}]


def test_a_killed_run_counts_and_one_that_committed_nothing_does_not(store_url: str) -> None:
    root = create_store(store_url)
    _run(root, "1", "killed")
    _run(root, "2", "failed", outcome={"committed": 0})
    assert earlier_environments(root, _FOLDER) == [{"torch": "killed"}]


def test_what_is_no_record_of_a_run_is_passed_over(store_url: str) -> None:
    root = create_store(store_url)
    root.put("runs/1/run.json", [b"{"])
    root.put("runs/2/times.json", [b"{}"])
    root.put("runs/stray", [b""])
    _run(root, "3", "x", environment=["torch"])
    _run(root, "4", "good", outcome="?")
    assert earlier_environments(root, _FOLDER) == [{"torch": "good"}]
