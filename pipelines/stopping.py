"""Ctrl-C and SIGTERM end a run between two batches: what is committed stays, and nothing is left running."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

# Asked for between batches by the unit of work, and by engines while they wait.
stop_requested = threading.Event()


@dataclass
class StopSignal:
    """Which signal asked for the end, if one did."""

    number: int | None = None


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Let SIGINT and SIGTERM set `stop_requested` in the block, instead of ending the process; main thread only."""
    stop = StopSignal()
    stop_requested.clear()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        stop_requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
