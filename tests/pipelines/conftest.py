"""What the tests of extraction share: pictures, a tiny backbone, a plan, and a front process to send signals to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.backbones import BackboneRequest, resolve_backbone
from pipelines.datasets import open_dataset
from pipelines.plan import ExtractionSettings
from pipelines.run import Prepared, prepare_extraction

N_PICTURES = 60
ROWS_PER_SHARD = 8
WAIT_S = 240.0
_MARK = "VITRINE_TEST_FRONT"
_FRONT = """
import json, sys
from pathlib import Path
from pipelines.backbones import resolve_backbone
from pipelines.beam_engine import BeamEngine
from pipelines.datasets import open_dataset
from pipelines.plan import ExtractionSettings
from pipelines.run import prepare_extraction, run_extraction

job = json.loads(sys.argv[1])
request = resolve_backbone(job["model"], weights=Path(job["weights"]), image_size=job["image_size"])
settings = ExtractionSettings(rows_per_shard=8, batch_size=8)
prepared = prepare_extraction(
    open_dataset("images:" + job["pictures"]), request, settings, store=job["store"], workers=job["workers"]
)
outcome = run_extraction(
    prepared, BeamEngine(), workers=job["workers"], progress_folder=Path(job["progress"])
)
print(json.dumps(outcome.to_json()))
"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy pictures of 48 x 40 pixels in two class folders; copy them before changing them."""
    root: Path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    for index in range(N_PICTURES):
        folder = root / ("even", "odd")[index % 2]
        folder.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_request(tiny_model: str, tiny_weights: Path) -> BackboneRequest:
    """The tiny backbone at 64 pixels, a grid of 4 x 4."""
    return resolve_backbone(tiny_model, weights=tiny_weights, image_size=64)


@pytest.fixture
def prepare(pictures: Path, tiny_request: BackboneRequest, tmp_path: Path) -> Callable[..., Prepared]:
    """Prepares an extraction of the pictures by the tiny backbone, in shards of 8 rows."""

    def prepare_pictures(
        *, store: str = "store", images: Path = pictures, request: BackboneRequest = tiny_request, **changes: Any
    ) -> Prepared:
        others = {name: changes.pop(name) for name in ("workers", "allow_mixed_environment") if name in changes}
        settings = ExtractionSettings(**{"rows_per_shard": ROWS_PER_SHARD, "batch_size": 8, **changes})
        return prepare_extraction(
            open_dataset(f"images:{images}"), request, settings, store=str(tmp_path / store), **others
        )

    return prepare_pictures


@pytest.fixture
def same_trees() -> Callable[[Path, Path], bool]:
    """Whether two folders hold the same files with the same bytes, and each at least one."""

    def compare(one: Path, other: Path) -> bool:
        trees = [
            {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (one, other)
        ]
        return trees[0] == trees[1] and bool(trees[0])

    return compare


class Front:
    """A front process that extracts, in a process group of its own, and everything it starts."""

    def __init__(self, job: dict[str, Any], mark: str) -> None:
        self.store, self.progress = Path(job["store"]), Path(job["progress"])
        self._mark = f"{_MARK}={mark}".encode()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _FRONT, json.dumps(job)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                "OMP_WAIT_POLICY": "passive",
                "TMPDIR": str(self.progress),  # a killed process cannot tidy up
                _MARK: mark,
            },
        )

    def wait_for_receipts(self, count: int) -> None:
        """Return when so many shards are committed."""
        deadline = time.monotonic() + WAIT_S
        while len(list(self.store.glob("features/*/*/receipts/*.json"))) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"no {count} receipts: {self.process.communicate()[1].decode()[-2000:]}")
            time.sleep(0.002)

    def finish(self) -> dict[str, Any]:
        """The outcome that the process prints; it must end well, and print nothing else."""
        out, errors = self.process.communicate(timeout=WAIT_S)
        assert self.process.returncode == 0, errors.decode()
        outcome: dict[str, Any] = json.loads(out)
        self.errors = errors.decode()
        return outcome

    def relatives(self) -> list[int]:
        """Living processes that were started by this one or by those, itself left out."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self._mark in (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if marked and int(folder.name) != self.process.pid:
                found.append(int(folder.name))
        return found

    def wait_until_alone(self) -> None:
        """Return when nothing that it started is left."""
        deadline = time.monotonic() + WAIT_S
        while left := self.relatives():
            if time.monotonic() > deadline:
                pytest.fail(f"processes {left} are left")
            time.sleep(0.02)

    def end(self) -> None:
        """Kill what is left, so that a failed test leaves nothing behind."""
        for pid in [self.process.pid, *self.relatives()] if self.process.poll() is None else self.relatives():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start_front(pictures: Path, tiny_request: BackboneRequest, tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Starts a front process that extracts the pictures into a store."""
    fronts: list[Front] = []

    def start(*, store: str = "store", workers: int = 1) -> Front:
        progress = tmp_path / f"progress-{len(fronts)}"
        progress.mkdir()
        job = {
            "model": tiny_request.model,
            "weights": tiny_request.weights,
            "image_size": tiny_request.image_size,
            "pictures": str(pictures),
            "store": str(tmp_path / store),
            "workers": workers,
            "progress": str(progress),
        }
        fronts.append(Front(job, f"{tmp_path.name}-{len(fronts)}-{os.getpid()}"))
        return fronts[-1]

    yield start
    for front in fronts:
        front.end()
