"""One device a worker: what each is told, without a GPU to tell it of."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines import devices as devices_module
from pipelines.backbones import resolve_backbone
from pipelines.beam_engine import BeamEngine
from pipelines.devices import device_of_worker, devices_for, has_gpu, worker_number
from pipelines.meter import read_counts
from pipelines.run import Prepared

GPUS = ("cuda:0", "cuda:1", "cuda:2")


@pytest.mark.parametrize(
    ("requested", "devices", "told"),
    [
        ("cuda", GPUS, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("cuda", (), ["cuda"] * 4),
        ("cuda:1", (), ["cuda:1"] * 4),
        ("cpu", (), ["cpu"] * 4),
    ],
)
def test_workers_take_the_devices_in_turn(requested: str, devices: tuple[str, ...], told: list[str]) -> None:
    assert [device_of_worker(requested, worker, devices) for worker in range(4)] == told


@pytest.mark.parametrize(
    ("requested", "workers", "devices"),
    [
        ("cuda", 2, ("cuda:0", "cuda:1", "cuda:3")),
        ("cuda", 1, ()),
        ("cuda:1", 2, ()),
        ("cpu", 2, ()),
    ],
)
def test_a_device_that_is_named_stays_as_asked_and_gpus_of_another_kind_are_left_out(
    monkeypatch: pytest.MonkeyPatch, requested: str, workers: int, devices: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "small" if index == 2 else "large")
    assert devices_for(requested, workers) == devices


@pytest.mark.parametrize("file", ["nvidiactl", "nvidia0", "nvhost-gpu", "dxg", "kfd"])
def test_torch_is_asked_for_a_gpu_only_where_the_system_has_a_driver_of_one(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not has_gpu()
    (tmp_path / file).touch()
    assert has_gpu()


def test_each_of_two_workers_is_told_a_device_of_its_own(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    prepared = prepare(request=resolve_backbone("null"), workers=2)
    backbone = dataclasses.replace(prepared.plan.backbone, device="cuda")
    plan = dataclasses.replace(prepared.plan, backbone=backbone, devices=("cuda:0", "cuda:1"))
    progress = tmp_path / "progress"
    progress.mkdir()
    # Not through `run_extraction`, which would ask the GPU for its name; the shards fail for want of one.
    failures = BeamEngine()(plan, prepared.missing, progress, 2)
    assert len(failures) == 8
    assert sorted(count.device for count in read_counts(progress)) == ["cuda:0", "cuda:1"]


def test_a_worker_that_follows_a_dead_one_takes_its_number(tmp_path: Path) -> None:
    take = worker_number.__wrapped__  # each call as if in a process of its own
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.write(there, str(take(tmp_path)).encode())
        signal.pause()
    try:
        assert os.read(here, 1) == b"0"
        assert take(tmp_path) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert [take(tmp_path), take(tmp_path)] == [0, 2]
