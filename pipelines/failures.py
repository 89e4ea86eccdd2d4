"""Shards that kept failing: told by the workers, through small files, to whoever runs the engine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

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
    place = folder / f"failure-{failure.shard:06d}.json"
    new = place.with_suffix(".new")
    new.write_text(json.dumps(asdict(failure)))
    new.replace(place)


def read_failures(folder: Path) -> list[ShardFailure]:
    """All failures left in a progress folder, by shard."""
    return [ShardFailure(**json.loads(path.read_text())) for path in sorted(folder.glob("failure-*.json"))]
