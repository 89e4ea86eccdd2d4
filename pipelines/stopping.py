"""How a run ends early: Ctrl-C and SIGTERM between two batches, and children with their parent."""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

# Asked for between batches by the unit of work, and by engines while they wait.
stop_requested = threading.Event()
_PR_SET_PDEATHSIG = 1


class StopRequestedError(Exception):
    """The run was asked to stop; what is committed stays."""


@dataclass
class StopSignal:
    """Which signal asked for the end, if one did."""

    number: int | None = None


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Let SIGINT and SIGTERM set `stop_requested` in the block, instead of ending the process; main thread only."""
    stop = StopSignal()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        stop_requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop_requested.clear()
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop_requested.clear()


def end_with_parent(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens (Linux).

    Args:
        parent: the process id of the parent, which may have ended already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
