"""TorchScript archives, as OpenAI publishes CLIP: their tensors are read, and their programs never run."""

import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.norm import LayerNorm

from pipelines.backbones import BackboneError, resolve_backbone
from pipelines.backbones.checkpoint import read_checkpoint
from pipelines.backbones.inert_pickle import InertPickleError, ScriptModule
from pipelines.backbones.inspection import inspect_checkpoint
from tests.pipelines.backbones.test_assumed import clip
from tests.pipelines.backbones.test_networks_in_files import SIDE, assert_runs_as, vit


class Node(torch.nn.Module):
    """A module that does nothing, for parameters to stand in."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def program(state: dict[str, torch.Tensor], path: Path) -> Path:
    """A traced program whose modules hold these tensors by their names."""
    root = Node()
    for name, tensor in state.items():
        *parents, last = name.split(".")
        module: Any = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, Node())
            module = dict(module.named_children())[parent]
        module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(root, torch.zeros(1)).save(str(path))
    return path


def test_openais_archives_are_read_without_running_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = vit(act_layer="quick_gelu", pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5))
    path = program(clip(module, input_resolution=torch.tensor(SIDE)), tmp_path / "ViT-B-16.pt")
    for reader in ("load", "_load_for_lite_interpreter"):
        monkeypatch.setattr(torch.jit if reader == "load" else torch._C, reader, None, raising=False)
    report = inspect_checkpoint(path)
    assert (report.form.family, report.network) == ("clip", "visual")
    assert report.left_unread == ("a TorchScript program",)
    assert report.passed_over == {"token_embedding": 1, "input_resolution": 1}
    assert_runs_as(path, module)


def test_tensors_of_a_program_are_those_of_its_state_dict(tmp_path: Path) -> None:
    state = {"a.b.0.weight": torch.randn(3, 4), "a.bias": torch.arange(5.0).half(), "n": torch.tensor(7)}
    read = read_checkpoint(program(state, tmp_path / "program.pt")).tensors
    assert {name: value.tolist() for name, value in read.items()} == {n: value.tolist() for n, value in state.items()}
    assert {name: value.dtype for name, value in read.items()} == {n: value.dtype for n, value in state.items()}


def test_a_program_whose_numbers_are_compressed_is_refused(tmp_path: Path) -> None:
    path = program({"zeros": torch.zeros(10_000)}, tmp_path / "program.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(BackboneError, match=re.escape("compressed archive")):
        resolve_backbone("auto", weights=tmp_path / "bomb.pt")


def test_modules_in_modules_end() -> None:
    root = module = ScriptModule()
    for _ in range(600):
        module.state["a"] = ScriptModule()
        module = module.state["a"]
    with pytest.raises(InertPickleError, match="modules in modules without end"):
        root.tensors()
