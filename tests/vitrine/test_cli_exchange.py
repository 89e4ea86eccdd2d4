"""`vitrine import` and `vitrine export` as a user runs them."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_store import open_store
from tests.feature_store.samples import files_of

from .conftest import Run
from .test_cli_extract import assert_same_tree

N = 48


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Vectors of two classes and their rows."""
    values = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float32)
    values[: N // 2] -= 3
    values[N // 2 :] += 3
    np.save(tmp_path / "v.npy", values)
    with (tmp_path / "v.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "label", "caption"])
        for index in range(N):
            label = "cat" if index < N // 2 else "dog"
            writer.writerow([f"{index:02d}.jpg", "test" if index % 4 == 0 else "train", label, "a photo, of something"])
    return tmp_path / "v.npy"


def imported(vitrine: Run, source: Path, store: Path, *more: object) -> Any:
    words = ("import", f"npy:{source}", "--model", "clip", "--column", "uri=path", "--name", "pets")
    return vitrine(*words, "--store", store, *more)


def test_import_answer_export_import_ends_at_the_same_features(vitrine: Run, tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    first = imported(vitrine, source, store, "--json")
    assert first.code == 0, first.err
    assert vitrine("knn", store, "--json").json["accuracy"] == 1.0
    assert vitrine("linear", store, "--json").json["accuracy"] == 1.0
    out = vitrine("export", store, tmp_path / "out", "--to", "npy", "--json")
    assert out.code == 0, out.err
    assert (out.json["rows"], out.json["kind"]) == (N, "cls")
    back = vitrine("import", f"npy:{tmp_path / 'out'}", "--model", "clip", "--name", "pets", "--store", store, "--json")
    assert back.code == 0, back.err
    assert (back.json["feature_set"], back.json["committed"]) == (first.json["feature_set"], 0)
    assert open_store(str(store)).features().dataset.spec.classes == ("cat", "dog")


def test_a_dry_run_says_what_an_import_will_do_and_writes_nothing(vitrine: Run, tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    dry = imported(vitrine, source, store, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert (dry.json["rows"], dry.json["n_features"], dry.json["committed"]) == (N, 8, 0)
    assert dry.json["stored_bytes"] == N * (8 * 4 + 1)  # float32, and a byte for `valid`
    assert not store.exists()
    made = imported(vitrine, source, store, "--json").json
    assert (dry.json["feature_set"], dry.json["total"]) == (made["feature_set"], made["committed"])
    before = files_of(store)
    again = imported(vitrine, source, store, "--dry-run")
    assert f"{made['feature_set']}: 48 rows of 8 features, 0 of" in again.out
    assert files_of(store) == before


def test_exported_parquet_comes_back_with_its_class_names(vitrine: Run, tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    first = imported(vitrine, source, store, "--json").json
    assert vitrine("export", store, tmp_path / "v.parquet", "--to", "parquet").code == 0
    words = ("import", f"parquet:{tmp_path / 'v.parquet'}", "--model", "clip", "--name", "pets", "--store", store)
    assert vitrine(*words, "--json").json["feature_set"] == first["feature_set"]
    assert open_store(str(store)).features().dataset.spec.classes == ("cat", "dog")


def test_an_import_is_listed_and_shown_as_one(vitrine: Run, tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    said = imported(vitrine, source, store)
    assert "48 rows" in said.out
    assert "imported: clip" in vitrine("ls", store).out
    shown = vitrine("show", store, "--json").json
    assert shown["identity"]["architecture"]["imported"] == "clip"
    assert len(shown["identity"]["architecture"]["vectors_sha256"]) == 64
    assert "done already, nothing to write" in imported(vitrine, source, store).out


def test_invalid_rows_are_named_and_exit_3(vitrine: Run, tmp_path: Path, source: Path) -> None:
    values = np.load(source)
    values[5] = np.nan
    np.save(source, values)
    ran = imported(vitrine, source, tmp_path / "store")
    assert ran.code == 3
    assert "invalid rows: 1 non_finite, the first is '05.jpg'" in ran.out


def test_a_killed_import_run_again_ends_byte_identical(vitrine: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(4000, 256)).astype(np.float32)
    np.save(tmp_path / "v.npy", values)
    (tmp_path / "v.csv").write_text("uri\n" + "".join(f"{index:05d}.jpg\n" for index in range(len(values))))
    words = ["import", f"npy:{tmp_path / 'v.npy'}", "--model", "clip", "--store"]
    assert vitrine(*words, tmp_path / "whole").code == 0
    store = tmp_path / "killed"
    with subprocess.Popen([sys.executable, "-m", "vitrine", *words, str(store)]) as process:
        deadline = time.monotonic() + 120
        while not any(store.glob("features/*/*/receipts/*.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    ran = vitrine(*words, store, "--json")
    assert ran.code == 0, ran.err
    assert_same_tree(tmp_path / "whole" / "features", store / "features")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--grid", "4by4"), 2, "--grid '4by4': write height x width in patches"),
        (("--column", "uri"), 2, "--column 'uri': write a manifest's column, =, and the table's"),
        (("--fit", "stretch"), 2, "--fit 'stretch': choose squash or crop"),
        (("--storage", "int4"), 2, "--storage 'int4': choose auto, float16 or float32"),
        (("--rows", "none.csv"), 2, "none.csv does not exist"),
        (("--root", "none"), 2, "does not exist"),
        (("--classes", "cat"), 2, "label 'dog' is none of the 1 classes"),
        (("--prefix-tokens", "1"), 2, "vectors are [rows, features], tokens [rows, patches, features]"),
    ],
)
def test_wrong_words_get_one_line_and_no_store(
    vitrine: Run, tmp_path: Path, source: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    ran = imported(vitrine, source, tmp_path / "store", *words)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_user_manifest_may_be_csv(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    table = tmp_path / "views.csv"
    table.write_text("uri,split,label\ntrain/00.png,train,0\ntest/00.png,test,1\n")
    words = ("--model", tiny_model, "--weights", tiny_weights, "--store", tmp_path / "store", "--dry-run", "--json")
    ran = vitrine("extract", f"manifest:{table}", *words)
    assert ran.code == 2
    assert "is there; the first is" in ran.err
    (tiny_images / "views.csv").write_bytes(table.read_bytes())
    try:
        ran = vitrine("extract", f"manifest:{tiny_images / 'views.csv'}", *words)
    finally:
        (tiny_images / "views.csv").unlink()
    assert ran.code == 0, ran.err
    assert ran.json["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "hdf5"), "--to 'hdf5': choose among"),
        (("--to", "npy", "--kind", "tokens"), "--kind 'tokens': choose among"),
        (("--to", "npy", "--where", "split = 'val'"), "has no valid row among those asked for"),
        (("--to", "npy", "--where", "split ="), "split ="),
        (("--to", "parquet", "--rows", "pixels"), "--rows 'pixels': choose views or patches"),
    ],
)
def test_exports_that_cannot_be_get_one_line(
    vitrine: Run, tmp_path: Path, tiny_store: Path, words: tuple[str, ...], message: str
) -> None:
    ran = vitrine("export", tiny_store, tmp_path / "out", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_an_export_never_replaces_a_store_or_a_folder_of_images(
    vitrine: Run, tmp_path: Path, source: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, images = tmp_path / "store", tmp_path / "images"
    imported(vitrine, source, store)
    images.mkdir()
    (images / "a.png").write_bytes(b"pixels")
    before = files_of(tmp_path)
    monkeypatch.chdir(images)
    for place in (store, store / "features", tmp_path, images, "."):
        ran = vitrine("export", store, place, "--to", to, "--overwrite")
        assert (ran.code, ran.out) == (2, "")
        assert len(ran.err.splitlines()) == 1
        assert "choose a" in ran.err
    assert files_of(tmp_path) == before


def test_a_url_is_no_place_for_an_export(vitrine: Run, tiny_store: Path) -> None:
    ran = vitrine("export", tiny_store, "s3://bucket/out", "--to", "npy")
    assert ran.code == 2
    assert "is a URL; export to a path of this machine" in ran.err


def test_an_extracted_store_leaves_as_a_row_a_patch(vitrine: Run, tmp_path: Path, tiny_store: Path) -> None:
    words = ("--to", "parquet", "--kind", "patches", "--rows", "patches", "--where", "split = 'test'", "--json")
    ran = vitrine("export", tiny_store, tmp_path / "p.parquet", *words)
    assert ran.code == 0, ran.err
    table = pq.read_table(tmp_path / "p.parquet")
    features = open_store(str(tiny_store)).features()
    rows = features.rows_of_split("test")
    assert table.num_rows == len(rows) * features.spec.n_patches
    expected = features.read("last", "patches", rows).reshape(table.num_rows, -1)
    np.testing.assert_array_equal(np.float16(table["vector"].to_pylist()), expected)
    assert json.loads(table.schema.metadata[b"vitrine"])["digest"] == features.digest
