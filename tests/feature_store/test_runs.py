"""runs: under which environments a feature set may have been begun."""

from datetime import UTC, datetime, timedelta
from typing import Any

from feature_store import create_store
from feature_store.layout import check_segment
from feature_store.objects import ObjectRoot
from feature_store.records import write_record
from feature_store.runs import RunHistory, earlier_environments, id_for_run, is_id_of_run, new_run_id, run_time

_FOLDER = "features/tiny/vit"


def _run(root: ObjectRoot, began: str, torch: str, **changes: Any) -> str:
    record = {"feature_set": _FOLDER, "environment": {"torch": torch}, **changes}
    run_id = id_for_run(record, begun=began)
    write_record(root, f"runs/{run_id}/run.json", record)
    return run_id


def test_environments_are_distinct_and_oldest_first(store_url: str) -> None:
    root = create_store(store_url)
    assert earlier_environments(root, _FOLDER) == []
    _run(root, "20260102T000000-a", "2.12", outcome={"committed": 3})
    _run(root, "20260101T000000-a", "2.11", outcome={"committed": 1})
    _run(root, "20260103T000000-a", "2.11", outcome={"committed": 1})
    _run(root, "20260104T000000-a", "2.13", feature_set="features/tiny/another")
    assert earlier_environments(root, _FOLDER) == [{"torch": "2.11"}, {"torch": "2.12"}]


def test_a_killed_run_counts_and_one_that_committed_nothing_does_not(store_url: str) -> None:
    root = create_store(store_url)
    _run(root, "20260101T000000-a", "killed")
    _run(root, "20260102T000000-a", "failed", outcome={"committed": 0})
    assert earlier_environments(root, _FOLDER) == [{"torch": "killed"}]


def test_what_is_no_record_of_a_run_is_passed_over(store_url: str) -> None:
    root = create_store(store_url)
    run_id = _run(root, "20260101T000000-a", "x")
    root.put(f"runs/{run_id}/run.json", [b"{"])
    run_id = _run(root, "20260102T000000-a", "x")
    root.remove(f"runs/{run_id}/run.json")
    root.put(f"runs/{run_id}/times.json", [b"{}"])
    write_record(root, "runs/20260103T000000-a/run.json", {"feature_set": _FOLDER, "environment": {"torch": "y"}})
    root.put("runs/stray", [b""])
    _run(root, "20260103T000000-a", "x", environment=["torch"])
    _run(root, "20260104T000000-a", "good", outcome="?")
    assert earlier_environments(root, _FOLDER) == [{"torch": "good"}]


def test_the_latest_run_that_may_have_committed_dates_a_feature_set(store_url: str) -> None:
    root = create_store(store_url)
    latest = _run(root, "20260102T030405-a", "x", outcome={"committed": 2})
    _run(root, "20260101T030405-b", "x")
    _run(root, "20260103T030405-c", "y", outcome={"committed": 0})
    another = _run(root, "20251231T030405-d", "x", feature_set="features/tiny/another")
    names = ["tiny/vit", "tiny/another", "tiny/none"]
    assert RunHistory(root).latest(names) == {"tiny/vit": latest, "tiny/another": another}
    assert run_time(latest) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
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


def test_the_id_of_a_run_tells_its_feature_set_and_every_environment_of_its_rows() -> None:
    record = {"feature_set": _FOLDER, "environment": {"torch": "2.12"}, "started": "now"}
    copied = {**record, "reused_from": [{"feature_set": "a", "environments": [{"torch": "2.11"}]}]}
    same = {**record, "started": "later", "reused_from": [{"feature_set": "b", "environments": [{"torch": "2.12"}]}]}
    other = {**record, "feature_set": "features/tiny/another"}
    for each in (record, copied, same, other):
        assert is_id_of_run(id_for_run(each), each)
    assert is_id_of_run(id_for_run(record), same)
    assert not is_id_of_run(id_for_run(record), copied)
    assert not is_id_of_run(id_for_run(record), other)
    assert not is_id_of_run(new_run_id(), record)


def test_of_many_runs_alike_one_record_is_read(store_url: str) -> None:
    root = create_store(store_url)
    for minute in range(20):
        _run(root, f"20260101T00{minute:02}00-a", "2.12", outcome={"committed": int(minute > 1)})
    _run(root, "20260102T000000-a", "2.13")
    history = RunHistory(root)
    for run_id in root.list("runs")[3:-2]:
        root.remove(f"runs/{run_id}/run.json")
    assert history.environments(_FOLDER) == [{"torch": "2.12"}, {"torch": "2.13"}]
    assert history.latest(["tiny/vit"]) == {"tiny/vit": root.list("runs")[-1]}
