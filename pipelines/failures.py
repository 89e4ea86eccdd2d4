"""Shards that kept failing: told by the workers, through small files, to whoever runs the engine."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ShardFailure:
    """A shard that kept failing.

    Attributes:
        shard: its index.
        reason: the last error, in one line.
    """

    shard: int
    reason: str


def write_failure(folder: Path, failure: ShardFailure) -> None:
    """Leave the failure of a shard in the run's progress folder."""
    (folder / f"failure-{failure.shard:06d}.json").write_text(json.dumps(asdict(failure)))


def read_failures(folder: Path) -> list[ShardFailure]:
    """All failures left in a progress folder, by shard."""
    return [ShardFailure(**json.loads(path.read_text())) for path in sorted(folder.glob("failure-*.json"))]
