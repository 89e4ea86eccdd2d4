"""durable_files: nothing is renamed before it is synced, whatever fails; real processes, traced and starved."""

import errno
import fcntl
import subprocess
import time
from pathlib import Path

import pytest

from feature_store import FeatureStore, create_store
from feature_store.durable_files import PARTIAL_SUFFIX, make_folder, sweep_partials
from feature_store.roots import open_root
from tests.feature_store.samples import files_of
from tests.feature_store.system_calls import Call, trace
from tests.feature_store.writing_process import ROOT, command

_RENAMES = {"rename", "renameat", "renameat2"}
_LINKS = {"link", "linkat"}


def _first(calls: list[Call], names: set[str], path: Path, *, after: int = -1, last: bool = False) -> int:
    """The place of the first call of such a name that succeeded and ends at `path`."""
    for place, call in enumerate(calls):
        if place > after and call.name in names and call.result == 0 and call.paths[-1] == str(path):
            return place
    raise AssertionError(f"no {names} of {path} after call {after}")


def _check_written_durably(calls: list[Call], path: Path) -> int:
    """Hold one file to the order fsync, rename or link, fsync of the folder; returns the place of the last."""
    named = _first(calls, _RENAMES | _LINKS, path)
    partial = calls[named].paths[0]
    assert partial.endswith(PARTIAL_SUFFIX)
    synced = _first(calls, {"fsync"}, Path(partial))
    assert synced < named
    return _first(calls, {"fsync"}, path.parent, after=named)


def _check_folders_durable(calls: list[Call], folder: Path, store: Path) -> int:
    """Hold every folder from the store down to the order mkdir, fsync of its parent; returns the place of the last."""
    places = []
    while folder != store.parent:
        made = _first(calls, {"mkdir", "mkdirat"}, folder)
        places.append(_first(calls, {"fsync"}, folder.parent, after=made))
        folder = folder.parent
    return max(places)


def test_everything_of_a_shard_is_on_the_disk_before_its_receipt_has_its_name(strace: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    calls, done = trace(strace, command("fill", store), tmp_path / "log")
    assert done.returncode == 0, done.stderr
    features = FeatureStore(open_root(str(store))).features()
    folder = store / features.folder
    spec_synced = _check_written_durably(calls, folder / "feature_set.json")
    assert len(features.receipts) == 3
    for receipt in features.receipts.values():
        path = folder / "receipts" / f"{receipt.shard:06d}.json"
        committed = _first(calls, _RENAMES, path)
        assert len(receipt.objects) == 3
        assert spec_synced < committed
        for stored in receipt.objects:
            assert _check_written_durably(calls, folder / stored.path) < committed
            assert _check_folders_durable(calls, (folder / stored.path).parent, store) < committed
            metadata = folder.joinpath(*Path(stored.path).parts[:-1])
            while not (metadata / "zarr.json").exists():
                metadata = metadata.parent
            assert _check_written_durably(calls, metadata / "zarr.json") < committed
        _check_written_durably(calls, path)
        assert _check_folders_durable(calls, path.parent, store) < committed


def test_a_folder_that_somebody_else_made_is_synced_once(strace: str, tmp_path: Path) -> None:
    """Whoever made it may have been killed before syncing it."""
    (tmp_path / "store" / "a" / "b").mkdir(parents=True)
    calls, done = trace(strace, command("put", tmp_path / "store", "a/b/c", "10"), tmp_path / "log")
    assert done.returncode == 0, done.stderr
    named = _first(calls, _RENAMES, tmp_path / "store/a/b/c")
    for folder in (tmp_path, tmp_path / "store", tmp_path / "store/a"):
        assert _first(calls, {"fsync"}, folder) < named


@pytest.mark.parametrize("which", range(1, 5))
def test_a_file_whose_sync_failed_is_written_anew_never_synced_again(strace: str, tmp_path: Path, which: int) -> None:
    """After EIO the kernel marks the lost pages clean, so a second fsync of the same file would lie."""
    (tmp_path / "store").mkdir()
    arguments = command("put", tmp_path / "store", "a", "100000")
    calls, done = trace(strace, arguments, tmp_path / "log", inject=f"fsync:error=EIO:when={which}")
    assert done.returncode == 0, done.stderr
    failed = [call for call in calls if call.injected]
    if which == 4:
        assert failed == []  # root's parent, file, folder: there are no more than three
        return
    assert [call.result for call in failed] == [-1]
    after = calls[calls.index(failed[0]) + 1 :]
    named = [call for call in after if call.name in _RENAMES]
    assert len(named) == 1
    assert failed[0].paths[0] not in named[0].paths
    assert [call for call in after if call.name == "fsync" and call.paths == (named[0].paths[0],)]
    assert after[-1].name != "fsync" or after[-1].paths == (str(tmp_path / "store"),)
    assert files_of(tmp_path / "store") == {"a": b"a" * 100000 + b"z"}


def test_a_disk_that_never_syncs_is_an_error_and_leaves_nothing(strace: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    arguments = command("put", tmp_path / "store", "a", "10")
    _, done = trace(strace, arguments, tmp_path / "log", inject="fsync:error=EIO:when=2+")
    assert done.returncode == 1
    assert "Input/output error" in done.stderr
    assert files_of(tmp_path / "store") == {}


def test_of_many_processes_one_creates_the_file(tmp_path: Path) -> None:
    done = subprocess.run(command("race", tmp_path, "6", "20"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 20
    files = files_of(tmp_path)
    assert set(files) == {f"sub/{number}" for number in range(20)}
    assert {content[:7] for content in files.values()} == {b"writer "}


def test_a_living_writers_file_is_not_swept_and_a_dead_ones_is(tmp_path: Path) -> None:
    partial = tmp_path / f".a.0{PARTIAL_SUFFIX}"
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep_partials(tmp_path, recursive=True) == 0
        assert partial.exists()
    assert sweep_partials(tmp_path, recursive=True) == 1
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("slow", ["rename:delay_enter=300ms", "flock:delay_enter=1500ms:when=1"])
def test_a_writer_is_not_disturbed_by_sweepers(strace: str, tmp_path: Path, slow: str) -> None:
    """Before its rename it holds the lock; before its lock it may lose the file, and writes another."""
    (tmp_path / "store").mkdir()
    options = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,flock", "-e", f"inject={slow}"]
    arguments = [strace, *options, *command("put", tmp_path / "store", "a", "10")]
    seen = swept = 0
    with subprocess.Popen(arguments, cwd=ROOT) as writer:
        while writer.poll() is None:
            seen += any((tmp_path / "store").glob(f".*{PARTIAL_SUFFIX}"))
            swept += sweep_partials(tmp_path / "store", recursive=True)
            time.sleep(0.01)
    assert writer.returncode == 0
    assert seen > 0
    assert swept == slow.startswith("flock")
    assert files_of(tmp_path / "store") == {"a": b"aaaaaaaaaaz"}


def test_a_folder_that_is_removed_under_a_writer_is_made_again(tmp_path: Path) -> None:
    root = open_root(str(tmp_path / "store"))
    root.put("a/b/c", [b"1"])
    (tmp_path / "store/a/b/c").unlink()
    (tmp_path / "store/a/b").rmdir()
    (tmp_path / "store/a").rmdir()
    root.put("a/b/c", [b"2"])
    assert files_of(tmp_path) == {"store/a/b/c": b"2"}


def test_parents_of_the_root_are_made(tmp_path: Path) -> None:
    make_folder(tmp_path / "x/y/store/z", root=tmp_path / "x/y/store")
    assert (tmp_path / "x/y/store/z").is_dir()


def test_a_full_disk_is_an_error_of_the_system(strace: str, tmp_path: Path) -> None:
    create_store(str(tmp_path / "store"))
    arguments = command("put", tmp_path / "store", "a", "10")
    _, done = trace(strace, arguments, tmp_path / "log", inject="fsync:error=ENOSPC:when=2")
    assert done.returncode == 1
    assert f"OSError: [Errno {errno.ENOSPC}] No space left on device" in done.stderr
    assert set(files_of(tmp_path / "store")) == {"vitrine.json"}
