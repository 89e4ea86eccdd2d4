"""What a worker of any engine does with shards: commit each, or leave the reason why not."""

from dataclasses import replace
from pathlib import Path

import torch

from feature_store import Shard
from pipelines.backbones.held_weights import WeightsChangedError
from pipelines.devices import device_of_worker, worker_number
from pipelines.extract import StoreUnwritableError, extract_shard
from pipelines.failures import ShardFailure, reason_of, write_failure
from pipelines.meter import process_meter
from pipelines.plan import ExtractionPlan
from pipelines.stopping import StopRequestedError


class ShardWorker:
    """Works on the shards of one plan in this process.

    Args:
        plan: what to do; its threads become the process's.
        progress_folder: for the counter file and failures; made where it is not there.
    """

    def __init__(self, plan: ExtractionPlan, progress_folder: Path) -> None:
        self._hopeless: Exception | None = None
        progress_folder.mkdir(parents=True, exist_ok=True)
        number = worker_number(progress_folder)
        device = device_of_worker(plan.backbone.device, number, plan.devices)
        self._plan = replace(plan, backbone=replace(plan.backbone, device=device))
        self._folder = progress_folder
        process_meter(progress_folder).count.device = device
        torch.set_num_threads(plan.threads)

    def work_on(self, shard: Shard) -> bool:
        """Whether the shard is committed; where it is not, its failure is in the folder, or a stop was asked for.

        Nothing is raised: a shard that fails must not end the others.
        """
        try:
            if self._hopeless is not None:
                raise self._hopeless  # the rest would be computed, or the weights read, for nothing
            extract_shard(self._plan, shard, meter=process_meter(self._folder))
        except StopRequestedError:
            return False
        except Exception as error:
            write_failure(self._folder, ShardFailure(shard=shard.index, reason=reason_of(error)))
            if isinstance(error, (StoreUnwritableError, WeightsChangedError)):
                self._hopeless = error
            return False
        return True
