"""A process that has imported everything, and forks a child a trial: loading torch would take seconds.

python -m tests.faults.server < one job a line; an answer a line

The child runs the command line as a user does, with output and exit code; it differs from a fresh process in what it
need not import. With several workers it starts real ones, which import everything themselves.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults import bystanders
from tests.faults.tracer import Fault, Tracer, stop_at_file_calls
from vitrine.__main__ import run as run_command_line

_PATIENCE_S = 240.0
Job = Mapping[str, Any]
_children: list[int] = []
_open_ends: list[int] = []


class TooSlowError(Exception):
    """A trial that did not end: something waits for ever."""


def _prepare() -> None:
    """Load what a child would load, and start no thread.

    All of it is loaded before a child sets its clock wrong: C extensions that meet another `datetime` crash.
    """
    import rich.progress
    import rich.table
    import torch
    from PIL import PngImagePlugin

    import feature_store.upkeep
    import pipelines.beam_engine
    import pipelines.run
    import vitrine.extraction
    from pipelines.backbones import load_backbone, resolve_backbone

    torch.set_num_threads(1)
    load_backbone(resolve_backbone("null"))
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        standard, sys.stdout = sys.stdout, nowhere
        run_command_line(["extract", "--help"])
        sys.stdout = standard
    assert all((rich.progress, rich.table, PngImagePlugin, feature_store.upkeep, pipelines.beam_engine, pipelines.run))
    assert vitrine.extraction
    # What is never looked at is not copied either.
    gc.collect()
    gc.freeze()


def _start(job: Job) -> tuple[int, int]:
    """Fork a child that does one thing once its pipe is closed; gives its process id and the pipe's end."""
    for name in ("out", "err"):
        Path(f"{job['log']}.{name}").touch()  # the child may be killed before it could
    ready, go = os.pipe()
    child = os.fork()
    if child:
        os.close(ready)
        _children.append(child)
        _open_ends.append(go)
        return child, go
    code = 1
    try:
        # The ends of other children's pipes too, which would never begin while one stays open.
        for end in (go, *_open_ends):
            os.close(end)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _enter(job)
        os.read(ready, 1)
        code = _ACTIONS[job["action"]](job)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_go(end: int) -> None:
    _open_ends.remove(end)
    os.close(end)


def _enter(job: Job) -> None:
    """Give the child its output files, processor, clock, limits and filter."""
    for number, name in ((1, "out"), (2, "err")):
        place = os.open(f"{job['log']}.{name}", os.O_WRONLY | os.O_TRUNC)
        os.dup2(place, number)
    os.environ["TMPDIR"] = job["scratch"]
    if job.get("cpu") is not None:
        os.sched_setaffinity(0, {job["cpu"] % (os.cpu_count() or 1)})
    if job.get("years_off"):
        bystanders.set_clock(job["years_off"])
    if job.get("fault") is not None:
        stop_at_file_calls()
    if job.get("memory_bytes"):
        bystanders.limit_memory(job["memory_bytes"])


def _command(job: Job) -> int:
    return run_command_line(job["arguments"])


_ACTIONS: dict[str, Callable[[Job], int]] = {
    "command": _command,
    "read": lambda job: bystanders.read_all_the_time(job["store"], job["until"], job["expected"]),
    "collect": lambda job: bystanders.collect_all_the_time(job["store"], job["until"]),
    "verify": lambda job: bystanders.verify_all_the_time(job["store"], job["until"]),
    "sweep": lambda job: bystanders.sweep_all_the_time(job["store"], job["until"]),
}


def _run(job: Job) -> dict[str, Any]:
    started = time.monotonic()
    child, go = _start(job)
    if job.get("fault") is None:
        _let_go(go)
        _kill_after(child, job.get("kill_after_s"))
        _, status = os.waitpid(child, 0)
        answer = {}
    else:
        tracer = Tracer(
            child=child,
            roots=job["roots"],
            fault=Fault(**job["fault"]),
            keep_data=bool(job.get("trace_to")),
            on_pause=lambda: bystanders.change_source(job["change"]),
        )
        tracer.attach()
        _let_go(go)
        status = tracer.run()
        answer = {"matching": tracer.matching, "hit": [{**asdict(call), "data": ""} for call in tracer.hit[:1]]}
        if job.get("trace_to"):
            lines = [json.dumps({**asdict(call), "data": call.data.hex()}) for call in tracer.calls]
            Path(job["trace_to"]).write_text("\n".join(lines))
    return {**answer, **_ending(job, status), "seconds": time.monotonic() - started}


def _kill_after(child: int, delay_s: float | None) -> None:
    if delay_s is not None:
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still this child's


def _ending(job: Job, status: int) -> dict[str, Any]:
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": Path(f"{job['log']}.out").read_text(errors="replace"),
        "err": Path(f"{job['log']}.err").read_text(errors="replace"),
    }


def _together(job: Job) -> dict[str, Any]:
    """Several children at once; those that look on are told to end when the others have."""
    started = [(one, *_start(one)) for one in job["jobs"]]
    for _, _, go in started:
        _let_go(go)
    statuses = {}
    for one, child, _ in started:
        if one["action"] == "command":
            _kill_after(child, one.get("kill_after_s"))
            statuses[child] = os.waitpid(child, 0)[1]
    Path(job["until"]).touch()
    for _, child, _ in started:
        if child not in statuses:
            statuses[child] = os.waitpid(child, 0)[1]
    return {"endings": [_ending(one, statuses[child]) for one, child, _ in started]}


def _too_slow(_number: int, _frame: Any) -> None:
    raise TooSlowError(f"no end within {_PATIENCE_S:.0f} s")


def _end_all() -> None:
    for child in _children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    _prepare()
    signal.signal(signal.SIGALRM, _too_slow)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        _children.clear()
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
        try:
            answer = _together(job) if job["action"] == "together" else _run(job)
        except TooSlowError as error:
            answer = {"stuck": str(error)}
            _end_all()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
