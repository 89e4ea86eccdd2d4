"""Runs that are stopped or killed at any instant, in real processes, and run again."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.beam_engine import BeamEngine
from pipelines.run import Prepared, run_extraction

Prepare = Callable[..., Prepared]
SameTrees = Callable[[Path, Path], bool]
StartFront = Callable[..., Any]
N_SHARDS = 8


def receipt_times(store: Path) -> dict[str, int]:
    """When each receipt was written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("features/*/*/receipts/*.json")}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed_and_run_again_computes_only_what_is_missing(
    start_front: StartFront, prepare: Prepare, tmp_path: Path, same_trees: SameTrees, workers: int
) -> None:
    front = start_front(workers=workers)
    front.wait_for_receipts(2)
    front.process.send_signal(signal.SIGKILL)
    front.process.wait()
    front.wait_until_alone()
    before = receipt_times(tmp_path / "store")
    assert 2 <= len(before) < N_SHARDS
    outcome = start_front(workers=workers).finish()
    assert (outcome["already"], outcome["committed"]) == (len(before), N_SHARDS - len(before))
    after = receipt_times(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    run_extraction(prepare(store="undisturbed"), BeamEngine())
    assert same_trees(tmp_path / "store" / "features", tmp_path / "undisturbed" / "features")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_ends_soon_and_leaves_nothing_running(
    start_front: StartFront, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    front = start_front(workers=workers)
    front.wait_for_receipts(2)
    if number == signal.SIGINT:
        os.killpg(front.process.pid, number)  # as a terminal sends it
    else:
        front.process.send_signal(number)
    outcome = front.finish()
    assert front.relatives() == []
    assert outcome["interrupted"] == number
    assert outcome["failures"] == []
    assert 2 <= outcome["committed"] == len(receipt_times(tmp_path / "store")) < N_SHARDS
    assert front.errors == ""


def test_two_runs_at_once_both_end_well(
    start_front: StartFront, prepare: Prepare, tmp_path: Path, same_trees: SameTrees
) -> None:
    fronts = [start_front(), start_front()]
    for front in fronts:
        outcome = front.finish()
        assert front.errors == ""
        assert outcome["failures"] == []
        assert outcome["already"] + outcome["committed"] == N_SHARDS
    run_extraction(prepare(store="undisturbed"), BeamEngine())
    assert same_trees(tmp_path / "store" / "features", tmp_path / "undisturbed" / "features")
