"""A disk that is full, failing, read-only, forbidden, or short of descriptors, at any call, once or from then on."""

import random
from collections.abc import Callable

import pytest

from tests.faults.harness import Lab, Row, check, times

NewRow = Callable[[str], Row]
_MAKES = ("write", "fsync", "rename", "link", "unlink", "mkdir", "open")
# Which calls can answer so.
_ERRORS = {
    "ENOSPC": ("write", "fsync", "rename", "link", "mkdir"),
    "EIO": _MAKES,
    "EROFS": ("rename", "link", "unlink", "mkdir", "write"),
    "EACCES": ("open", "rename", "link", "unlink", "mkdir"),
    "EMFILE": ("open",),
}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("error", _ERRORS)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_run_whose_calls_fail_says_so_and_the_next_one_ends_well(
    lab: Lab, new_row: NewRow, error: str, lasting: bool
) -> None:
    row = new_row(f"{error} {'from the N-th call on' if lasting else 'at the N-th call'}")
    chance = random.Random(f"{error} {lasting}")
    for _ in range(times(45, 1)):
        names = [chance.choice(_ERRORS[error])] if not lasting else list(_ERRORS[error])
        fault = {"kind": "errno", "error": error, "names": names, "lasting": lasting}
        _try(lab, row, fault, chance)
    check(row)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_writes_that_write_a_part_are_gone_on_with(lab: Lab, new_row: NewRow, lasting: bool) -> None:
    row = new_row(f"short write {'from the N-th on' if lasting else 'once'}")
    chance = random.Random(f"short {lasting}")
    for _ in range(times(25, 1)):
        _try(lab, row, {"kind": "short", "names": ["write"], "lasting": lasting}, chance)
    assert set(row.saw) == {"it finished by itself"}
    check(row)


def _try(lab: Lab, row: Row, fault: dict[str, object], chance: random.Random) -> None:
    """Count the calls of such names once a lab, then let a random one go wrong."""
    key = ",".join(sorted(fault["names"]))  # type: ignore[call-overload]
    store = lab.new_store()
    roots = [str(store), str(lab.source)]
    if key not in lab.counts:
        lab.counts[key] = lab.run(store, fault={"kind": "none", "names": fault["names"]}, roots=roots)["matching"]
        lab.remove(store)
    at = chance.randrange(lab.counts[key])
    what = f"{fault} at {at}"
    answer = lab.run(store, fault={**fault, "at": at}, roots=roots)
    assert answer["hit"], what
    what = f"{what} {answer['hit'][0]['name']} {answer['hit'][0]['paths']}"
    lab.note_seen(row, answer, what)
    lab.finish(row, store, what)
