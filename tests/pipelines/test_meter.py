"""Counter files and failures: what those who watch a run can read at any time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_store import StoreError
from pipelines.failures import ShardFailure, read_failures, reason_of, write_failure
from pipelines.meter import Meter, process_meter, read_counts, read_shard_times


def test_a_counter_file_says_which_shard_is_in_hand(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    with meter.shard(7):
        assert [count.shard for count in read_counts(tmp_path)] == [7]
        meter.add_rows(3)
        assert [count.rows for count in read_counts(tmp_path)] == [3]
    (count,) = read_counts(tmp_path)
    assert count.shard is None
    assert [times.shard for times in read_shard_times(tmp_path)] == [7]


def test_a_shard_that_failed_is_no_longer_in_hand_and_not_committed(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    with pytest.raises(ValueError, match="broken"), meter.shard(7):
        raise ValueError("broken")
    (count,) = read_counts(tmp_path)
    assert count.shard is None
    assert read_shard_times(tmp_path) == []


def test_the_seconds_of_a_shard_are_its_own(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    meter.count.seconds["read"] = 100.0
    with meter.shard(0), meter.stage("write"):
        pass
    (times,) = read_shard_times(tmp_path)
    assert times.seconds["read"] == times.seconds["decode"] == times.seconds["infer"] == 0.0
    assert 0.0 < times.seconds["write"] <= times.wall_s


def test_counting_goes_on_where_no_file_can_be_written(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "gone")
    meter.add_rows(3)
    assert meter.count.rows == 3
    assert read_counts(tmp_path / "gone") == []


def written_bytes() -> int:
    """What this process has written so far, wherever to."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"])


def test_a_batch_writes_as_many_bytes_after_three_hundred_shards_as_after_ten(tmp_path: Path) -> None:
    meter, spent = Meter(tmp_path), {}
    for index in range(300):
        with meter.shard(index):
            if index in (10, 299):
                before = written_bytes()
                for _ in range(20):
                    meter.add_rows(1)
                spent[index] = written_bytes() - before
    assert len(read_shard_times(tmp_path)) == 300
    # The numbers themselves grow by a digit or two.
    assert 0 < spent[299] < 1.1 * spent[10]


def test_what_a_killed_process_left_half_written_is_passed_over(tmp_path: Path) -> None:
    meter = Meter(tmp_path)
    with meter.shard(4):
        pass
    (times,) = tmp_path.glob("shards-*.jsonl")
    whole = times.read_bytes()
    times.write_bytes(whole + whole[: len(whole) // 2])
    (tmp_path / "worker-0.json").write_text('{"pid": 1, "sh')
    (tmp_path / "failure-000001.json").write_text("")
    with meter.shard(5):
        pass
    assert [each.shard for each in read_shard_times(tmp_path)] == [4, 5]
    assert [count.pid for count in read_counts(tmp_path)] == [meter.count.pid]
    assert read_failures(tmp_path) == []


_TWO_DEATHS = """
import json, os, sys, threading
from pathlib import Path
from pipelines.beam_driver import WORKER_DIED_EXIT, _DeathReport

# So long that a report which is cut off is found cut off.
cause = "SIGKILL" * 100_000
for attempt in range(int(sys.argv[2])):
    place = Path(sys.argv[1], f"death-{attempt}.json")
    child = os.fork()
    if not child:
        report, together = _DeathReport(place, place.parent, set()), threading.Barrier(2)
        def leave():
            together.wait()
            report._leave(cause)
        threading.Thread(target=leave).start()
        leave()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == WORKER_DIED_EXIT
    assert json.loads(place.read_text()) == {"cause": cause, "shards": []}, attempt
"""


def test_of_two_workers_that_die_together_one_report_is_left_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO_DEATHS, str(tmp_path), "20"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


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
