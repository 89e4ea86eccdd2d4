"""Checkpoint files of every kind that a stranger may send."""

import argparse
import collections
import hashlib
import io
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipelines.backbones import BackboneError
from pipelines.backbones.checkpoint import read_checkpoint, read_state, read_tensor
from pipelines.backbones.weight_files import file_sha256


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(30, 40, generator=generator), "a.bias": torch.randn(40, generator=generator)}


def assert_same(state: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(tensors)
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"model": t}, lambda t: {"state_dict": t, "epoch": 3}])
def test_read_state_takes_off_the_wrappers_of_torch_files(
    tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str, wrap: Any
) -> None:
    assert_same(read_state(saved(tmp_path / f"weights{suffix}", wrap(tensors))), tensors)


def test_read_state_reads_the_format_before_zip_archives(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = saved(tmp_path / "old.pth", tensors, _use_new_zipfile_serialization=False)
    assert_same(read_state(path), tensors)


def test_read_state_reads_safetensors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "weights.safetensors")
    state = read_state(tmp_path / "weights.safetensors")
    assert_same(dict(sorted(state.items(), reverse=True)), dict(sorted(tensors.items(), reverse=True)))


class Canary:
    """Touches a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["zip", "legacy"])
def test_of_a_checkpoint_with_code_the_tensors_are_read_and_nothing_runs(tmp_path: Path, way: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    content = {"model": {"a": torch.arange(6.0).reshape(2, 3).T, "b": Canary(canary)}, "c": Canary(canary)}
    saved(path, content, _use_new_zipfile_serialization=way == "zip")
    assert_same(read_state(path), {"a": content["model"]["a"]})  # type: ignore[index]
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # the canary sings where code does run
    assert canary.exists()


def test_a_bare_pickle_with_code_is_refused_and_never_runs(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Canary(canary), protocol=2))
    with pytest.raises(BackboneError, match=r"objects other than tensors.*could not be read beside them"):
        read_state(path)
    assert not canary.exists()


class Settings(dict[str, Any]):
    """As yacs has its configuration: a mapping with attributes, which pickles as an object with items and state."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__["immutable"] = True


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_beside_the_objects_of_published_files(
    tmp_path: Path, tensors: dict[str, torch.Tensor], zipped: bool
) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(30, 40)}}, "param_groups": [{"lr": np.float64(1e-3)}]}
    content = {
        "model": collections.OrderedDict(tensors),
        "args": argparse.Namespace(lr=1, output_dir=Path("run")),
        "config": Settings(TRAIN=Settings(EPOCHS=800)),
        "max_accuracy": np.float32(0.5),
        "optimizer": optimizer,
    }
    path = saved(tmp_path / "weights.pth", content, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert_same(found.tensors, tensors)
    assert found.wrapper == ("model",)
    assert found.beside == ("args", "config", "max_accuracy", "optimizer")
    assert {"argparse.Namespace", "pathlib.PosixPath", f"{__name__}.Settings"} <= set(found.left_unread)
    shapes = read_checkpoint(path, device="meta")
    assert shapes == replace(found, tensors=shapes.tensors)
    assert {name: tensor.shape for name, tensor in shapes.tensors.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert all(tensor.device.type == "meta" for tensor in shapes.tensors.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_type_and_layout_are_read_beside_objects(
    tmp_path: Path, dtype: torch.dtype, zipped: bool
) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {
        "whole": whole,
        "part": whole[1:3, ::2],
        "turned": whole.T,
        "scalar": whole[2, 3],
        "none": whole[:0],
        "parameter": torch.nn.Parameter(whole, requires_grad=False),
    }
    path = saved(
        tmp_path / "weights.pth", {**tensors, "args": argparse.Namespace()}, _use_new_zipfile_serialization=zipped
    )
    assert_same(read_state(path), tensors)


def truncated(tensors: dict[str, torch.Tensor], **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, **options)
    return buffer.getvalue()[:-1000]


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x80\x02."])
def test_other_bytes_are_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=r"are not a (readable )?checkpoint"):
        read_state(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer to one, .*git lfs pull"),
        ("déjà vu\n".encode(), "a text file"),
        (b"each line of it\n", "a text file"),
        (pickle.dumps({"a": [1.0]}, protocol=4), "a pickle that torch.save did not write"),
        (b"\0\1\2\3", "bytes of another format"),
    ],
)
def test_what_a_file_is_instead_of_a_checkpoint_is_said(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=f"are not a checkpoint but {kind}.*; give a file that torch.save"):
        read_state(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], zipped: bool) -> None:
    (tmp_path / "weights.pth").write_bytes(truncated(tensors, _use_new_zipfile_serialization=zipped))
    with pytest.raises(BackboneError, match="fetch the file again") as refused:
        read_state(tmp_path / "weights.pth")
    assert "PytorchStreamReader" not in str(refused.value)
    assert ("ends early" in str(refused.value)) == zipped


@pytest.mark.parametrize("name", ["weights.bin", "weights.pth", "weights"])
def test_safetensors_are_known_by_their_first_bytes(
    tmp_path: Path, tensors: dict[str, torch.Tensor], name: str
) -> None:
    save_file(tensors, tmp_path / name)
    assert_same(dict(sorted(read_state(tmp_path / name).items())), dict(sorted(tensors.items())))
    assert read_tensor(tmp_path / name, "a.bias") is not None


def test_a_torch_file_named_safetensors_is_read(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = saved(tmp_path / "weights.safetensors", tensors)
    assert_same(read_state(path), tensors)
    assert read_tensor(path, "a.bias") is not None


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BackboneError, match="fetch the file again"):
        read_state(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    path = saved(tmp_path / "weights.pth", {"fine": torch.zeros(3), "broken": torch.tensor([0.0, value]).to(dtype)})
    with pytest.raises(BackboneError, match="not finite in 'broken'"):
        read_state(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", {"bomb": torch.zeros(1).expand(1_000_000, 1_000_000)})
    with pytest.raises(BackboneError, match=r"'bomb' in a form that is not \[1000000, 1000000\] plain numbers"):
        read_state(path)


@pytest.mark.parametrize("tensor", [torch.empty(10, device="meta"), torch.eye(3).to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_plain_numbers_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(BackboneError, match="save dense tensors alone"):
        read_state(saved(tmp_path / "weights.pth", {"odd": tensor}))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth", {"zeros": torch.zeros(1_000_000)})
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(BackboneError, match="compressed archive"):
        read_state(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 5])
def test_a_checkpoint_that_maps_no_names_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(BackboneError, match="not a mapping of names to tensors"):
        read_state(saved(tmp_path / "weights.pth", content))


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="hold no tensors"):
        read_state(saved(tmp_path / "weights.pth", {"model": {"epoch": 3}}))


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(1000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_file_sha256_refuses_what_is_not_there_and_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"cannot be read \(No such file or directory\)"):
        file_sha256(tmp_path / "absent.pth")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):  # a pipe would be waited on for ever
        with pytest.raises(BackboneError, match="not a regular file"):
            file_sha256(place)
