"""Ctrl-C while no engine is at work yet: one line that says what stands, and exit code 130."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.failures import ShardFailure
from vitrine.extraction import failure_lines

# The real command line, which sends itself the signal that a terminal sends as soon as a step of it begins.
_FRONT = """
import os, signal, sys
from importlib import import_module

module, _, name = sys.argv[1].partition(":")
held = import_module(module)
step = getattr(held, name)

def interrupted(*arguments, **named):
    os.kill(os.getpid(), signal.SIGINT)
    return step(*arguments, **named)

setattr(held, name, interrupted)
from vitrine.__main__ import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("pipelines.datasets:open_dataset", "interrupted; nothing was written"),
        ("vitrine.extraction:resolve_model", "interrupted; nothing was written"),
        ("vitrine.extraction:estimate_cost", "interrupted; nothing was written"),
        ("pipelines.run:begin_extraction", "interrupted, 0 of 2 shards committed; run the same command to go on"),
    ],
)
def test_ctrl_c_says_in_one_line_what_stands(tiny_images: Path, tmp_path: Path, step: str, line: str) -> None:
    store = tmp_path / "store"
    command = ["extract", f"segmentation:{tiny_images}", "--model", "null", "--store", str(store)]
    ran = subprocess.run(
        [sys.executable, "-c", _FRONT, step, *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 128 + signal.SIGINT
    assert ran.stderr.splitlines()[-1] == f"vitrine: {line}"
    assert "Traceback" not in ran.stderr
    assert not store.exists()


def test_shards_that_failed_for_one_reason_are_one_line() -> None:
    failures = [ShardFailure(shard=index, reason="disk full" if index != 7 else "killed") for index in range(3000)]
    assert failure_lines(failures) == ["2999 shards (0, 1, 2, 3, 4, ...) failed: disk full", "shard 7 failed: killed"]
