"""The power fails at any call of a run: in all states a disk may have receipts are true, and a run mends the rest."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.faults.disk_states import Disk
from tests.faults.harness import Lab, Row, check, times
from tests.faults.tracer import FileCall

NewRow = Callable[[str], Row]


@pytest.fixture(scope="module")
def calls(lab: Lab, traced: None) -> list[FileCall]:
    """The calls of an undisturbed run, with what it wrote."""
    trace, top = lab.folder / "trace", lab.folder / "disk"
    top.mkdir()
    lab.run(top / "store", fault={"kind": "none"}, trace_to=str(trace), roots=[str(top)])
    found = [json.loads(line) for line in trace.read_text().splitlines()]
    lab.remove(top)
    return [FileCall(**{**call, "paths": tuple(call["paths"]), "data": bytes.fromhex(call["data"])}) for call in found]


def test_the_disk_that_saw_every_call_holds_what_the_run_wrote(lab: Lab, calls: list[FileCall]) -> None:
    """Else the states that are computed of a part of the calls would be of another run."""
    top = _state(lab, calls, len(calls), random.Random(0))
    row = Row("")
    lab.compare(row, top / "store", "replayed", {"code": 3, "err": "", "out": ""})
    lab.remove(top)
    assert row.wrong == []


def test_what_stands_after_a_power_loss_is_true_and_is_finished_by_the_same_command(
    lab: Lab, new_row: NewRow, calls: list[FileCall]
) -> None:
    row = new_row("power loss at any call: unsynced data absent, empty, cut or zero, renames undone")
    chance = random.Random(3)
    n_hurt = 0
    for trial in range(times(1000, 10)):
        at = chance.randrange(len(calls))
        top = _state(lab, calls, at, chance)
        untrue = lab.untrue_receipts(top / "store")
        if untrue:
            row.wrong.append(f"power loss at call {at}: receipts {untrue} stand without their objects")
        n_hurt += any(True for _ in top.rglob("*"))
        row.saw["nothing: the machine was off"] += 1
        lab.finish(row, top / "store", f"state {trial} at call {at}")
        lab.remove(top)
    assert n_hurt > 0
    check(row)


def test_without_fsync_of_shards_receipts_would_stand_without_their_objects(lab: Lab, calls: list[FileCall]) -> None:
    """The states are harsh enough to find what the protocol is there for."""
    chance = random.Random(4)
    found = 0
    for _ in range(60):
        top = _state(lab, calls, len(calls), chance, deaf_to="/c/")
        found += bool(lab.untrue_receipts(top / "store"))
        lab.remove(top)
    assert found > 0


def _state(lab: Lab, calls: Sequence[FileCall], at: int, chance: random.Random, *, deaf_to: str | None = None) -> Path:
    """A state of the disk when the power failed before call `at`."""
    disk = Disk(str(lab.folder / "disk"), deaf_to)
    for call in calls[:at]:
        disk.see(call)
    top = lab.new_store()
    top.mkdir()
    disk.after_power_loss(chance, top)
    return top
