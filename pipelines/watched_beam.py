"""Beam with several worker processes, in a process group of its own that is watched from here.

Beam's local runner waits for ever when a worker dies, which is what the out-of-memory killer does to one. So the
pipeline runs in a child process (`pipelines.beam_driver`), which ends at once when a worker does; then the rest is run
again, and what the dead worker had in hand comes last, alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_store import Shard
from pipelines.beam_driver import EXIT_STATUS, WORKER_DIED_EXIT
from pipelines.failures import EngineError, ShardFailure, read_failures
from pipelines.meter import read_shard_times
from pipelines.plan import ExtractionPlan
from pipelines.small_files import read_json
from pipelines.stopping import stop_requested

_POLL_S = 0.1
# One death is bad luck, two may be; after three the remaining shards are reported and not tried again.
_MAX_DEATHS = 3
# Far more than Beam takes from its start to that of the workers, and from their end to its own.
_PATIENCE_S = 30.0
_LOG_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class WorkerDeath:
    """A worker process that ended without being asked to.

    Attributes:
        cause: the signal that ended it, or its exit status in words.
        shards: indices that it, or they, had in hand.
        last_words: the end of what the processes printed.
    """

    cause: str
    shards: tuple[int, ...]
    last_words: str = ""

    @property
    def hopeless(self) -> bool:
        """Whether the worker could not even start, which no shard explains and no other try will help."""
        return not self.shards and self.cause.startswith(EXIT_STATUS)


def run_watched(
    plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int, arguments: Sequence[str]
) -> list[ShardFailure]:
    """Run in a process of its own; after a death run the rest again, and what was in hand last and alone.

    Returns:
        Shards that are not committed, unless a stop was asked for.

    Raises:
        EngineError: Beam itself failed.
    """
    rest, suspects, deaths = list(shards), list[Shard](), 0
    while rest:
        death = _run_driver(plan, rest, progress_folder, workers, arguments)
        if death is None:
            rest = []
            break
        settled = _settled(progress_folder)
        _say(f"a worker was ended by {death.cause} on {_names(death.shards)}; going on with the rest")
        suspects += [shard for shard in rest if shard.index in death.shards and shard.index not in settled]
        rest = [shard for shard in rest if shard.index not in settled and shard not in suspects]
        deaths += 1
        if deaths == _MAX_DEATHS or death.hopeless:
            break
    failures = [_given_up(shard, death, deaths) for shard in rest if death]
    for shard in suspects:
        death = None if stop_requested.is_set() else _run_driver(plan, [shard], progress_folder, 1, arguments)
        if death is not None:
            failures.append(ShardFailure(shard=shard.index, reason=f"its worker was ended by {death.cause}, twice"))
    return sorted([*read_failures(progress_folder), *failures], key=lambda failure: failure.shard)


def _given_up(shard: Shard, death: WorkerDeath, deaths: int) -> ShardFailure:
    words = f" ({death.last_words})" if death.hopeless and death.last_words else ""
    return ShardFailure(
        shard=shard.index,
        reason=f"not tried again after {deaths} dead workers, the last ended by {death.cause}{words}; "
        "run the same command again with fewer --workers",
    )


def _settled(progress_folder: Path) -> set[int]:
    """Shards that need no other try: committed, or failed with a reason."""
    committed = {times.shard for times in read_shard_times(progress_folder)}
    return committed | {failure.shard for failure in read_failures(progress_folder)}


def _names(shards: Sequence[int]) -> str:
    return f"shard {', '.join(map(str, shards))}" if shards else "no shard"


def _say(line: str) -> None:
    print(f"vitrine: {line}", file=sys.stderr, flush=True)


def _run_driver(
    plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int, arguments: Sequence[str]
) -> WorkerDeath | None:
    """One pipeline in a child process with its own process group, so that all of it can be ended at once."""
    with tempfile.TemporaryDirectory(prefix="vitrine-beam-", ignore_cleanup_errors=True) as folder:
        death_file = Path(folder) / "death.json"
        job = {
            "plan": plan.to_json(),
            "shards": [(shard.index, shard.start, shard.stop) for shard in shards],
            "progress_folder": str(progress_folder),
            "workers": workers,
            "patience_s": _PATIENCE_S,
            "arguments": list(arguments),
            "death_file": str(death_file),
            "parent": os.getpid(),
        }
        job_file, log = Path(folder) / "job.json", Path(folder) / "beam.log"
        job_file.write_text(json.dumps(job))
        with log.open("wb") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "pipelines.beam_driver", str(job_file)],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(folder),
            )
        try:
            while driver.poll() is None and not stop_requested.wait(_POLL_S):
                pass
        finally:
            _end_group(driver)
        if stop_requested.is_set() or driver.returncode == 0:
            return None
        return _death(driver.returncode, death_file, log)


def _environment(temporary_folder: str) -> dict[str, str]:
    """The children import what this process imports, and nothing from the folder they are started in."""
    modules = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": modules, "PYTHONSAFEPATH": "1", "TMPDIR": temporary_folder}


def _end_group(driver: subprocess.Popen[bytes]) -> None:
    """End the driver and all its workers; the commit protocol makes SIGKILL as good as any other way."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


def _death(returncode: int, death_file: Path, log: Path) -> WorkerDeath:
    tail = " ".join(log.read_text(errors="replace").split())[-_LOG_CHARACTERS:]
    if returncode == WORKER_DIED_EXIT:
        # Where the disk took no file, no more is known than that a worker died.
        record = read_json(death_file) or {"cause": "an unknown cause", "shards": []}
        return WorkerDeath(cause=record["cause"], shards=tuple(record["shards"]), last_words=tail)
    if returncode < 0:
        return WorkerDeath(cause=signal.Signals(-returncode).name, shards=())
    raise EngineError(f"Beam's local runner failed with exit status {returncode}: {tail}")
