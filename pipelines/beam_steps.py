"""The pipeline of an extraction. Light to import: the process that drives workers needs neither torch nor timm."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from feature_store import Shard
from pipelines.quiet_beam import beam

ShardRows = tuple[int, int, int]


class ExtractShard(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Computes and commits one shard, or leaves a failure.

    Args:
        plan: as JSON.
        progress_folder: for the counter file and failures.
    """

    def __init__(self, plan: str, progress_folder: str) -> None:
        self._plan, self._folder = plan, progress_folder

    def setup(self) -> None:
        """Prepare the process."""
        # Here, not above: a driver only hands this step to its workers, and would load 700 MB in 4 s for nothing.
        from pipelines.plan import ExtractionPlan
        from pipelines.shard_worker import ShardWorker

        self._worker = ShardWorker(ExtractionPlan.from_json(self._plan), Path(self._folder))

    def process(self, rows: ShardRows) -> Iterator[int]:
        """Yields the index of the shard when it is committed."""
        index, start, stop = rows
        if self._worker.work_on(Shard(index=index, start=start, stop=stop)):
            yield index


def build(root: Any, plan: str, shards: Sequence[ShardRows], progress_folder: str) -> Any:
    """Wire the pipeline: missing shards, spread over the workers, each computed and committed.

    Args:
        root: a `beam.Pipeline`.
        plan: as JSON.
        shards: (index, start, stop) of each.
        progress_folder: where workers leave their counts and failures.

    Returns:
        The indices of the committed shards.
    """
    return (
        root
        | "MissingShards" >> beam.Create(shards)
        | "SpreadOverWorkers" >> beam.Reshuffle()
        | "ExtractShard" >> beam.ParDo(ExtractShard(plan, progress_folder))
    )
