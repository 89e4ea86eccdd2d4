"""Which device each worker of a machine uses: one each, in turn, where the user named no certain one."""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from feature_store.durable_files import take_alone

_ANY_GPU = "cuda"
_DEVICE_FILES = Path("/dev")
# Of the drivers of NVIDIA (its boards for robots and Windows' subsystem too) and AMD: torch has no GPU without one.
_GPU_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")


def has_gpu() -> bool:
    """Whether torch can use a GPU here; where the system has none, torch is not loaded to be asked."""
    if not any(True for pattern in _GPU_FILES for _ in _DEVICE_FILES.glob(pattern)):
        return False
    import torch

    return torch.cuda.is_available()


def devices_for(requested: str, workers: int) -> tuple[str, ...]:
    """The devices of this machine for so many workers; none where each uses what was requested.

    Only GPUs of the first one's kind count, since the environment that a run records names one kind.
    """
    if requested != _ANY_GPU or workers == 1:
        return ()
    import torch

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
