"""Apache Beam drives the unit of work.

Only shard descriptors travel between stages. With one worker the pipeline runs in this process, with all cores. With
several it runs in a process of its own, watched from here: Beam's local runner waits for ever when a worker dies.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_store import Shard
from pipelines.beam_steps import build
from pipelines.failures import EngineError, ShardFailure, read_failures, reason_of
from pipelines.plan import ExtractionPlan, PlanError
from pipelines.quiet_beam import FnApiRunner, PipelineOptions, beam
from pipelines.stopping import stop_requested
from pipelines.watched_beam import run_watched


@dataclass(frozen=True, kw_only=True)
class BeamEngine:
    """Runs shards through Beam.

    Attributes:
        arguments: Beam's own pipeline options; with `--runner` another runner than the local one is used.

    Raises:
        PlanError: the local runner does not know one of them. Beam itself would pass over it.
    """

    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [] if _names_runner(self.arguments) else _unknown_options(self.arguments)
        if unknown:
            raise PlanError(
                f"Beam has no option {', '.join(unknown)}; `--beam-option=--name=value` takes its own, and options of "
                "another runner only beside --runner."
            )

    def __call__(
        self, plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int
    ) -> list[ShardFailure]:
        """Compute and commit the shards; returns those that kept failing.

        Raises:
            EngineError: Beam itself failed.
        """
        if workers > 1 and not _names_runner(self.arguments):
            return run_watched(plan, shards, progress_folder, workers, self.arguments)
        rows = [(shard.index, shard.start, shard.stop) for shard in shards]
        try:
            with _pipeline(self.arguments) as pipeline:
                build(pipeline, plan.to_json(), rows, str(progress_folder))
        except Exception as error:
            # A stop that was asked for is no error, whatever it made the runner say.
            if not stop_requested.is_set():
                raise EngineError(f"Beam failed: {reason_of(error)}") from error
        return read_failures(progress_folder)


def _names_runner(arguments: Sequence[str]) -> bool:
    return any(argument.startswith("--runner") for argument in arguments)


def _unknown_options(arguments: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # how Beam itself collects them
    return parser.parse_known_args(list(arguments))[1]


def _pipeline(arguments: Sequence[str]) -> Any:
    if _names_runner(arguments):
        return beam.Pipeline(options=PipelineOptions(list(arguments)))
    options = PipelineOptions(list(arguments), direct_num_workers=1, direct_running_mode="in_memory")
    return beam.Pipeline(runner=FnApiRunner(), options=options)
