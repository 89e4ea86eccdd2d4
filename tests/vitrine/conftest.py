"""The command line as a user runs it: its standard output, standard error and exit code."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrine.__main__ import run as run_command_line


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Ran]


def run_vitrine(*arguments: object, columns: int = 160) -> Ran:
    """The command line within this process: what a user sees, without the seconds that imports take."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("COLUMNS", str(columns))
        code = run_command_line([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object) -> Ran:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "vitrine", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def vitrine() -> Run:
    return run_vitrine


@pytest.fixture(scope="session")
def tiny_store(
    tmp_path_factory: pytest.TempPathFactory, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> Path:
    """A store made by the command line from `tiny_images`; treat it as read-only but for results and selections."""
    store = tmp_path_factory.mktemp("tiny_store") / "store"
    made = run_vitrine(
        "extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights, "--store", store
    )
    assert made.code == 0, made.err
    return store


@pytest.fixture
def photos_store(tmp_path: Path, tiny_model: str, tiny_weights: Path) -> Path:
    """A store of two folders of classes with six photos each, without splits."""
    generator = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / ("dark" if number % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        low = 0 if number % 2 else 128
        pixels = generator.integers(low, low + 128, (48, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    store = tmp_path / "photos_store"
    words = ("extract", f"images:{tmp_path / 'photos'}", "--model", tiny_model, "--weights", tiny_weights)
    made = run_vitrine(*words, "--store", store)
    assert made.code == 0, made.err
    return store
