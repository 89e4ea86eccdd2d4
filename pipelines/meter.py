"""Where the seconds of a worker go, and how far it is: two small files that whoever watches may read.

The counter file is replaced as a whole after every batch, so what a killed worker was doing stands in it afterwards. It
has one size however many shards there are; what is known of each committed shard is added to a second file, once.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.small_files import append_json, read_json, read_records, replace_json

Stage = Literal["copy", "read", "decode", "infer", "write"]
STAGES: tuple[Stage, ...] = ("copy", "read", "decode", "infer", "write")


@dataclass(kw_only=True)
class WorkerCount:
    """One worker's counter file.

    Attributes:
        pid: of the worker.
        shard: that it works on, or None between two.
        rows: computed since its start.
        reused: rows copied from another feature set since its start.
        computing_since: Unix time at which the first shard's work began, the model loaded; None before.
        seconds: by stage since its start; read and decode are summed over threads.
        device: that it was told to use.
    """

    pid: int = field(default_factory=os.getpid)
    device: str = ""
    shard: int | None = None
    rows: int = 0
    reused: int = 0
    computing_since: float | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(frozen=True, kw_only=True)
class ShardTimes:
    """What a committed shard took.

    Attributes:
        shard: its index.
        wall_s: from its begin to its receipt.
        seconds: by stage; read and decode are summed over threads.
    """

    shard: int
    wall_s: float
    seconds: dict[str, float]


class Meter:
    """Counts for one worker; stages may be timed from several threads.

    Args:
        folder: where the two files go, or None to count without them.

    Attributes:
        count: the counters.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.count = WorkerCount()
        self._path = None if folder is None else folder / f"worker-{self.count.pid}.json"
        self._times_path = None if folder is None else folder / f"shards-{self.count.pid}.jsonl"
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self.count.seconds[name] += elapsed

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[None]:
        """Say which shard the block works on, and that it is committed when the block ends without an error."""
        self.count.shard = index
        start, before = time.perf_counter(), dict(self.count.seconds)
        self._save()
        try:
            yield
            split: dict[str, float] = {name: self.count.seconds[name] - before[name] for name in STAGES}
            self._add_times(ShardTimes(shard=index, wall_s=time.perf_counter() - start, seconds=split))
        finally:
            self.count.shard = None
            self._save()

    def begin_computing(self) -> None:
        """Say that the model is loaded: what comes from now on is work, not start-up."""
        if self.count.computing_since is None:
            self.count.computing_since = time.time()

    def add_rows(self, n_rows: int) -> None:
        """Say that rows are computed."""
        self.count.rows += n_rows
        self._save()

    def add_reused(self, n_rows: int) -> None:
        """Say that rows are copied."""
        self.count.reused += n_rows
        self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        # A full disk for temporary files is no reason to lose a shard.
        with contextlib.suppress(OSError):
            replace_json(self._path, asdict(self.count))

    def _add_times(self, times: ShardTimes) -> None:
        if self._times_path is None:
            return
        with contextlib.suppress(OSError):
            append_json(self._times_path, asdict(times))


@functools.lru_cache(maxsize=1)
def process_meter(folder: Path) -> Meter:
    """The one meter of this process for a run: an engine may set a step up several times in one process."""
    return Meter(folder)


def read_counts(folder: Path) -> list[WorkerCount]:
    """The counters of all workers that wrote into `folder`."""
    found = map(read_json, sorted(folder.glob("worker-*.json")))
    return [WorkerCount(**count) for count in found if count is not None]


def read_shard_times(folder: Path) -> list[ShardTimes]:
    """What each shard took that was committed by the workers that wrote into `folder`, by shard."""
    records = [record for path in folder.glob("shards-*.jsonl") for record in read_records(path)]
    return sorted((ShardTimes(**record) for record in records), key=lambda times: times.shard)
