"""Trials: a fault in a real run, the same command again, and a comparison with a store that nothing ever disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from feature_store import open_store
from feature_store.errors import StoreError

ROOT = Path(__file__).resolve().parents[2]
# Unset in `make test`; `full` or a share of it in `make faults`.
_WANTED = os.environ.get("VITRINE_FAULTS", "")
FULL = bool(_WANTED)
_SHARE = float(_WANTED.replace("full", "1") or 0)
N_IMAGES, SIDE_PX, ROWS_PER_SHARD = 36, 24, 8
N_SHARDS = -(-N_IMAGES // ROWS_PER_SHARD)
Answer = dict[str, Any]


def times(full: int, sample: int) -> int:
    """How often a fault is tried: in `make faults`, and in `make test`."""
    return max(1, round(full * _SHARE)) if FULL else sample


def make_source(folder: Path, n_images: int = N_IMAGES) -> Path:
    """Small images with masks in the layout of `segmentation:PATH`; one is truncated, so that a row is invalid."""
    random = np.random.default_rng(5)
    for name in ("train", "trainannot", "test", "testannot"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": "faults", "classes": ["a", "b"], "license": "CC0-1.0"}))
    for index in range(n_images):
        split = "train" if index % 3 else "test"
        pixels = random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / f"{index:03d}.png")
        mask = random.integers(0, 2, (SIDE_PX, SIDE_PX), dtype=np.uint8)
        Image.fromarray(mask).save(folder / f"{split}annot" / f"{index:03d}.png")
    broken = folder / "train" / "007.png"
    broken.write_bytes(broken.read_bytes()[:-400])
    return folder


class Server:
    """The process that forks a child a trial, see `tests.faults.server`."""

    def __init__(self) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env={**os.environ, **one_thread, "COLUMNS": "200"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer_line()

    def _answer_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the server ended with {self._process.wait()}"
        return line

    def ask(self, job: dict[str, Any]) -> Answer:
        """Have a job done; what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: Answer = json.loads(self._answer_line())
        assert "stuck" not in answer, f"{answer['stuck']}: {job}"
        return answer

    def close(self) -> None:
        """End it."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


@dataclass
class Row:
    """A line of the table: one fault and what came of it.

    Attributes:
        fault: in words.
        tried: how often.
        rows_lost, rows_wrong: over all finished stores.
        saw: what the user saw of the disturbed run, and how often.
        wrong: trials that did not end as they must, in words.
    """

    fault: str
    tried: int = 0
    rows_lost: int = 0
    rows_wrong: int = 0
    saw: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Lab:
    """A place for trials: source images, an undisturbed store of them, and the server.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: dict[str, int] = {}
        self.server = Server()
        self.source = make_source(folder / "source")
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.undisturbed = folder / "undisturbed"
        answer = self.run(self.undisturbed)
        assert answer["code"] == 3, answer  # one row is invalid
        self.seconds = self.timed()

    def command(self, store: Path, source: Path | None = None, *options: str) -> list[str]:
        """The command that a user types."""
        where = f"segmentation:{source or self.source}"
        shape = ("--rows-per-shard", str(ROWS_PER_SHARD), "--batch-size", "8")
        return ["extract", where, "--model", "null", "--store", str(store), *shape, *options]

    def job(self, store: Path, *options: str, source: Path | None = None, **more: Any) -> dict[str, Any]:
        """The command as a job for the server."""
        return {
            "action": "command",
            "arguments": self.command(store, source, *options),
            "log": str(self.folder / f"log-{uuid.uuid4().hex}"),
            "scratch": str(self.scratch),
            "roots": [str(store)],
            **more,
        }

    def run(self, store: Path, *options: str, **more: Any) -> Answer:
        """Run the command; its exit code, and what it printed."""
        job = self.job(store, *options, **more)
        answer = self.server.ask(job)
        for name in ("out", "err"):
            Path(f"{job['log']}.{name}").unlink()
        return answer

    def timed(self, *options: str) -> float:
        """How many seconds an undisturbed run takes."""
        store = self.new_store()
        seconds = self.run(store, *options)["seconds"]
        self.remove(store)
        return float(seconds)

    def new_store(self) -> Path:
        """A place for a store."""
        return self.folder / f"store-{uuid.uuid4().hex[:8]}"

    def finish(
        self,
        row: Row,
        store: Path,
        what: str,
        *options: str,
        undisturbed: Path | None = None,
        source: Path | None = None,
    ) -> None:
        """Run the same command again, undisturbed, compare, and count in `row` what is not as it must be."""
        row.tried += 1
        answer = self.run(store, *options, source=source)
        self.compare(row, store, what, answer, undisturbed=undisturbed)
        self.remove(store)

    def remove(self, store: Path) -> None:
        """Remove a store, and what killed runs left of temporary files."""
        shutil.rmtree(store, ignore_errors=True)  # there is none where the kill came first
        for left in self.scratch.iterdir():
            shutil.rmtree(left)

    def compare(
        self,
        row: Row,
        store: Path,
        what: str,
        answer: Answer,
        *,
        undisturbed: Path | None = None,
        among_others: bool = False,
    ) -> None:
        """Hold a finished store to the undisturbed one, byte for byte; `among_others`, there may be more beside it."""
        right = undisturbed or self.undisturbed
        if answer["code"] != 3 or answer["err"]:
            row.wrong.append(f"{what}: the same command again ended with {answer['code']}: {last_line(answer)}")
        parts = [Path("features"), Path("datasets")]
        if among_others:
            parts = [path.relative_to(right) for part in parts for path in (right / part).glob("*/*")]
        for part in parts:
            told = subprocess.run(
                ["diff", "-r", right / part, store / part], capture_output=True, text=True, check=False
            )
            if told.returncode:
                row.wrong.append(f"{what}: diff -r of {part}: {told.stdout[:300]} {told.stderr[:300]}")
                lost, wrong = _rows_lost_and_wrong(right, store)
                row.rows_lost += lost
                row.rows_wrong += wrong

    def untrue_receipts(self, store: Path) -> list[int]:
        """Shards whose receipt counts though an object is not, byte for byte, that of the undisturbed store."""
        try:
            stands = open_store(str(store))
            feature_sets = [stands.features(name) for name in stands.names()]
        except StoreError:
            return []  # nothing counts where there is no store, or no feature set that can be read
        return [
            index
            for features in feature_sets
            for index, receipt in features.receipts.items()
            for path in (f"{features.folder}/{stored.path}" for stored in receipt.objects)
            if (store / path).read_bytes() != (self.undisturbed / path).read_bytes()
        ]

    def note_seen(self, row: Row, answer: Answer, what: str) -> None:
        """Hold what the user saw of a disturbed run to the rules: never a traceback, one clear line for a failure."""
        if answer["code"] < 0:
            row.saw[f"nothing: the process was ended by {signal.Signals(-answer['code']).name}"] += 1
            return
        text = answer["out"] + answer["err"]
        if "Traceback" in text:
            row.wrong.append(f"{what}: a traceback: {last_line(answer)}")
        if answer["code"] == 1 and not answer["err"].startswith("vitrine: "):
            row.wrong.append(f"{what}: exit code 1, and no line that says why: {text[-200:]}")
        if answer["code"] == 1 and not re.search(r"[;.] \w", answer["err"]):
            row.wrong.append(f"{what}: no way out: {answer['err'][-300:]}")
        if answer["code"] not in (1, 3):
            row.wrong.append(f"{what}: exit code {answer['code']}: {last_line(answer)}")
        row.saw[self.in_general(seen_line(answer))] += 1

    def in_general(self, line: str) -> str:
        """A line without what differs from trial to trial."""
        line = re.sub(rf"{re.escape(str(self.folder))}/[\w./-]*", "PATH", line)
        line = re.sub(r"\.?[\w./-]*\.partial\b|\b[0-9a-f]{8,}\b", "PATH", line)
        return re.sub(r"\d[\d.]*", "N", line)[:240]

    def close(self) -> None:
        """End the server."""
        self.server.close()


def last_line(answer: Answer) -> str:
    """The end of what a run printed."""
    text = (answer["err"].strip() or answer["out"].strip() or "nothing").splitlines()
    return text[-1]


def seen_line(answer: Answer) -> str:
    """The line of a run's output that says what went wrong, or how it ended."""
    if answer["err"].strip():
        return str(answer["err"].strip().splitlines()[-1])
    failed = [line for line in answer["out"].splitlines() if re.match(r"shard \d+ failed", line)]
    return failed[0] if failed else "it finished by itself"


def _rows_lost_and_wrong(right: Path, store: Path) -> tuple[int, int]:
    """Rows without tokens, and with other tokens, than in the undisturbed store."""
    whole = open_store(str(right)).features()
    try:
        features = open_store(str(store)).features(whole.name, partial=True)
        lost = sum(shard.n_rows for shard in features.missing)
        stands = [row for shard in features.shards if shard.index in features.receipts
                  for row in range(shard.start, shard.stop)]  # fmt: skip
        same = np.ones(len(stands), dtype=bool)
        for kind in whole.spec.identity.token_kinds:
            same &= np.array(
                [np.array_equal(whole.read(rows=[r], kind=kind), features.read(rows=[r], kind=kind)) for r in stands],
                dtype=bool,
            )
        return lost, int((~same).sum())
    except StoreError:
        return whole.spec.n_rows, 0


def check(row: Row, wanted: int | None = None) -> None:
    """Fail the test where a trial did not end as it must."""
    assert row.wrong == [], f"{len(row.wrong)} of {row.tried}: " + "\n".join(row.wrong[:5])
    assert (row.rows_lost, row.rows_wrong) == (0, 0)
    assert row.tried >= (wanted or 1)


def shares(total: int, parts: Sequence[int]) -> list[int]:
    """`total` cut in proportion to `parts`, each at least 1."""
    return [max(1, round(total * part / sum(parts))) for part in parts]
