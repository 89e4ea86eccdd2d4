"""Processes that share a store: runs of one plan and another, readers, verifiers, sweepers, clocks that are wrong."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_store.roots import open_root
from feature_store.upkeep import verify_store
from tests.faults.harness import Answer, Lab, Row, check, times

NewRow = Callable[[str], Row]
_MOST_RUNS = 4


_ROWS = {
    "verify": ("two to four runs on one store; another plan, a reader, verify beside; clocks 10 years off", 120, 3),
    "collect": ("two to four runs on one store; another plan, a reader, gc beside; clocks 10 years off", 80, 3),
}


@pytest.mark.parametrize("beside", _ROWS)
def test_runs_on_one_store_do_not_disturb_one_another(lab: Lab, new_row: NewRow, beside: str) -> None:
    fault, full, sample = _ROWS[beside]
    row = new_row(fault)
    chance = random.Random(beside)
    for trial in range(times(full, sample)):
        store = lab.new_store()
        jobs = _jobs(lab, store, chance, beside)
        endings = lab.server.ask({"action": "together", "jobs": jobs, "until": jobs[-1]["until"]})["endings"]
        what = f"trial {trial}: {[(job['action'], job.get('kill_after_s'), job.get('years_off')) for job in jobs]}"
        for job, ending in zip(jobs, endings, strict=True):
            _hold(lab, row, job, ending, what)
            for name in ("out", "err"):
                Path(f"{job['log']}.{name}").unlink()
        answer = lab.run(store)
        _set_aside_other_plans(lab, store)
        lab.compare(row, store, what, answer)
        report = verify_store(open_root(str(store)), deep=True)
        row.wrong += [f"{what}: {each.text}" for each in report.problems]
        row.tried += 1
        Path(jobs[-1]["until"]).unlink()
        lab.remove(store)
    check(row)


def _jobs(lab: Lab, store: Path, chance: random.Random, beside: str) -> list[dict[str, Any]]:
    """Two to four runs, one of them perhaps of another plan or killed, and who looks on."""
    until = str(lab.folder / f"until-{store.name}")
    jobs = [lab.job(store, cpu=place) for place in range(chance.randint(2, _MOST_RUNS))]
    if chance.random() < 0.5:
        jobs.append(lab.job(store, "--layers", "1"))
    if chance.random() < 0.3:
        jobs[0]["kill_after_s"] = chance.uniform(0, 2 * lab.seconds)
    for job in jobs:
        if chance.random() < 0.4:
            job["years_off"] = chance.choice([-10, 10])
    onlookers = ["read", beside, *(["sweep"] if chance.random() < 0.5 else [])]
    jobs += [{**lab.job(store), "action": action} for action in onlookers]
    return [{**job, "store": str(store), "until": until, "expected": str(lab.undisturbed)} for job in jobs]


def _hold(lab: Lab, row: Row, job: dict[str, Any], ending: Answer, what: str) -> None:
    if job["action"] == "command":
        lab.note_seen(row, ending, what)
        if ending["code"] not in (3, -9):
            row.wrong.append(f"{what}: a run ended with {ending['code']}: {ending['err'][-300:]}")
    elif ending["code"] != 0:
        row.wrong.append(f"{what}: {job['action']} said {(ending['out'] + ending['err'])[-400:]}")


def _set_aside_other_plans(lab: Lab, store: Path) -> None:
    """Take away what the undisturbed store has not: the feature sets of other plans."""
    wanted = {path.relative_to(lab.undisturbed) for path in lab.undisturbed.glob("features/*/*")}
    for path in store.glob("features/*/*"):
        if path.relative_to(store) not in wanted:
            lab.remove(path)
