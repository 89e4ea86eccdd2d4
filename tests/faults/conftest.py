"""What the trials share: one laboratory, and the table that `make faults` writes."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.harness import FULL, Lab, Row
from tests.faults.report import write_report
from tests.faults.tracer import why_not

# A disk makes a trial four times slower, and these faults do not depend on it: what a disk has when the power fails is
# computed from the calls.
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Source, undisturbed store, server."""
    in_memory = os.access(_MEMORY, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="vitrine-lab-", dir=_MEMORY)) if in_memory else tmp_path_factory.mktemp("lab")
    laboratory = Lab(folder)
    try:
        yield laboratory
    finally:
        laboratory.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def traced() -> None:
    """Skips where processes cannot be traced."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def new_row() -> Iterator[Callable[..., Row]]:
    """Makes lines of the table; `make faults` writes them down, however the test ends."""
    made: list[Row] = []

    def make(fault: str) -> Row:
        made.append(Row(fault))
        return made[-1]

    yield make
    if FULL:
        write_report([row for row in made if row.tried])
