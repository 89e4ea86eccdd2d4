"""Counter files and failures: what those who watch a run can read at any time."""

import json
from pathlib import Path

import pytest

from feature_store import StoreError
from pipelines.failures import ShardFailure, read_failures, reason_of, write_failure
from pipelines.meter import Meter, process_meter, read_counts


def test_a_counter_file_says_which_shard_is_in_hand(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    with meter.shard(7):
        assert [count.shard for count in read_counts(tmp_path)] == [7]
        meter.add_rows(3)
        assert [count.rows for count in read_counts(tmp_path)] == [3]
    (count,) = read_counts(tmp_path)
    assert count.shard is None
    assert [index for index, _, _ in count.shards] == [7]


def test_a_shard_that_failed_is_no_longer_in_hand_and_not_committed(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    with pytest.raises(ValueError, match="broken"), meter.shard(7):
        raise ValueError("broken")
    (count,) = read_counts(tmp_path)
    assert (count.shard, count.shards) == (None, [])


def test_the_seconds_of_a_shard_are_its_own(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    meter.count.seconds["read"] = 100.0
    with meter.shard(0), meter.stage("write"):
        pass
    _, wall, split = meter.count.shards[0]
    assert split["read"] == split["decode"] == split["infer"] == 0.0
    assert 0.0 < split["write"] <= wall


def test_counting_goes_on_where_no_file_can_be_written(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "gone")
    meter.add_rows(3)
    assert meter.count.rows == 3
    assert read_counts(tmp_path / "gone") == []


def test_a_process_has_one_meter_a_run(tmp_path: Path) -> None:
    assert process_meter(tmp_path) is process_meter(tmp_path)


def test_failures_are_read_in_the_order_of_shards(tmp_path: Path) -> None:
    failures = [ShardFailure(shard=index, reason=f"reason {index}") for index in (12, 3)]
    for failure in failures:
        write_failure(tmp_path, failure)
    assert read_failures(tmp_path) == failures[::-1]
    assert json.loads((tmp_path / "failure-000003.json").read_text()) == {"shard": 3, "reason": "reason 3"}


class ForeignError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StoreError("no store at /x;\n  make one."), "no store at /x; make one."),
        (ForeignError("two\nlines"), "ForeignError: two lines"),
        (ForeignError(), "ForeignError"),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 500),
    ],
)
def test_a_reason_is_one_bounded_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
