"""SIGKILL: at random times, before every call on files, of one worker, of the parent."""

import random
from collections.abc import Callable

import pytest

from tests.faults.harness import FULL, N_SHARDS, Lab, Row, check, times
from tests.faults.tracer import FILE_CALLS

NewRow = Callable[[str], Row]
# Worker processes load torch anew, in seconds: a sample has none of them.
_TRIALS = {1: (450, 8), 2: (30, 0), 4: (20, 0)}


@pytest.mark.parametrize("workers", [workers for workers, counts in _TRIALS.items() if counts[not FULL]])
def test_a_run_killed_at_a_random_time_and_run_again_lacks_nothing(lab: Lab, new_row: NewRow, workers: int) -> None:
    row = new_row(f"SIGKILL at a random time, {workers} worker{'s' if workers > 1 else ''}")
    chance = random.Random(workers)
    options = () if workers == 1 else ("--workers", str(workers))
    seconds = lab.seconds if workers == 1 else lab.timed(*options)
    for trial in range(times(*_TRIALS[workers])):
        store = lab.new_store()
        cpu = trial if workers == 1 else None
        answer = lab.run(store, *options, kill_after_s=chance.uniform(0, 1.1 * seconds), cpu=cpu)
        lab.note_seen(row, answer, f"trial {trial}")
        lab.finish(row, store, f"trial {trial}", *options)
    check(row)


@pytest.mark.usefixtures("traced")
def test_a_run_killed_before_any_call_on_files_and_run_again_lacks_nothing(lab: Lab, new_row: NewRow) -> None:
    store = lab.new_store()
    n_calls = lab.run(store, fault={"kind": "none"}, cpu=0)["matching"]
    lab.remove(store)
    row = new_row(f"SIGKILL before every call of a run on its store ({', '.join(FILE_CALLS)}), one process")
    every = range(n_calls) if FULL else sorted(random.Random(2).sample(range(n_calls), k=10))
    for number in every:
        store = lab.new_store()
        answer = lab.run(store, fault={"kind": "kill", "at": number}, cpu=number)
        assert answer["code"] == -9, f"call {number} of {n_calls}"
        lab.note_seen(row, answer, f"call {number}")
        lab.finish(row, store, f"call {number} {answer['hit']}")
    check(row, wanted=len(every))


@pytest.mark.usefixtures("traced")
def test_a_run_killed_at_its_very_last_file_leaves_nothing_that_the_next_one_does_not_take_away(lab: Lab) -> None:
    """Nothing is left to compute then, and the next run has nothing to do but to tidy up."""
    store, row = lab.new_store(), Row("")
    index = {"kind": "kill", "names": ["rename"], "parts": ["/receipts.json"]}
    assert lab.run(store, fault=index)["code"] == -9
    lab.finish(row, store, "the index of receipts")
    check(row)


@pytest.mark.usefixtures("traced")
def test_a_receipt_that_a_killed_run_did_not_sync_is_synced_by_the_next(lab: Lab) -> None:
    store = lab.new_store()
    receipts = {"names": ["fsync"], "parts": ["/receipts"]}
    # Of each receipt its file and then its folder are synced: the last call is that of the last receipt's folder.
    n_calls = lab.run(store, fault={"kind": "none", **receipts})["matching"]
    lab.remove(store)
    killed = lab.run(store, fault={"kind": "kill", "at": n_calls - 1, **receipts})
    assert killed["hit"][0]["paths"][0].endswith("/receipts")
    assert len(list(store.glob("features/*/*/receipts/*.json"))) == N_SHARDS
    assert lab.run(store, fault={"kind": "none", **receipts})["matching"] == 1
    lab.remove(store)
