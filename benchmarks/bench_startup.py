"""What `vitrine --help` costs before it says anything: processor seconds against an interpreter that does nothing."""

import os
import subprocess
import sys
from statistics import median

from benchmarks.ratio import FULL


def _cpu_s(*arguments: str) -> float:
    """Processor seconds of one child process, user and system."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help() -> None:
    rounds = range(5 if FULL else 1)
    bare = median(_cpu_s("-c", "pass") for _ in rounds)
    shown = median(_cpu_s("-m", "vitrine", "--help") for _ in rounds)
    assert shown > 0
    print(f"\nvitrine --help: {shown:.2f} s of CPU (limit 0.5), an empty interpreter {bare:.2f} s")
