"""One extraction from plan to outcome: its cost, what is done already, and two runs at once."""

import ctypes
import dataclasses
import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import timm
import torch

from feature_store import IdentityMismatchError, Shard, open_store
from feature_store.arrays import row_bytes
from feature_store.space import NoSpaceError
from pipelines.backbones import BackboneRequest, resolve_backbone
from pipelines.beam_engine import BeamEngine
from pipelines.cost import estimate_cost, require_space
from pipelines.extract import cached_backbone
from pipelines.failures import ShardFailure
from pipelines.plan import ExtractionPlan
from pipelines.run import Prepared, run_extraction

Prepare = Callable[..., Prepared]


def idle_engine(_plan: ExtractionPlan, _shards: Sequence[Shard], _progress: Path, _workers: int) -> list[ShardFailure]:
    return []


def test_a_run_commits_every_shard_and_says_so(prepare: Prepare, tmp_path: Path) -> None:
    outcome = run_extraction(prepare(), BeamEngine())
    assert (outcome.rows, outcome.committed, outcome.already, outcome.total) == (60, 8, 0, 8)
    assert (outcome.invalid, outcome.failures, outcome.interrupted) == ({}, (), None)
    assert 0 < outcome.start_seconds < outcome.seconds
    assert json.loads(json.dumps(outcome.to_json()))["feature_set"] == outcome.feature_set
    assert open_store(str(tmp_path / "store")).features(outcome.feature_set).complete


def test_the_record_of_a_run_holds_engine_environment_and_seconds(prepare: Prepare, tmp_path: Path) -> None:
    run_extraction(prepare(), BeamEngine())
    (folder,) = (tmp_path / "store" / "runs").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert (record["engine"], record["workers"], record["shards"]) == ("BeamEngine", 1, 8)
    assert set(record["environment"]) == {"torch", "timm", "pillow", "device", "cpu_capability", "python"}
    times = json.loads((folder / "times.json").read_text())["shards"]
    assert [entry["shard"] for entry in times] == list(range(8))
    assert all(entry[stage] > 0 for entry in times for stage in ("read", "decode", "infer", "write", "seconds"))


def test_nothing_under_features_depends_on_the_run(
    prepare: Prepare, tmp_path: Path, same_trees: Callable[[Path, Path], bool]
) -> None:
    for store in ("one", "other"):
        run_extraction(prepare(store=store), BeamEngine())
    one, other = (sorted((tmp_path / store / "features").rglob("*")) for store in ("one", "other"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [
        path.relative_to(tmp_path / "other") for path in other
    ]
    assert all(a.is_dir() or a.read_bytes() == b.read_bytes() for a, b in zip(one, other, strict=True))


def test_the_cost_is_counted_before_anything_is_written(prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare()
    cost = estimate_cost(prepared)
    # 16 patches and a class token of 64 features in float16, and a byte for `valid`.
    assert row_bytes(prepared.plan.spec) == 17 * 64 * 2 + 1
    assert (cost.rows, cost.shards, cost.stored_bytes) == (60, 8, 60 * (17 * 64 * 2 + 1))
    assert cost.free_bytes is not None
    assert abs(cost.free_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert cost.worker_bytes > 50 << 20  # torch alone takes more
    assert cost.calibrated
    assert cost.seconds is not None
    assert cost.seconds > 0
    assert not (tmp_path / "store" / "features").exists()


def test_memory_is_estimated_from_sizes_alone(prepare: Prepare) -> None:
    prepared = prepare()
    cost = estimate_cost(prepared, calibrate=False)
    assert (cost.seconds, cost.calibrated) == (None, False)
    # A process, the file once, and what a batch and a shard take, which for so small a model is next to nothing.
    file_bytes = Path(prepared.plan.backbone.weights).stat().st_size
    assert 910e6 + 2 * file_bytes <= cost.worker_bytes < 910e6 + 2 * file_bytes + 20e6


def give_back_free_memory() -> None:
    """What other tests of this process have let go of stays in its heap, and a model loaded there would not show."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_memory_that_is_said_is_that_with_the_model_loaded_and_a_batch_run(
    prepare: Prepare, tmp_path: Path
) -> None:
    name = "vit_small_patch16_224"
    model = timm.create_model(name, num_classes=0, img_size=64)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    model_bytes = sum(values.numel() * 4 for values in model.state_dict().values())
    assert model_bytes > 80e6
    del model
    prepared = prepare(request=resolve_backbone(name, weights=tmp_path / "w.pth", image_size=64))
    cached_backbone.cache_clear()
    give_back_free_memory()
    before = resident_bytes()
    cost = estimate_cost(prepared)
    after, shard_bytes = resident_bytes(), 8 * row_bytes(prepared.plan.spec)
    cached_backbone.cache_clear()
    assert after - before > 0.5 * model_bytes  # some pages of the model before may be in use again
    assert cost.worker_bytes >= after + shard_bytes
    # The model, its file and a batch of eight at most stood beside one another.
    assert cost.worker_bytes < before + shard_bytes + 2 * model_bytes + 100e6


def test_a_run_that_would_fill_the_disk_is_refused(prepare: Prepare) -> None:
    cost = dataclasses.replace(estimate_cost(prepare()), free_bytes=10 << 20)
    said = r"^/store has 10\.5 MB free, and this run writes 0\.1 MB and keeps 67 MB spare; free some space"
    with pytest.raises(NoSpaceError, match=said):
        require_space(cost, "/store")
    require_space(dataclasses.replace(cost, free_bytes=None), "s3://bucket")


def test_the_cost_of_a_complete_feature_set_is_nothing(prepare: Prepare) -> None:
    run_extraction(prepare(), BeamEngine())
    cost = estimate_cost(prepare())
    assert (cost.rows, cost.shards, cost.stored_bytes, cost.seconds) == (0, 0, 0, 0.0)


def test_a_complete_feature_set_is_not_run_again(prepare: Prepare, tmp_path: Path) -> None:
    run_extraction(prepare(), BeamEngine())
    outcome = run_extraction(prepare(), BeamEngine())
    assert (outcome.committed, outcome.already, outcome.total) == (0, 8, 8)
    assert len(list((tmp_path / "store" / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("request_changes", "settings", "done"),
    [
        ({}, {"layers": (2,), "token_kinds": ("cls",)}, True),
        ({}, {"layers": (2, 6)}, True),
        ({}, {"batch_size": 4}, True),
        ({}, {"layers": (1, 2)}, False),
        ({}, {"storage_dtype": "float32"}, False),
        ({"compute_dtype": "bfloat16"}, {}, False),
        ({"fit": "squash"}, {}, False),
    ],
)
def test_a_request_whose_arrays_exist_is_done_as_the_set_that_has_them(
    prepare: Prepare,
    tiny_request: BackboneRequest,
    request_changes: dict[str, str],
    settings: dict[str, object],
    done: bool,
) -> None:
    first = run_extraction(prepare(layers=(2, "last")), BeamEngine()).feature_set
    changed = dataclasses.replace(tiny_request, **request_changes)  # type: ignore[arg-type]
    prepared = prepare(request=changed, **{"layers": (2, "last"), **settings})
    assert prepared.done_as == (first if done else None)


def test_an_incomplete_set_does_not_count_as_done(prepare: Prepare) -> None:
    run_extraction(prepare(layers=(2, "last")), idle_engine)
    assert prepare(layers=(2,)).done_as is None


def test_a_set_that_cannot_be_read_does_not_stop_another(prepare: Prepare, tmp_path: Path) -> None:
    name = run_extraction(prepare(layers=(2, "last")), BeamEngine()).feature_set
    (tmp_path / "store" / "features" / name / "feature_set.json").write_text("{}")
    assert prepare(layers=(3,)).done_as is None


def test_a_shard_that_an_engine_forgets_is_a_failure(prepare: Prepare) -> None:
    outcome = run_extraction(prepare(), idle_engine)
    assert outcome.committed == 0
    assert [failure.shard for failure in outcome.failures] == list(range(8))
    assert {failure.reason for failure in outcome.failures} == {"the engine ended without committing it"}


def test_a_resumed_run_takes_batch_and_shards_from_what_stands(prepare: Prepare) -> None:
    run_extraction(prepare(rows_per_shard=16, batch_size=4), idle_engine)
    spec = prepare(rows_per_shard=8, batch_size=8).plan.spec
    assert (spec.rows_per_shard, spec.batch_size) == (16, 4)


def test_the_loser_of_two_runs_with_one_shape_joins_the_winner(prepare: Prepare) -> None:
    early, late = prepare(), prepare()
    assert run_extraction(early, BeamEngine()).committed == 8
    assert run_extraction(late, BeamEngine()).failures == ()


def test_the_loser_of_two_runs_with_two_shapes_is_refused_with_both_values(prepare: Prepare) -> None:
    early, late = prepare(batch_size=8), prepare(batch_size=4)
    run_extraction(early, idle_engine)
    with pytest.raises(IdentityMismatchError, match="batch_size: stored 8, this run 4"):
        run_extraction(late, BeamEngine())


def test_what_a_killed_writer_left_is_swept(prepare: Prepare, tmp_path: Path) -> None:
    outcome = run_extraction(prepare(), idle_engine)
    left = tmp_path / "store" / "features" / outcome.feature_set / "tokens.zarr" / ".0.abc.partial"
    left.write_bytes(b"half")
    run_extraction(prepare(), BeamEngine())
    assert not left.exists()
