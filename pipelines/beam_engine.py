"""Apache Beam drives the unit of work: wiring only, every step calls a plain function.

Only shard descriptors travel between stages. With one worker the pipeline runs in this process, with all cores. With
several it runs in a process of its own, watched from here: Beam's local runner waits for ever when a worker dies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from feature_store import Shard
from pipelines.extract import StoreUnwritableError, extract_shard
from pipelines.failures import EngineError, ShardFailure, read_failures, reason_of, write_failure
from pipelines.meter import process_meter
from pipelines.plan import ExtractionPlan
from pipelines.quiet_beam import FnApiRunner, PipelineOptions, beam
from pipelines.stopping import StopRequestedError, stop_requested
from pipelines.watched_beam import run_watched

ShardRows = tuple[int, int, int]


class ExtractShard(beam.DoFn):  # type: ignore[misc]  # Beam ships no types
    """Computes and commits one shard, and leaves a failure where it cannot.

    Args:
        plan: as JSON.
        progress_folder: for the counter file and failures.
    """

    def __init__(self, plan: str, progress_folder: str) -> None:
        self._plan_json = plan
        self._folder_name = progress_folder
        self._unwritable: str | None = None

    def setup(self) -> None:
        """Prepare the process."""
        self._plan = ExtractionPlan.from_json(self._plan_json)
        self._folder = Path(self._folder_name)
        self._folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(self._plan.threads)

    def process(self, rows: ShardRows) -> Iterator[int]:
        """Yields the index of the shard when it is committed."""
        index, start, stop = rows
        try:
            if self._unwritable is not None:
                raise StoreUnwritableError(self._unwritable)
            shard = Shard(index=index, start=start, stop=stop)
            yield extract_shard(self._plan, shard, meter=process_meter(self._folder)).shard
        except StopRequestedError:
            return
        except Exception as error:
            # Reported instead of raised: the local runner would give up the other shards.
            write_failure(self._folder, ShardFailure(shard=index, reason=reason_of(error)))
            if isinstance(error, StoreUnwritableError):
                # The rest would be computed for nothing.
                self._unwritable = str(error)


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
        """Compute and commit the shards; returns those that kept failing.

        Raises:
            EngineError: Beam itself failed.
        """
        if workers > 1 and not _names_runner(self.arguments):
            return run_watched(plan, shards, progress_folder, workers, self.arguments)
        try:
            with _pipeline(self.arguments) as pipeline:
                build(pipeline, plan, shards, progress_folder)
        except Exception as error:
            # A stop that was asked for is no error, whatever it made the runner say.
            if not stop_requested.is_set():
                raise EngineError(f"Beam failed: {reason_of(error)}") from error
        return read_failures(progress_folder)


def _names_runner(arguments: Sequence[str]) -> bool:
    return any(argument.startswith("--runner") for argument in arguments)


def _pipeline(arguments: Sequence[str]) -> Any:
    if _names_runner(arguments):
        return beam.Pipeline(options=PipelineOptions(list(arguments)))
    options = PipelineOptions(list(arguments), direct_num_workers=1, direct_running_mode="in_memory")
    return beam.Pipeline(runner=FnApiRunner(), options=options)
