"""The child process that runs a Beam pipeline with several workers, and ends when one of them does."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from feature_store import Shard
from pipelines.beam_engine import build
from pipelines.meter import read_counts
from pipelines.plan import ExtractionPlan
from pipelines.watched_beam import WORKER_DIED_EXIT

_PR_SET_PDEATHSIG = 1
# Long enough for the kernel to reap a dead worker, so that it is told from the living.
_SETTLE_S = 0.1


def _drive(job_file: Path) -> None:
    """The child process: run the pipeline, and end at once when a worker dies."""
    job = json.loads(job_file.read_text())
    _die_with_parent(job["parent"])
    folder = Path(job["progress_folder"])
    death_file = Path(job["death_file"])
    threading.excepthook = lambda arguments: _on_thread_error(arguments, folder, death_file)
    plan = ExtractionPlan.from_json(job["plan"])
    options = PipelineOptions(
        job["arguments"], direct_num_workers=job["workers"], direct_running_mode="multi_processing"
    )
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=options)
    build(pipeline, plan, [Shard(**shard) for shard in job["shards"]], folder)
    pipeline.run().wait_until_finish()


def _on_thread_error(arguments: Any, folder: Path, death_file: Path) -> None:
    """Beam's thread that waits for a worker raises when the worker ends badly; its main thread then waits for ever."""
    text = str(arguments.exc_value)
    if "return code" not in text:
        threading.__excepthook__(arguments)
        return
    code = int(text.rsplit(" ", 1)[-1])
    # The shell between Beam and its worker turns a signal into 128 + its number.
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"exit status {code}"
    time.sleep(_SETTLE_S)
    in_hand = sorted(count.shard for count in read_counts(folder) if count.shard is not None and not _alive(count.pid))
    death_file.write_text(json.dumps({"signal_name": name, "shards": in_hand}))
    os._exit(WORKER_DIED_EXIT)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return False
    return state != "Z"


def _die_with_parent(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _drive(Path(sys.argv[1]))
