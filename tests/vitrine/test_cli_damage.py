"""What a user sees when a store was damaged by hand, and that the advice in the message works."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from feature_store.errors import StorageError
from vitrine.exits import line_of

from .conftest import Run


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without results."""
    place = tmp_path / "store"
    shutil.copytree(tiny_store, place)
    shutil.rmtree(place / "results", ignore_errors=True)
    return place


@pytest.fixture
def again(tiny_images: Path, tiny_model: str, tiny_weights: Path) -> tuple[str, ...]:
    """The command that made the store, but for its place."""
    return ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", str(tiny_weights), "--store")


def one(store: Path, pattern: str) -> Path:
    return sorted((store / "features").glob(f"*/*/{pattern}"))[0]


def test_changed_bytes_of_the_right_length_are_noticed_and_mended(
    vitrine: Run, store: Path, tiny_store: Path, again: tuple[str, ...]
) -> None:
    damaged = one(store, "tokens.zarr/layer_6/patches/c/0/0/0")
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    for command in ("variance", "knn", "linear"):
        ran = vitrine(command, store)
        assert ran.code == 1
        assert "checksum" in ran.err
        assert not (store / "results" / command).exists()
    damaged.unlink()
    mended = vitrine(*again, store, "--json")
    assert (mended.code, mended.json["committed"]) == (0, 1)
    assert damaged.read_bytes() == one(tiny_store, "tokens.zarr/layer_6/patches/c/0/0/0").read_bytes()
    assert vitrine("knn", store).code == 0


@pytest.mark.parametrize("lost", ["feature_set.json", "tokens.zarr/zarr.json", "tokens.zarr/layer_6/patches/zarr.json"])
def test_lost_metadata_is_written_again_by_the_same_command(
    vitrine: Run, store: Path, tiny_store: Path, again: tuple[str, ...], lost: str
) -> None:
    place = one(store, lost)
    place.unlink()
    ran = vitrine(*again, store, "--json")
    assert ran.code == 0, ran.err
    assert place.read_bytes() == one(tiny_store, lost).read_bytes()
    assert vitrine("knn", store).code == 0


def test_ls_lists_the_others_beside_a_broken_feature_set(vitrine: Run, store: Path) -> None:
    record = one(store, "feature_set.json")
    other = record.parent.with_name("other-00000000")
    other.mkdir()
    (other / "feature_set.json").write_text(json.dumps({"digest": "none"}))
    ran = vitrine("ls", store, "--json")
    assert ran.code == 0
    assert [found["name"].split("/")[1] for found in ran.json["feature_sets"]] == [record.parent.name]
    assert list(ran.json["broken"]) == [f"{record.parent.parent.name}/other-00000000"]
    assert "cannot be read" in vitrine("ls", store).out


def test_a_dataset_alone_names_its_only_feature_set(vitrine: Run, tiny_store: Path) -> None:
    assert vitrine("show", tiny_store, "--features", "tiny", "--json").code == 0


def test_a_plot_goes_where_it_is_told_or_nowhere(vitrine: Run, tiny_store: Path, tmp_path: Path) -> None:
    assert vitrine("variance", tiny_store, "--plot", tmp_path / "spectrum.png").code == 0
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    for place in (tmp_path, tmp_path / "no" / "x.png", tmp_path / "spectrum"):
        ran = vitrine("variance", tiny_store, "--plot", place)
        assert (ran.code, len(ran.err.strip().splitlines())) == (2, 1)


def test_what_the_system_refuses_is_said_with_its_place_and_a_way_out() -> None:
    full = line_of(OSError(errno.ENOSPC, "No space left on device", "/s/a"))
    assert full == (
        "/s/a: No space left on device; free some space, and run the same command again: what is committed stays."
    )
    assert line_of(OSError(errno.EMFILE, "Too many open files")).startswith(
        "Too many open files; allow more open files"
    )
    assert line_of(FileNotFoundError(errno.ENOENT, "No such file", "/x")) == "[Errno 2] No such file: '/x'"
    for error in (MemoryError(), RuntimeError("can't start new thread")):
        assert "memory ran out" in line_of(error)
        assert "; close other programs, or use fewer --workers, and run" in line_of(error)
    assert (
        line_of(StorageError(errno.EIO, "it cannot be reached; run it again.")) == "it cannot be reached; run it again."
    )
    assert line_of(ValueError("two\nlines")) == "two lines"
    assert line_of(ValueError()) == "ValueError"
