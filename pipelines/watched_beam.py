"""Beam with several worker processes, in a process group of its own that is watched from here.

Beam's local runner waits for ever when a worker dies, which is what the out-of-memory killer does to one. So the
pipeline runs in a child process (`pipelines.beam_driver`), which ends at once when a worker does; then the rest is run
once more, and what the dead worker had in hand comes last, alone.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from feature_store import Shard
from pipelines.failures import ShardFailure
from pipelines.meter import read_counts
from pipelines.plan import ExtractionPlan
from pipelines.stopping import stop_requested

WORKER_DIED_EXIT = 70
_POLL_S = 0.1
# One death is bad luck, two may be; after three the remaining shards are reported and not tried again.
_MAX_DEATHS = 3


@dataclass(frozen=True, kw_only=True)
class WorkerDeath:
    """A worker process that ended without being asked to.

    Attributes:
        signal_name: what killed it, or its exit status in words.
        shards: indices that it, or they, had in hand.
    """

    signal_name: str
    shards: tuple[int, ...]


def run_watched(
    plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int, arguments: Sequence[str]
) -> list[ShardFailure]:
    """Run in a process of its own; after a death run the rest again, and what was in hand last and alone."""
    rest, suspects = list(shards), dict[int, WorkerDeath]()
    for _ in range(_MAX_DEATHS):
        death = _run_driver(plan, rest, progress_folder, workers, arguments)
        if death is None:
            rest = []
            break
        _say(
            f"a worker was ended by {death.signal_name} on shard {', '.join(map(str, death.shards)) or '(none)'}; going on"
        )
        suspects.update(dict.fromkeys(death.shards, death))
        done = _committed(progress_folder)
        rest = [shard for shard in rest if shard.index not in done and shard.index not in suspects]
        if not rest:
            break
    failures = [ShardFailure(shard=s.index, reason=f"not tried again after {_MAX_DEATHS} dead workers") for s in rest]
    for shard in [shard for shard in shards if shard.index in suspects]:
        death = None if stop_requested.is_set() else _run_driver(plan, [shard], progress_folder, 1, arguments)
        if death is not None:
            failures.append(
                ShardFailure(shard=shard.index, reason=f"its worker was ended by {death.signal_name}, twice")
            )
    return failures


def _committed(progress_folder: Path) -> set[int]:
    return {index for count in read_counts(progress_folder) for index, _, _ in count.shards}


def _say(line: str) -> None:
    print(f"vitrine: {line}", file=sys.stderr, flush=True)


def _run_driver(
    plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int, arguments: Sequence[str]
) -> WorkerDeath | None:
    """One pipeline in a child process with its own process group, so that all of it can be ended at once."""
    with tempfile.TemporaryDirectory(prefix="vitrine-beam-") as folder:
        job = {
            "plan": plan.to_json(),
            "shards": [asdict(shard) for shard in shards],
            "progress_folder": str(progress_folder),
            "workers": workers,
            "arguments": list(arguments),
            "death_file": str(Path(folder) / "death.json"),
            "parent": os.getpid(),
        }
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps(job))
        log = Path(folder) / "beam.log"
        with log.open("wb") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "pipelines.beam_driver", str(job_file)],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            while driver.poll() is None and not stop_requested.wait(_POLL_S):
                pass
        finally:
            _end_group(driver)
        if stop_requested.is_set() or driver.returncode == 0:
            return None
        return _death(driver.returncode, Path(job["death_file"]), log)


def _end_group(driver: subprocess.Popen[bytes]) -> None:
    """End the driver and all its workers; the commit protocol makes SIGKILL as good as any other way."""
    try:
        os.killpg(driver.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    driver.wait()


def _death(returncode: int, death_file: Path, log: Path) -> WorkerDeath:
    if returncode == WORKER_DIED_EXIT:
        record = json.loads(death_file.read_text())
        return WorkerDeath(signal_name=record["signal_name"], shards=tuple(record["shards"]))
    if returncode < 0:
        return WorkerDeath(signal_name=signal.Signals(-returncode).name, shards=())
    tail = " ".join(log.read_text(errors="replace").split())[-400:]
    raise RuntimeError(f"Beam's local runner failed with exit status {returncode}: {tail}")
