"""Apache Beam drives the unit of work: wiring only, every step calls a plain function.

Only shard descriptors travel between stages. With one worker the pipeline runs in this process, with all cores. With
several it runs in a process of its own, watched from here: Beam's local runner waits for ever when a worker dies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import torch
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from feature_store import Shard
from feature_store.errors import StoreError
from pipelines.extract import StopRequestedError, extract_shard
from pipelines.failures import ShardFailure, read_failures, write_failure
from pipelines.meter import Meter
from pipelines.plan import ExtractionPlan
from pipelines.stopping import stop_requested
from pipelines.watched_beam import run_watched


class ExtractShard(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Computes and commits one shard, and leaves a failure where it cannot.

    Args:
        plan: as JSON.
        progress_folder: for the counter file and failures.
    """

    def __init__(self, plan: str, progress_folder: str) -> None:
        self._plan_json = plan
        self._folder = progress_folder

    def setup(self) -> None:
        """Prepare the process; Beam calls it once for each."""
        self._plan = ExtractionPlan.from_json(self._plan_json)
        torch.set_num_threads(self._plan.threads)
        self._meter = Meter(Path(self._folder))

    def process(self, shard: tuple[int, int, int]) -> Iterator[int]:
        """Yields the index of the shard when it is committed."""
        index, start, stop = shard
        try:
            yield extract_shard(self._plan, Shard(index=index, start=start, stop=stop), meter=self._meter).shard
        except (OSError, ValueError, RuntimeError, MemoryError, StoreError) as error:
            # Reported instead of raised: the local runner would give up the other shards.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            write_failure(Path(self._folder), ShardFailure(shard=index, reason=reason))


def build(root: Any, plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path) -> Any:
    """Wire the pipeline: missing shards, spread over the workers, each computed and committed."""
    return (
        root
        | "MissingShards" >> beam.Create([(shard.index, shard.start, shard.stop) for shard in shards])
        | "SpreadOverWorkers" >> beam.Reshuffle()
        | "ExtractShard" >> beam.ParDo(ExtractShard(plan.to_json(), str(progress_folder)))
    )


@dataclass(frozen=True, kw_only=True)
class BeamEngine:
    """Runs shards through Beam.

    Attributes:
        arguments: Beam's own pipeline options; with `--runner` another runner than the local one is used.
    """

    arguments: tuple[str, ...] = ()

    def __call__(
        self, plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int
    ) -> list[ShardFailure]:
        """Compute and commit the shards; returns those that kept failing."""
        if any(argument.startswith("--runner") for argument in self.arguments):
            pipeline = beam.Pipeline(options=PipelineOptions(list(self.arguments)))
            build(pipeline, plan, shards, progress_folder)
            pipeline.run().wait_until_finish()
        elif workers == 1:
            _run_here(plan, shards, progress_folder, self.arguments)
        else:
            deaths = run_watched(plan, shards, progress_folder, workers, self.arguments)
            return sorted([*read_failures(progress_folder), *deaths], key=lambda failure: failure.shard)
        return read_failures(progress_folder)


def _run_here(plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, arguments: Sequence[str]) -> None:
    options = PipelineOptions(list(arguments), direct_num_workers=1, direct_running_mode="in_memory")
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=options)
    build(pipeline, plan, shards, progress_folder)
    try:
        pipeline.run().wait_until_finish()
    except (StopRequestedError, RuntimeError):
        # The runner wraps whatever a step raises; a stop that was asked for is no error.
        if not stop_requested.is_set():
            raise
