"""A feature set is finished in the environment that began it, unless the user says otherwise."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from feature_store import Shard
from feature_store.records import parse_record, record_bytes
from pipelines.beam_engine import BeamEngine
from pipelines.environment import MixedEnvironmentError, current_environment
from pipelines.failures import ShardFailure
from pipelines.plan import ExtractionPlan
from pipelines.run import Prepared, run_extraction

Prepare = Callable[..., Prepared]


class FirstTwo:
    """An engine that computes two shards and is then cut off."""

    def __call__(
        self, plan: ExtractionPlan, shards: Sequence[Shard], progress_folder: Path, workers: int
    ) -> list[ShardFailure]:
        return BeamEngine()(plan, shards[:2], progress_folder, workers)


def begin_elsewhere(prepare: Prepare, tmp_path: Path, field: str) -> None:
    """Commit two shards, and let the record of their run state another environment."""
    run_extraction(prepare(), FirstTwo())
    (record,) = tmp_path.glob("store/runs/*/run.json")
    content = parse_record(record.read_bytes(), name="run.json")
    content["environment"][field] = "0.0"
    record.write_bytes(record_bytes(content))


@pytest.mark.parametrize("field", ["torch", "timm", "pillow", "device", "cpu_capability"])
def test_resuming_elsewhere_is_refused_with_both_values(prepare: Prepare, tmp_path: Path, field: str) -> None:
    begin_elsewhere(prepare, tmp_path, field)
    now = current_environment("cpu")[field]
    said = rf"begun in another environment \({field}: begun with '0.0', now '{now}'\).*--allow-mixed-environment"
    with pytest.raises(MixedEnvironmentError, match=said.replace("+", r"\+")):
        prepare()


def test_resuming_elsewhere_goes_on_when_allowed(prepare: Prepare, tmp_path: Path) -> None:
    begin_elsewhere(prepare, tmp_path, "torch")
    outcome = run_extraction(prepare(allow_mixed_environment=True), BeamEngine())
    assert (outcome.committed, outcome.already, outcome.failures) == (6, 2, ())


def test_another_python_is_no_other_environment(prepare: Prepare, tmp_path: Path) -> None:
    begin_elsewhere(prepare, tmp_path, "python")
    assert len(prepare().missing) == 6


def test_a_complete_feature_set_is_done_in_any_environment(prepare: Prepare, tmp_path: Path) -> None:
    begin_elsewhere(prepare, tmp_path, "torch")
    run_extraction(prepare(allow_mixed_environment=True), BeamEngine())
    prepared = prepare()
    assert prepared.done_as == prepared.name
    assert not prepared.missing
