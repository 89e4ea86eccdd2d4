"""A command that is refused changes nothing: no label, no store, no record."""

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from feature_store.records import parse_record, record_bytes
from tests.feature_store.samples import files_of

from .conftest import Run

N_IMAGES = 24
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    """A manifest of images whose labels can be corrected."""
    folder = tmp_path / "images"
    shutil.copytree(tiny_images, folder)
    write_labels(folder, shift=0)
    return folder


def write_labels(folder: Path, *, shift: int) -> None:
    names = sorted(str(path.relative_to(folder)) for split in ("train", "test") for path in (folder / split).iterdir())
    lines = [f"{name},{name.split('/')[0]},{(index + shift) % 2}" for index, name in enumerate(names)]
    (folder / "rows.csv").write_text("\n".join(["uri,split,label", *lines]))


@pytest.fixture
def begun(vitrine: Run, images: Path, tmp_path: Path) -> Path:
    """A store whose feature set lacks a shard, and whose run says that it had another torch; then labels change."""
    store = tmp_path / "store"
    made = vitrine(*extract(images, store), "--rows-per-shard", 8)
    assert made.code == 0, made.err
    (receipt,) = store.glob("features/*/*/receipts/000001.json")
    receipt.unlink()
    (index,) = store.glob("features/*/*/receipts.json")
    index.unlink()
    (record,) = store.glob("runs/*/run.json")
    content = parse_record(record.read_bytes(), name="run.json")
    content["environment"]["torch"] = "0.0"
    record.write_bytes(record_bytes(content))
    write_labels(images, shift=1)
    return store


def extract(images: Path, store: Path) -> tuple[object, ...]:
    return ("extract", f"manifest:{images / 'rows.csv'}", "--model", "null", "--store", store)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.space.shutil.disk_usage", lambda _: Usage(1 << 30, 1 << 30, 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "begun in another environment (torch: begun with '0.0'"),
        (("--layers", "9", "--allow-mixed-environment"), "this model has blocks 1..2"),
        (("--tokens", "registers", "--allow-mixed-environment"), "has no register tokens"),
        (("--beam-option=--nonsense", "--allow-mixed-environment"), "Beam has no option"),
        (("--allow-mixed-environment", "full disk"), "free some space"),
    ],
)
def test_a_refused_extraction_puts_no_corrected_labels_in_force(
    vitrine: Run,
    begun: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    said: str,
) -> None:
    if options[-1:] == ("full disk",):
        options = options[:-1]
        full_disk(monkeypatch)
    before = files_of(begun)
    refused = vitrine(*extract(images, begun), *options)
    assert refused.code in {1, 2}
    assert said in refused.err
    assert files_of(begun) == before


def test_an_extraction_that_goes_on_puts_corrected_labels_in_force(vitrine: Run, begun: Path, images: Path) -> None:
    assert vitrine(*extract(images, begun), "--allow-mixed-environment").code == 0
    assert len(list(begun.glob("datasets/*/*/dataset.json"))) == 2
    before = files_of(begun)
    write_labels(images, shift=0)
    done = vitrine(*extract(images, begun), "--json")
    assert done.json["already_done"] is True
    assert files_of(begun) != before


def test_a_refused_extraction_makes_no_store(
    vitrine: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "fresh"
    assert vitrine(*extract(images, store), "--layers", "9").code == 2
    full_disk(monkeypatch)
    assert vitrine(*extract(images, store)).code == 1
    assert not store.exists()


def test_a_refused_import_makes_no_store(vitrine: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 8), np.float32))
    (tmp_path / "v.csv").write_text("uri,split\na.jpg,train\nb.jpg,test\n")
    full_disk(monkeypatch)
    refused = vitrine("import", f"npy:{tmp_path / 'v.npy'}", "--model", "clip", "--store", tmp_path / "fresh")
    assert refused.code == 1
    assert "free some space" in refused.err
    assert not (tmp_path / "fresh").exists()


def test_a_refused_copy_makes_no_store(vitrine: Run, tiny_store: Path, tmp_path: Path) -> None:
    refused = vitrine("cp", tiny_store, tmp_path / "fresh", "--features", "nobody")
    assert refused.code in {1, 2}
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("compress", "--storage", "int8"),
        ("compress", "--pca", "100000"),
        ("prune", "--name", "none", "--drop-top-variance", "100000"),
        ("prune", "--name", "none", "--drop-random", "1", "--layer", "99"),
    ],
)
def test_a_refused_compression_or_selection_leaves_nothing(
    vitrine: Run, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    full_disk(monkeypatch)
    before = files_of(tiny_store)
    assert vitrine(words[0], tiny_store, *words[1:]).code in {1, 2}
    assert files_of(tiny_store) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--root", "/"), "--root / is for 'manifest:FILE' alone"),
        (("--tile-fit", "pad"), "--tile-fit pad says how --tile fits; give --tile too"),
        (("--classes", ""), "--classes '' has an empty part"),
        (("--classes", "a,,b"), "--classes 'a,,b' has an empty part"),
        (("--layers", "1,"), "--layers '1,' has an empty part"),
        (("--tokens", "cls, "), "--tokens 'cls, ' has an empty part"),
        (("--arg", "a=b"), "takes no arguments; leave --arg out"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    vitrine: Run, tiny_images: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    words = ("extract", f"segmentation:{tiny_images}", "--model", "null", "--store", tmp_path / "fresh", "--dry-run")
    refused = vitrine(*words, *options)
    assert refused.code == 2
    assert said in " ".join(refused.err.split())
    assert len(refused.err.splitlines()) == 1
