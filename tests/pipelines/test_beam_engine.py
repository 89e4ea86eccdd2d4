"""The Beam engine: its pipeline, its workers, and real signals to them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apache_beam.testing import util
from PIL import Image

from feature_store import open_store
from pipelines import extract, watched_beam
from pipelines.beam_engine import BeamEngine
from pipelines.beam_steps import build
from pipelines.failures import EngineError
from pipelines.meter import read_counts
from pipelines.plan import PlanError
from pipelines.quiet_beam import FnApiRunner, PipelineOptions, beam
from pipelines.run import Prepared, begin_extraction, run_extraction
from pipelines.small_files import read_records

Prepare = Callable[..., Prepared]


def test_an_option_that_beam_does_not_have_is_refused() -> None:
    with pytest.raises(PlanError, match="Beam has no option --save_main_sesion; "):
        BeamEngine(arguments=("--save_main_sesion", "--job_name=a"))


def test_another_runners_options_are_its_own_matter() -> None:
    arguments = ("--runner=FlinkRunner", "--something_of_flinks=1", "--job_name=a")
    assert BeamEngine(arguments=arguments).arguments == arguments


def test_the_pipeline_yields_the_index_of_every_committed_shard(prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare()
    begin_extraction(prepared)
    testing: Any = util
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([])) as pipeline:
        rows = [(shard.index, shard.start, shard.stop) for shard in prepared.missing]
        indices = build(pipeline, prepared.plan.to_json(), rows, str(tmp_path / "progress"))
        testing.assert_that(indices, testing.equal_to(range(8)))
    assert open_store(prepared.plan.store).features(prepared.name).complete


def test_a_shard_that_fails_leaves_the_others_and_its_reason(prepare: Prepare, pictures: Path, tmp_path: Path) -> None:
    images = tmp_path / "pictures"
    shutil.copytree(pictures, images)
    prepared = prepare(images=images)
    sorted(images.rglob("*.png"))[20].unlink()
    outcome = run_extraction(prepared, BeamEngine())
    assert outcome.committed == 7
    assert [failure.shard for failure in outcome.failures] == [2]
    assert outcome.failures[0].reason.startswith("image 'even/040.png' was there when the manifest was made")


def test_a_full_disk_ends_the_run_without_computing_the_rest(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared = prepare()
    calls = []

    def write(*_arguments: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extract, "write_shard", write)
    outcome = run_extraction(prepared, BeamEngine(), progress_folder=tmp_path)
    assert len(calls) == 1
    assert len(outcome.failures) == 8
    assert all("takes nothing more (No space left on device)" in failure.reason for failure in outcome.failures)


def test_a_runner_that_does_not_exist_is_one_clear_error(prepare: Prepare) -> None:
    with pytest.raises(EngineError, match=r"Beam failed: .*NoSuchRunner"):
        run_extraction(prepare(), BeamEngine(arguments=("--runner=NoSuchRunner",)))


@pytest.mark.filterwarnings("ignore")  # of Beam's own
def test_beams_own_options_choose_the_runner(prepare: Prepare) -> None:
    runner = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    assert run_extraction(prepare(), BeamEngine(arguments=(runner,))).committed == 8


def test_importing_the_engine_says_nothing_and_configures_no_logging() -> None:
    code = "import logging as l, pipelines.beam_engine; assert not l.root.handlers; assert not l.root.manager.disable"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [("pipelines.extract", "apache_beam duckdb dask"), ("pipelines.beam_driver", "torch timm duckdb dask")],
)
def test_the_unit_of_work_needs_no_engine_and_the_driver_no_model(module: str, unneeded: str) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(set('{unneeded}'.split()) & set(sys.modules)) or 0)"
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, env={**os.environ, "PYTHONPATH": path})


@contextlib.contextmanager
def killer(folder: Path, shard: int | None, times: int) -> Iterator[list[int]]:
    """What the out-of-memory killer does: SIGKILL for each worker that has the shard, or any shard, in hand."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while len(killed) < times and not done.wait(0.001):
            for count in read_counts(folder):
                wanted = count.shard is not None and shard in (None, count.shard)
                if wanted and count.pid not in killed and len(killed) < times:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(count.pid, signal.SIGKILL)
                    killed.append(count.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def test_a_run_survives_the_death_of_one_of_two_workers(
    prepare: Prepare,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    same_trees: Callable[[Path, Path], bool],
) -> None:
    progress = tmp_path / "progress"
    progress.mkdir()
    with killer(progress, None, times=1) as killed:
        outcome = run_extraction(prepare(workers=2), BeamEngine(), workers=2, progress_folder=progress)
    assert len(killed) == 1
    assert (outcome.committed, outcome.failures, outcome.interrupted) == (8, (), None)
    (said,) = capfd.readouterr().err.splitlines()
    (in_hand,) = [count.shard for count in read_counts(progress) if count.pid == killed[0]]
    assert said.startswith("vitrine: a worker was ended by SIGKILL on shard ")
    assert str(in_hand) in said
    run_extraction(prepare(store="undisturbed"), BeamEngine())
    assert same_trees(tmp_path / "store" / "features", tmp_path / "undisturbed" / "features")
    # The driver and both its workers are gone, and so is their folder.
    assert not any(alive(count.pid) for count in read_counts(progress))


def test_a_run_survives_two_workers_that_die_together(prepare: Prepare, tmp_path: Path) -> None:
    progress, done = tmp_path / "progress", threading.Event()
    progress.mkdir()
    killed: list[int] = []

    def kill_both() -> None:
        while not killed and not done.wait(0.001):
            busy = [count.pid for count in read_counts(progress) if count.shard is not None]
            if len(busy) == 2:
                killed.extend(busy)
                for pid in busy:
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_both)
    thread.start()
    try:
        outcome = run_extraction(prepare(workers=2), BeamEngine(), workers=2, progress_folder=progress)
    finally:
        done.set()
        thread.join()
    assert len(killed) == 2
    assert (outcome.committed, outcome.failures, outcome.interrupted) == (8, (), None)


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.fixture
def slow_pictures(pictures: Path, tmp_path: Path) -> Path:
    """The pictures, one of shard 3 so large that its worker stays with it for long enough to be found and killed."""
    images = tmp_path / "pictures"
    shutil.copytree(pictures, images)
    slow = sorted(images.rglob("*.png"))[3 * 8]
    Image.fromarray(np.zeros((9000, 9000, 3), dtype=np.uint8)).save(slow, compress_level=1)
    return images


def test_a_shard_that_kills_every_worker_is_reported_and_the_others_finish(
    prepare: Prepare, slow_pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = tmp_path / "progress"
    progress.mkdir()
    with killer(progress, 3, times=99) as killed:
        outcome = run_extraction(
            prepare(images=slow_pictures, workers=2), BeamEngine(), workers=2, progress_folder=progress
        )
    assert len(killed) == 2
    assert outcome.committed == 7
    (failure,) = outcome.failures
    assert (failure.shard, failure.reason) == (3, "its worker was ended by SIGKILL, twice")
    assert "SIGKILL on shard 3" in capfd.readouterr().err


def test_two_workers_share_the_shards_and_read_nothing_from_the_folder_they_start_in(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `python -m` would look for modules here first; a dataset's folder is a stranger's.
    for name in ("pipelines", "torch", "json", "apache_beam"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('canary').touch(); raise SystemExit(9)")
    prepared = prepare(workers=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    outcome = run_extraction(prepared, BeamEngine(), workers=2, progress_folder=tmp_path)
    shares = [len(read_records(path)) for path in tmp_path.glob("shards-*.jsonl")]
    assert (outcome.committed, outcome.failures) == (8, ())
    assert sorted(shares) == [4, 4]
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_workers_that_cannot_start_are_reported_and_nothing_waits(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    monkeypatch.setattr(watched_beam, "_PATIENCE_S", 3.0)
    prepared = prepare(workers=2)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os\n"
        "if 'VITRINE_BEAM_DRIVER' in os.environ:\n"
        f"    print('no such worker today', flush=True)\n    os._exit({status})\n"
    )
    monkeypatch.setattr(sys, "path", [str(broken), *sys.path])
    outcome = run_extraction(prepared, BeamEngine(), workers=2)
    assert outcome.committed == 0
    assert [failure.shard for failure in outcome.failures] == list(range(8))
    said = f"not tried again after 1 dead workers, the last ended by exit status {status} ("
    assert all(failure.reason.startswith(said) for failure in outcome.failures)
    assert all("no such worker today" in failure.reason for failure in outcome.failures)
    assert capfd.readouterr().err.count(f"exit status {status} on no shard") == 1


def test_nothing_temporary_is_left(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run_extraction(prepare(), BeamEngine())
    assert not list((tmp_path / "temporary").iterdir())
