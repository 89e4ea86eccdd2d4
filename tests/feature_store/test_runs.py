"""runs: under which environments a feature set may have been begun."""

from datetime import UTC, datetime, timedelta
from typing import Any

from feature_store import create_store
from feature_store.layout import check_segment
from feature_store.objects import ObjectRoot
from feature_store.records import write_record
from feature_store.runs import earlier_environments, latest_runs, new_run_id, run_time

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


def test_the_latest_run_that_may_have_committed_dates_a_feature_set(store_url: str) -> None:
    root = create_store(store_url)
    _run(root, "20260102T030405-a", "x", outcome={"committed": 2})
    _run(root, "20260101T030405-b", "x")
    _run(root, "20260103T030405-c", "x", outcome={"committed": 0})
    _run(root, "20251231T030405-d", "x", feature_set="features/tiny/another")
    assert latest_runs(root) == {"tiny/vit": "20260102T030405-a", "tiny/another": "20251231T030405-d"}
    assert run_time("20260102T030405-a") == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert run_time("last") is None


def test_a_new_id_says_when_its_run_began_and_is_no_other_run_s() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    ids = [new_run_id(), new_run_id()]
    assert ids[0] != ids[1]
    for run_id in ids:
        began = run_time(run_id)
        assert began is not None
        assert before <= began <= before + timedelta(minutes=1)
        assert check_segment(run_id) == run_id
