"""probing: a storage that keeps its promises is seen to, each one that is broken is named, and nothing is left."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from feature_store.errors import StoreError
from feature_store.probing import diagnose


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.probing._LARGE_BYTES", 1 << 16)


def _broken(url: str | Path) -> set[str]:
    diagnosis = diagnose(str(url))
    broken = {probe.name for probe in diagnosis.probes if probe.kept is False}
    assert diagnosis.suffices is not any(probe.needed for probe in diagnosis.probes if probe.name in broken)
    return broken


def test_a_disk_that_keeps_its_promises_suffices_and_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert _broken(tmp_path / "store") == set()
    assert _broken(tmp_path / "not" / "there" / "yet") == set()
    assert [path.name for path in tmp_path.rglob("*")] == ["store"]


def test_memory_suffices_and_is_left_as_it_was() -> None:
    assert _broken("memory://vitrine-probed") == set()
    assert fsspec.filesystem("memory").find("/vitrine-probed") == []


def _raising(number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def _link_over(source: Path, target: Path) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


@pytest.mark.parametrize(
    ("where", "name", "act", "broken", "suffices"),
    [
        (os, "fsync", _raising(errno.EINVAL), {"fsync", "fsync of a folder", "write with fsync"}, False),
        (os, "link", _raising(errno.EPERM), {"exclusive creation (link)"}, False),
        (os, "link", _link_over, {"exclusive creation (link)"}, False),
        (Path, "rename", _raising(errno.EEXIST), {"rename over an existing name"}, False),
        (fcntl, "flock", _raising(errno.ENOLCK), {"flock"}, True),
        (fcntl, "flock", lambda *arguments: None, {"flock"}, True),
    ],
)
def test_a_disk_that_breaks_a_promise_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Any, broken: set[str], suffices: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, act)
        diagnosis = diagnose(str(tmp_path))
    found = {probe.name: probe for probe in diagnosis.probes if probe.kept is False}
    assert set(found) - {"read (perhaps from the cache)"} == broken
    assert all(probe.risk and probe.found for probe in found.values())
    assert diagnosis.suffices is suffices
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StoreError, match=r"file cannot be written \(Not a directory\); choose a folder that you may"):
        diagnose(str(tmp_path / "file"))
