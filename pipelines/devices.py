"""Which device each worker of a machine uses: one each, in turn, where the user named no certain one."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from feature_store.durable_files import take_alone

_ANY_GPU = "cuda"


def devices_for(requested: str, workers: int) -> tuple[str, ...]:
    """The devices of this machine for so many workers; none where each uses what was requested.

    Only GPUs of the first one's kind count, since the environment that a run records names one kind.
    """
    if requested != _ANY_GPU or workers == 1:
        return ()
    kinds = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return tuple(f"{_ANY_GPU}:{index}" for index, kind in enumerate(kinds) if kind == kinds[0])


def device_of_worker(requested: str, worker: int, devices: Sequence[str]) -> str:
    """The device of one worker.

    Args:
        requested: what the user asked for, which stands where there are no devices to choose among.
        worker: its number, from 0; workers beyond the number of devices begin again with the first.
        devices: from `devices_for`.
    """
    return devices[worker % len(devices)] if devices else requested


@functools.lru_cache(maxsize=1)
def worker_number(folder: Path) -> int:
    """The lowest number that no other living worker of a run on this machine has; kept until this process ends.

    A worker that takes the place of a dead one gets its number, and so its device, whichever engine started it.

    Args:
        folder: the progress folder of the run.
    """
    for number in itertools.count():
        descriptor = os.open(folder / f"worker-number-{number}", os.O_RDWR | os.O_CREAT, 0o644)
        # Where a file system has no locks nobody can tell, and all workers are the first.
        if take_alone(descriptor) is not False:
            return number  # the descriptor stays open, and with it the lock
        os.close(descriptor)
    raise AssertionError("numbers do not end")
