"""Shards that kept failing: told by the workers, through small files, to whoever runs the engine."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.small_files import read_json, replace_json

_REASON_CHARACTERS = 500
_OWN_PACKAGES = ("pipelines.", "feature_store.")


class EngineError(RuntimeError):
    """The engine itself failed, not a shard."""


@dataclass(frozen=True, kw_only=True)
class ShardFailure:
    """A shard that kept failing.

    Attributes:
        shard: its index.
        reason: the last error, in one line.
    """

    shard: int
    reason: str


def reason_of(error: BaseException) -> str:
    """An error in one line: its message, after its type unless the message was written here for users."""
    message = " ".join(str(error).split())[:_REASON_CHARACTERS]
    if message and type(error).__module__.startswith(_OWN_PACKAGES):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def write_failure(folder: Path, failure: ShardFailure) -> None:
    """Leave the failure of a shard in the run's progress folder."""
    # Where that disk is full, the shard is found to have no receipt all the same; only the reason is lost.
    with contextlib.suppress(OSError):
        replace_json(folder / f"failure-{failure.shard:06d}.json", asdict(failure))


def read_failures(folder: Path) -> list[ShardFailure]:
    """All failures left in a progress folder, by shard."""
    found = map(read_json, sorted(folder.glob("failure-*.json")))
    return [ShardFailure(**failure) for failure in found if failure is not None]
