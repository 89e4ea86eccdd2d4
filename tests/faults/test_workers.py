"""Worker processes that are killed in the middle of a commit, their parent likewise, and memory that runs out."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import FULL, ROWS_PER_SHARD, Lab, Row, check, make_source, times
from tests.faults.tracer import FILE_CALLS

NewRow = Callable[[str], Row]
_MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def two_shards(lab: Lab) -> tuple[Path, Path]:
    """A shard for each of two workers: few calls, since a trial starts processes that load torch anew."""
    source = make_source(lab.folder / "two-shards", 2 * ROWS_PER_SHARD)
    undisturbed = lab.folder / "two-shards-undisturbed"
    assert lab.run(undisturbed, source=source)["code"] == 3
    return source, undisturbed


@pytest.mark.usefixtures("traced")
@pytest.mark.skipif(not FULL, reason="starts worker processes, which load torch anew, again and again: make faults")
def test_a_process_of_several_killed_before_any_call_on_files_leaves_a_run_that_ends_well(
    lab: Lab, new_row: NewRow, two_shards: tuple[Path, Path]
) -> None:
    """Where the parent is killed, its workers end too; where a worker is, the run goes on by itself."""
    source, undisturbed = two_shards
    parent = new_row(f"SIGKILL of the parent of 2 workers before every call of its own ({', '.join(FILE_CALLS)})")
    worker = new_row(f"SIGKILL of one of 2 workers before every call of its own ({', '.join(FILE_CALLS)})")
    store = lab.new_store()
    options = ("--workers", "2")
    n_calls = lab.run(store, *options, source=source, fault={"kind": "none"})["matching"]
    lab.remove(store)
    for at in sorted(random.Random(8).sample(range(n_calls), k=times(n_calls, 0))):
        store = lab.new_store()
        answer = lab.run(store, *options, source=source, fault={"kind": "kill", "at": at})
        row = parent if answer["code"] == -signal.SIGKILL else worker
        lab.note_seen(row, answer, f"call {at}")
        if row is worker and "2 of 2 shards committed" not in answer["out"]:
            row.wrong.append(f"call {at}: the run did not go on by itself: {answer['out']} {answer['err']}")
        # By one process: the number of workers is no part of what a run is.
        lab.finish(row, store, f"call {at} {answer['hit']}", source=source, undisturbed=undisturbed)
    check(parent)
    check(worker)


def test_a_run_whose_memory_ends_says_so_and_the_next_one_ends_well(lab: Lab, new_row: NewRow) -> None:
    row = new_row("out of memory under a limit")
    chance = random.Random(9)
    for _ in range(times(40, 3)):
        store = lab.new_store()
        more = int(2 ** chance.uniform(0, 10) * _MEGABYTE)
        answer = lab.run(store, memory_bytes=more, cpu=0)
        lab.note_seen(row, answer, f"{more} bytes")
        lab.finish(row, store, f"{more} bytes")
    check(row)
