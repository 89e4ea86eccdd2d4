"""What short commands cost: processor seconds of a process of its own, beside those of `vitrine --help`.

A stored answer and a listing are to cost at most twice the help page and .3 s more. What each loads is held by
tests/vitrine/test_startup.py; seconds are only told here, since they are the machine's.
"""

import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from benchmarks.ratio import FULL
from pipelines.datasets import write_demo_scenes
from tests.vitrine.conftest import run_vitrine

_ALLOWED_TIMES, _ALLOWED_MORE_S = 2.0, 0.3


def _cpu_s(*arguments: object) -> float:
    """The least processor seconds, user and system, of several runs of a child process."""

    def one() -> float:
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *map(str, arguments)], check=False, capture_output=True)
        after = getrusage(RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(one() for _ in range(3 if FULL else 1))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The scenes of `vitrine demo`, a few of them."""
    write_demo_scenes(tmp_path / "scenes", train_scenes=4, test_scenes=2)
    return tmp_path / "scenes"


def test_short_commands(tmp_path: Path, images: Path) -> None:
    store = tmp_path / "store"
    extract = ("extract", f"segmentation:{images}", "--model", "null", "--image-size", 64, "--store")
    assert run_vitrine(*extract, store).code == 0
    for evaluator in ("knn", "linear", "variance"):
        assert run_vitrine(evaluator, store).code == 0
    commands: dict[str, tuple[object, ...]] = {
        "ls": ("ls", store),
        "results": ("results", store),
        "show": ("show", store),
        "a stored knn": ("knn", store),
        "a stored linear": ("linear", store),
        "a stored variance": ("variance", store),
        "a mistyped layer": ("knn", store, "--layer", "lsat"),
        "a mistyped model": ("extract", f"segmentation:{images}", "--model", "dinov2_vits14", "--store", store),
        "extract --dry-run": (*extract, tmp_path / "none", "--dry-run"),
    }
    bare, shown = _cpu_s("-c", "pass"), _cpu_s("-m", "vitrine", "--help")
    assert shown > 0
    allowed = _ALLOWED_TIMES * shown + _ALLOWED_MORE_S
    print(f"\nvitrine --help: {shown:.2f} s of CPU, an empty interpreter {bare:.2f} s; allowed {allowed:.2f} s")
    for name, arguments in commands.items():
        seconds = _cpu_s("-m", "vitrine", *arguments)
        print(f"{name}: {seconds:.2f} s of CPU, {seconds / shown:.1f} times the help page")
