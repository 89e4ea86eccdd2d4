"""Worker processes that are killed in the middle of a commit, their parent likewise, and memory that runs out."""

import random
from collections.abc import Callable

import pytest

from tests.faults.harness import FULL, N_SHARDS, Lab, Row, check, times

NewRow = Callable[[str], Row]
_MEGABYTE = 1 << 20


@pytest.mark.usefixtures("traced")
@pytest.mark.skipif(not FULL, reason="starts worker processes, which load torch anew, again and again: make faults")
def test_a_worker_killed_before_any_call_of_its_commit_takes_no_other_with_it(lab: Lab, new_row: NewRow) -> None:
    """The run goes on by itself; in an undisturbed one the calls on objects and receipts are all made by workers."""
    row = new_row("SIGKILL of one of 2 workers before a call of its commits")
    parts = ["/tokens.zarr/layer_2/patches/c", "/tokens.zarr/layer_2/cls/c", "/valid/c", "/receipts"]
    store = lab.new_store()
    options = ("--workers", "2")
    n_calls = lab.run(store, *options, fault={"kind": "none", "parts": parts})["matching"]
    lab.remove(store)
    for at in sorted(random.Random(8).sample(range(n_calls), k=8)):
        store = lab.new_store()
        answer = lab.run(store, *options, fault={"kind": "kill", "at": at, "parts": parts})
        lab.note_seen(row, answer, f"call {at}")
        if f"{N_SHARDS} of {N_SHARDS} shards committed" not in answer["out"]:
            row.wrong.append(f"call {at}: the run did not go on by itself: {answer['out']} {answer['err']}")
        lab.finish(row, store, f"call {at} {answer['hit']}", *options)
    check(row)


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
