"""The child process that runs a Beam pipeline in worker processes, and ends when one of them does."""

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipelines.beam_steps import build
from pipelines.meter import read_counts
from pipelines.quiet_beam import FnApiRunner, PipelineOptions, SubprocessSDKEnvironment, beam
from pipelines.small_files import replace_json
from pipelines.stopping import end_with_parent

WORKER_DIED_EXIT = 70
EXIT_STATUS = "exit status"
# Long enough for the kernel to reap a dead worker, so that it is told from the living.
_SETTLE_S = 0.1
_POLL_S = 0.5


def _drive(job_file: Path) -> None:
    """Run the pipeline of a job that `pipelines.watched_beam` wrote; end at once when a worker dies."""
    job = json.loads(job_file.read_text())
    end_with_parent(job["parent"])
    folder = Path(job["progress_folder"])
    earlier = {count.pid for count in read_counts(folder)}
    report = _DeathReport(Path(job["death_file"]), folder, earlier)
    threading.excepthook = report.on_thread_error
    threading.Thread(target=report.watch_workers, args=(job["workers"], job["patience_s"]), daemon=True).start()
    os.environ["VITRINE_BEAM_DRIVER"] = str(os.getpid())
    # `exec`: no shell stays between this process and its worker, which would hide a signal and outlive both.
    worker = SubprocessSDKEnvironment.from_command_string(
        f"exec {shlex.quote(sys.executable)} -m pipelines.beam_worker"
    )
    options = PipelineOptions(job["arguments"], direct_num_workers=job["workers"])
    with beam.Pipeline(runner=FnApiRunner(default_environment=worker), options=options) as pipeline:
        build(pipeline, job["plan"], [tuple(rows) for rows in job["shards"]], str(folder))


class _DeathReport:
    """Ends this process when a worker ends early, and leaves word of it.

    Args:
        place: the file to leave.
        folder: of the workers' counter files.
        earlier: process ids of workers of earlier drivers, whose files stand there too.
    """

    def __init__(self, place: Path, folder: Path, earlier: set[int]) -> None:
        self._place, self._folder, self._earlier = place, folder, earlier
        self._leaving = threading.Lock()

    def on_thread_error(self, arguments: Any) -> None:
        """Beam's thread that waits for a worker raises when it ends badly; Beam's main thread then waits for ever."""
        text = str(arguments.exc_value)
        if "return code" not in text:
            threading.__excepthook__(arguments)
            return
        code = int(text.rsplit(" ", 1)[-1])
        time.sleep(_SETTLE_S)
        self._leave(signal.Signals(-code).name if code < 0 else f"{EXIT_STATUS} {code}")

    def watch_workers(self, workers: int, patience_s: float) -> None:
        """A worker that ends with status 0 raises nowhere, and is waited for by Beam all the same.

        Args:
            workers: how many there must be, but for a moment at the start and the end of the pipeline.
            patience_s: how long that moment may be.
        """
        absent_since = time.monotonic()
        while time.monotonic() - absent_since < patience_s:
            time.sleep(_POLL_S)
            if sum(thread.name == "run_worker" for thread in threading.enumerate()) >= workers:
                absent_since = time.monotonic()
        self._leave(f"{EXIT_STATUS} 0")

    def _leave(self, cause: str) -> None:
        # Two workers may die together, each under the eyes of a thread. The first thread to come takes the process with
        # it, and would cut the second off in the middle of the same file.
        self._leaving.acquire()
        ours = [count for count in read_counts(self._folder) if count.pid not in self._earlier]
        in_hand = sorted(count.shard for count in ours if count.shard is not None and not _alive(count.pid))
        with contextlib.suppress(OSError):
            replace_json(self._place, {"cause": cause, "shards": in_hand})
        os._exit(WORKER_DIED_EXIT)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return False
    return state != "Z"


if __name__ == "__main__":
    _drive(Path(sys.argv[1]))
