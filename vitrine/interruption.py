"""What Ctrl-C says while no engine is at work, which has signal handlers of its own."""

import contextlib
from collections.abc import Callable, Iterator

from vitrine.exits import InterruptedCommandError


@contextlib.contextmanager
def saying_that_nothing_was_written() -> Iterator[None]:
    """For what comes before the first write, such as hashing images and loading a model."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise InterruptedCommandError("interrupted; nothing was written") from stopped


@contextlib.contextmanager
def saying_what_stands(standing: Callable[[], int], total: str) -> Iterator[None]:
    """For what comes once a feature set is begun.

    Args:
        standing: how many shards are committed, asked after the interruption.
        total: of how many, such as `3 shards`.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        line = f"interrupted, {standing()} of {total} committed; run the same command to go on"
        raise InterruptedCommandError(line) from stopped
