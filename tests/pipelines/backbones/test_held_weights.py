"""Weights that are overwritten between planning and loading: what is loaded is what was hashed, or nothing is."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.backbones import BackboneRequest, load_backbone, resolve_backbone
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.held_weights import WeightsChangedError, hold_weights
from pipelines.extract import planned_backbone
from pipelines.meter import process_meter
from pipelines.run import Prepared, begin_extraction
from pipelines.shard_worker import ShardWorker
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones import references as refer

SIZE = publish.Size(depth=1)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train_on(path: Path) -> None:
    """Overwrite a checkpoint in place by one of as many bytes, as a training does, and put its times back."""
    status = path.stat()
    state = {name: tensor * 2 for name, tensor in read_state(path).items()}
    other = path.with_suffix(".next")
    if path.suffix == ".safetensors":
        save_file(state, other)
    else:
        torch.save(state, other)
    assert other.stat().st_size == status.st_size
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(params=["weights.pth", "weights.safetensors"])
def weights(request: pytest.FixtureRequest, tiny_weights: Path, tmp_path: Path) -> Path:
    """A checkpoint of the tiny model that may be overwritten, in either format."""
    path, state = tmp_path / str(request.param), read_state(tiny_weights)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        # A name of fixed length, since torch writes the file's name into the archive.
        torch.save(state, tmp_path / "weights.next")
        shutil.move(tmp_path / "weights.next", path)
    return path


@pytest.fixture
def changed(tiny_model: str, weights: Path) -> tuple[BackboneRequest, str]:
    """A request whose weights were overwritten after it was resolved, and the digest of the new ones."""
    request = resolve_backbone(tiny_model, weights=weights, image_size=64)
    train_on(weights)
    return request, digest(weights)


def test_weights_that_were_overwritten_after_planning_are_refused_with_both_digests(
    changed: tuple[BackboneRequest, str],
) -> None:
    request, now = changed
    with pytest.raises(WeightsChangedError, match=f"sha256 was {request.weights_sha256} and is now {now}"):
        load_backbone(request)


def test_a_published_file_that_was_overwritten_after_planning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_file(publish.plain(SIZE), path)
    request = resolve_backbone("auto", weights=path, image_size=32)
    train_on(path)
    with pytest.raises(WeightsChangedError, match=f"{request.weights_sha256} and is now {digest(path)}"):
        load_backbone(request)


def test_weights_that_are_overwritten_while_they_are_held_are_read_as_they_were_hashed(weights: Path) -> None:
    before, sha256 = read_state(weights), digest(weights)
    # Copies, since safetensors' reader maps the file itself.
    before = {name: tensor.clone() for name, tensor in before.items()}
    with hold_weights(weights, sha256) as held:
        train_on(weights)
        assert (held.sha256, str(held)) == (sha256, str(weights))
        state = read_state(held)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert not torch.equal(read_state(weights)["norm.weight"], before["norm.weight"])


def test_a_worker_that_finds_other_weights_fails_every_shard_and_reads_the_file_once(
    prepare: Callable[..., Prepared], changed: tuple[BackboneRequest, str], tmp_path: Path, weights: Path
) -> None:
    request, now = changed
    # The plan is made as if the file had not been touched: only names and shapes are read for it.
    prepared, folder = prepare(request=request), tmp_path / "progress"
    begin_extraction(prepared)
    worker = ShardWorker(prepared.plan, folder)
    assert not worker.work_on(prepared.missing[0])
    weights.unlink()
    assert not any(worker.work_on(shard) for shard in prepared.missing[1:])
    process_meter.cache_clear()
    reasons = {json.loads(path.read_text())["reason"] for path in folder.glob("failure-*.json")}
    assert len(reasons) == 1
    assert f"sha256 was {request.weights_sha256} and is now {now}" in reasons.pop()
    assert not list((tmp_path / "store").glob("features/*/*/receipts/*"))


def test_what_stands_beside_the_weights_of_transformers_may_not_change_either(
    prepare: Callable[..., Prepared], tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    save_file(refer.transformers_vit_names(publish.plain(SIZE), SIZE), folder / "model.safetensors")
    config = refer.config(SIZE, model_type="vit", layer_norm_eps=1e-12)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    prepared = prepare(request=resolve_backbone("auto", weights=folder, image_size=32))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.5] * 3}))
    with pytest.raises(WeightsChangedError, match=r"preprocessing was .*0\.5.* and is now .*0\.1"):
        planned_backbone(prepared.plan)
