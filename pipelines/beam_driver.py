"""The child process that runs a Beam pipeline in worker processes, and ends when one of them does."""

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
from pipelines.stopping import end_with_parent

WORKER_DIED_EXIT = 70
# Long enough for the kernel to reap a dead worker, so that it is told from the living.
_SETTLE_S = 0.1


def _drive(job_file: Path) -> None:
    """Run the pipeline of a job that `pipelines.watched_beam` wrote; end at once when a worker dies."""
    job = json.loads(job_file.read_text())
    end_with_parent(job["parent"])
    folder = Path(job["progress_folder"])
    earlier = {count.pid for count in read_counts(folder)}
    death_file = Path(job["death_file"])
    threading.excepthook = lambda arguments: _on_thread_error(arguments, folder, earlier, death_file)
    os.environ["VITRINE_BEAM_DRIVER"] = str(os.getpid())
    # `exec`: no shell stays between this process and its worker, which would hide a signal and outlive both.
    worker = SubprocessSDKEnvironment.from_command_string(
        f"exec {shlex.quote(sys.executable)} -m pipelines.beam_worker"
    )
    options = PipelineOptions(job["arguments"], direct_num_workers=job["workers"])
    with beam.Pipeline(runner=FnApiRunner(default_environment=worker), options=options) as pipeline:
        build(pipeline, job["plan"], [tuple(rows) for rows in job["shards"]], str(folder))


def _on_thread_error(arguments: Any, folder: Path, earlier: set[int], death_file: Path) -> None:
    """Beam's thread that waits for a worker raises when the worker ends badly; its main thread then waits for ever."""
    text = str(arguments.exc_value)
    if "return code" not in text:
        threading.__excepthook__(arguments)
        return
    code = int(text.rsplit(" ", 1)[-1])
    name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    time.sleep(_SETTLE_S)
    ours = [count for count in read_counts(folder) if count.pid not in earlier]
    in_hand = sorted(count.shard for count in ours if count.shard is not None and not _alive(count.pid))
    death_file.write_text(json.dumps({"cause": name, "shards": in_hand}))
    os._exit(WORKER_DIED_EXIT)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return False
    return state != "Z"


if __name__ == "__main__":
    _drive(Path(sys.argv[1]))
