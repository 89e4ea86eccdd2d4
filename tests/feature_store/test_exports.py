"""Exports, each opened by the library that it is meant for, and held to what the store itself reads."""

import csv
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureSet, StoreError
from feature_store.exports import (
    ExportFailedError,
    ExportOptions,
    ExportRefusedError,
    ExportSubject,
    appearing_file,
    export_features,
)
from feature_store.exports.projection import project
from feature_store.exports.webdataset import write_webdataset

from . import samples

INVALID = (2, 9)
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """21 rows of 2 x 2 patches and a class token, of which two are invalid; every fourth has no mask."""
    return samples.fill_store(str(tmp_path_factory.mktemp("exports") / "store"), invalid=INVALID)


def valid_rows(features: FeatureSet) -> list[int]:
    return [row for row in range(features.spec.n_rows) if row not in INVALID]


# --- npy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cls", "patches"])
def test_npy_holds_the_valid_rows_in_order_and_says_what_they_are(
    tmp_path: Path, features: FeatureSet, kind: Any
) -> None:
    subject = ExportSubject(features, kind=kind)
    written = export_features(subject, "npy", tmp_path / "out")
    values = np.load(tmp_path / "out" / f"{kind}.npy", allow_pickle=False)
    np.testing.assert_array_equal(values, features.read("last", kind, valid_rows(features)))
    assert values.dtype == np.float16
    with (tmp_path / "out" / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["row"]) for row in rows] == valid_rows(features)
    assert [row["uri"] for row in rows] == [features.column("uri")[row] for row in valid_rows(features)]
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["digest"], record["invalid_rows_left_out"]) == (features.digest, len(INVALID))
    assert record["classes"] == list(samples.CLASSES)
    assert written == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_a_selection_takes_its_features_and_a_split_its_rows(tmp_path: Path, features: FeatureSet) -> None:
    rows = np.array([1, 2, 5, 20])
    selection = replace(samples.make_selection(), layer=features.layer_number("last"))
    subject = ExportSubject(features, kind="patches", selection=selection, rows=rows)
    export_features(subject, "npy", tmp_path / "out")
    expected = features.read("last", "patches", [1, 5, 20])[..., [0, 2]]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "patches.npy"), expected)


def test_the_mean_of_the_patches_is_taken_in_float32(tmp_path: Path, features: FeatureSet) -> None:
    export_features(ExportSubject(features, kind="mean"), "npy", tmp_path / "out")
    tokens = features.read("last", "patches", valid_rows(features)).astype(np.float32)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "mean.npy"), tokens.mean(axis=1), rtol=1e-6)


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_has_a_row_a_view_that_duckdb_reads(tmp_path: Path, features: FeatureSet) -> None:
    place = tmp_path / "out.parquet"
    export_features(ExportSubject(features), "parquet", place)
    question = f"SELECT row, uri, split, label, class, vector FROM '{place}' ORDER BY row"
    found = duckdb.connect().execute(question).fetchall()
    vectors = features.read("last", "cls", valid_rows(features))
    assert [entry[0] for entry in found] == valid_rows(features)
    for row, (_, uri, split, label, name, vector) in zip(valid_rows(features), found, strict=True):
        stated = [features.column(column)[row] for column in ("uri", "split", "label")]
        assert [uri, split, label] == stated
        assert name == samples.CLASSES[label]
        np.testing.assert_array_equal(np.float16(vector), vectors[valid_rows(features).index(row)])


def test_parquet_keeps_the_shape_of_patches(tmp_path: Path, features: FeatureSet) -> None:
    export_features(ExportSubject(features, kind="patches"), "parquet", tmp_path / "out.parquet")
    column = pq.read_table(tmp_path / "out.parquet")["vector"].to_pylist()
    np.testing.assert_array_equal(np.float16(column), features.read("last", "patches", valid_rows(features)))


def test_parquet_has_a_row_a_patch_with_its_place_and_its_class(tmp_path: Path, features: FeatureSet) -> None:
    subject = ExportSubject(features, kind="patches")
    export_features(subject, "parquet", tmp_path / "out.parquet", ExportOptions(patches=True))
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    masks = samples.make_masks(features.spec.n_rows)
    tokens = features.read("last", "patches")
    expected = []
    for row in valid_rows(features):
        for patch in range(4):
            y, x = divmod(patch, 2)
            label, mask = None, masks[row]
            if mask is not None:
                # The pixel at the patch's centre, worked out in fractions of the mask's size.
                height, width = mask.shape
                value = int(mask[int((y + 0.5) / 2 * height), int((x + 0.5) / 2 * width)])
                label = value if value < len(samples.CLASSES) else None
            expected.append((row, y, x, label, tokens[row, patch].tolist()))
    names = ("row", "patch_y", "patch_x", "patch_label", "vector")
    assert [tuple(entry[name] for name in names) for entry in found] == expected
    for entry in found:
        label = entry["patch_label"]
        assert entry["patch_class"] == (None if label is None else samples.CLASSES[label])
    assert {entry["patch_label"] for entry in found} == {None, 0, 1, 2}


# --- webdataset ------------------------------------------------------------------------------------------------------


READ_TARS = """
import json, sys
import webdataset
dataset = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode().to_tuple("json", "npy")
print(json.dumps([(row, values.tolist()) for row, values in dataset]))
"""


def test_webdataset_reads_every_view_once_from_several_shards(tmp_path: Path, features: FeatureSet) -> None:
    pytest.importorskip("webdataset", reason="the extra dev brings webdataset")
    subject = ExportSubject(features, kind="patches")
    write_webdataset(subject, tmp_path / "out", overwrite=False, shard_bytes=2000)
    shards = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert [Path(shard).name for shard in shards[:2]] == ["000000.tar", "000001.tar"]
    # In a process of its own, since it leaves its files open.
    done = subprocess.run([sys.executable, "-c", READ_TARS, *shards], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["row"] for row, _ in found] == valid_rows(features)
    tokens = features.read("last", "patches", valid_rows(features))
    np.testing.assert_array_equal(np.array([values for _, values in found], dtype=np.float16), tokens)
    assert [row["view_id"] for row, _ in found] == [features.column("view_id")[row] for row in valid_rows(features)]
    assert [row["class"] for row, _ in found] == [samples.CLASSES[row["label"]] for row, _ in found]


def test_webdataset_is_a_function_of_its_content(tmp_path: Path, features: FeatureSet) -> None:
    for name in ("a", "b"):
        export_features(ExportSubject(features), "webdataset", tmp_path / name)
    assert samples.files_of(tmp_path / "a") == samples.files_of(tmp_path / "b")


# --- fiftyone --------------------------------------------------------------------------------------------------------


def interpreter_with(module: str, variable: str) -> str:
    """A Python that has `module`: this one, or the one that an environment variable names; else the test is skipped."""
    if importlib.util.find_spec(module) is not None:
        return sys.executable
    if os.environ.get(variable):
        return os.environ[variable]
    pytest.skip(f"{module} is not installed here, and {variable} names no Python that has it")


def test_fiftyone_loads_the_folder_as_its_own(tmp_path: Path, features: FeatureSet) -> None:
    python = interpreter_with("fiftyone", "VITRINE_TEST_FIFTYONE")
    options = ExportOptions(images=Path("/photos"))
    export_features(ExportSubject(features), "fiftyone", tmp_path / "out", options)
    environment = {**os.environ, "FIFTYONE_DO_NOT_TRACK": "1"}
    environment.pop("PYTHONPATH", None)
    command = [python, str(HERE / "fiftyone_process.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    rows = valid_rows(features)
    assert found["filepaths"] == [f"/photos/{features.column('uri')[row]}" for row in rows]
    assert found["labels"] == [samples.CLASSES[features.column("label")[row]] for row in rows]
    assert found["tags"] == [[features.column("split")[row]] for row in rows]
    np.testing.assert_array_equal(found["embeddings"], features.read("last", "cls", rows).astype(np.float32))
    assert found["digest"] == features.digest


def test_fiftyone_gets_one_vector_a_view(tmp_path: Path, features: FeatureSet) -> None:
    with pytest.raises(ExportRefusedError, match="holds one vector a view; export --kind cls or mean"):
        export_features(ExportSubject(features, kind="patches"), "fiftyone", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- atlas -----------------------------------------------------------------------------------------------------------


def test_pca_is_scikit_learns_but_for_the_sign(features: FeatureSet) -> None:
    from sklearn.decomposition import PCA

    values = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32) * np.arange(1, 13) + 100
    expected = PCA(2, svd_solver="full").fit_transform(values.astype(np.float64))
    for parts in (1, 43):
        blocks = np.array_split(values, parts)
        points = project(functools.partial(iter, blocks), 300, method="pca", seed=0)
        np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_tsne_keeps_clouds_apart_and_repeats_itself() -> None:
    clouds = np.repeat(np.eye(3, 20) * 20, 20, axis=0) + np.random.default_rng(1).normal(size=(60, 20))
    first, again = (project(lambda: iter([clouds]), 60, method="tsne", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)
    distances[np.diag_indices(60)] = np.inf
    assert (distances.argmin(axis=1) // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize(
    ("n_points", "method", "message"),
    [
        (2, "pca", "at least 3 points"),
        (20_001, "tsne", "t-SNE takes at most 20000"),
        (9, "umap", "choose pca, tsne or n"),
    ],
)
def test_projections_that_cannot_be_are_refused(n_points: int, method: str, message: str) -> None:
    with pytest.raises(ExportRefusedError, match=message):
        project(lambda: iter([np.zeros((n_points, 4))]), n_points, method=method, seed=0)


@pytest.mark.parametrize("patches", [False, True])
def test_atlas_has_a_point_for_each_vector_with_what_is_known_of_it(
    tmp_path: Path, features: FeatureSet, patches: bool
) -> None:
    subject = ExportSubject(features, kind="patches" if patches else "cls")
    export_features(subject, "atlas", tmp_path / "out.parquet", ExportOptions(patches=patches))
    table = pq.read_table(tmp_path / "out.parquet")
    tokens = features.read("last", subject.stored_kind, valid_rows(features)).astype(np.float32).reshape(-1, 3)
    expected = project(lambda: iter([tokens]), len(tokens), method="pca", seed=0)
    points = np.stack([table["projection_x"].to_numpy(), table["projection_y"].to_numpy()], axis=1)
    np.testing.assert_allclose(points, expected, rtol=1e-4, atol=1e-4)
    assert Counter(table["row"].to_pylist()) == dict.fromkeys(valid_rows(features), 4 if patches else 1)
    assert table["description"][0].as_py() == "sky images/000.png"
    assert ("patch_class" in table.column_names) is patches


def test_embedding_atlas_makes_an_application_of_the_file(tmp_path: Path, features: FeatureSet) -> None:
    python = interpreter_with("embedding_atlas", "VITRINE_TEST_ATLAS")
    export_features(ExportSubject(features), "atlas", tmp_path / "points.parquet")
    command = [python, "-c", "from embedding_atlas.cli import main; main()", str(tmp_path / "points.parquet")]
    command += ["--x", "projection_x", "--y", "projection_y", "--text", "description", "--disable-projection"]
    command += ["--export-application", str(tmp_path / "application")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    data = pq.read_table(tmp_path / "application" / "data" / "dataset.parquet")
    assert data["uri"].to_pylist() == [features.column("uri")[row] for row in valid_rows(features)]
    settings = (tmp_path / "application" / "data" / "metadata.json").read_text()
    assert '"projection_x"' in settings


# --- whole or not at all ---------------------------------------------------------------------------------------------

PLACES = {"npy": "out", "parquet": "out.parquet", "webdataset": "out", "fiftyone": "out", "atlas": "out.parquet"}


@pytest.mark.parametrize("to", PLACES)
def test_what_stands_there_is_kept_unless_it_may_be_replaced(tmp_path: Path, features: FeatureSet, to: str) -> None:
    place = tmp_path / PLACES[to]
    subject = ExportSubject(features)
    export_features(subject, to, place)
    before = place.read_bytes() if place.is_file() else samples.files_of(place)
    with pytest.raises(ExportRefusedError, match="exists; choose another path, or pass --overwrite"):
        export_features(subject, to, place)
    assert (place.read_bytes() if place.is_file() else samples.files_of(place)) == before
    few = ExportSubject(features, rows=np.arange(6))
    export_features(few, to, place, ExportOptions(overwrite=True))
    assert (place.read_bytes() if place.is_file() else samples.files_of(place)) != before
    assert [path.name for path in tmp_path.iterdir()] == [PLACES[to]]


@pytest.mark.parametrize("to", PLACES)
def test_an_export_that_fails_midway_leaves_nothing(
    tmp_path: Path, features: FeatureSet, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = ExportSubject(features)
    real = subject.blocks

    def two_blocks() -> Any:
        blocks = real()
        yield next(blocks)
        yield next(blocks)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subject, "blocks", two_blocks)
    place = tmp_path / PLACES[to]
    said = rf"{re.escape(str(place))} cannot be written \(No space left on device\); free some space, or choose another"
    with pytest.raises(ExportFailedError, match=said):
        export_features(subject, to, place)
    assert list(tmp_path.iterdir()) == []


def test_what_reading_the_store_raises_is_not_laid_to_the_export(
    tmp_path: Path, features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = ExportSubject(features)

    def failing() -> Any:
        raise OSError(5, "Input/output error", "/store/object")

    monkeypatch.setattr(subject, "blocks", failing)
    with pytest.raises(OSError, match="'/store/object'"):
        export_features(subject, "npy", tmp_path / "out")


def test_a_disk_that_fills_up_gets_a_line_with_the_path(tmp_path: Path) -> None:
    place = tmp_path / "full"
    with (
        pytest.raises(ExportFailedError, match=r"full cannot be written \(No space left"),
        appearing_file(place, overwrite=False),
        Path("/dev/full").open("wb", buffering=0) as device,
    ):
        device.write(b"values")
    assert list(tmp_path.iterdir()) == []


# --- in place of nothing but an earlier export -----------------------------------------------------------------------


def a_store(folder: Path) -> Path:
    samples.fill_store(str(folder / "store"))
    return folder / "store"


@pytest.mark.parametrize("to", PLACES)
@pytest.mark.parametrize("inside", ["", "new", "features", "vitrine.json"])
def test_no_export_goes_into_a_store(tmp_path: Path, features: FeatureSet, to: str, inside: str) -> None:
    store = a_store(tmp_path)
    before = samples.files_of(store)
    (tmp_path / "link").symlink_to(store)
    for place in (store / inside, tmp_path / "link" / inside):
        for overwrite in (True, False):
            with pytest.raises(ExportRefusedError, match=r"(is a|lies in the) Vitrine store"):
                export_features(ExportSubject(features), to, place, ExportOptions(overwrite=overwrite))
    assert samples.files_of(store) == before


@pytest.mark.parametrize("to", PLACES)
def test_no_folder_but_an_exports_gives_way(tmp_path: Path, features: FeatureSet, to: str) -> None:
    a_store(tmp_path / "holds")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"pixels")
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged" / "export.json").write_text('{"written_by": "vitrine", "format": "elsewhere"}')
    (tmp_path / "link").symlink_to(tmp_path / "images")
    before = samples.files_of(tmp_path)
    for name in ("holds", "images", "forged", "link", "images/..", "images/."):
        with pytest.raises(ExportRefusedError, match="so it is never replaced; choose another path"):
            export_features(ExportSubject(features), to, tmp_path / name, ExportOptions(overwrite=True))
    assert samples.files_of(tmp_path) == before


@pytest.mark.parametrize("to", ["npy", "webdataset", "fiftyone"])
def test_an_exports_folder_with_something_else_in_it_stays(tmp_path: Path, features: FeatureSet, to: str) -> None:
    place = tmp_path / "out"
    export_features(ExportSubject(features), to, place)
    (place / "store").mkdir()
    with pytest.raises(ExportRefusedError, match="holds 'store', which no export wrote"):
        export_features(ExportSubject(features), to, place, ExportOptions(overwrite=True))
    (place / "store").rmdir()
    export_features(ExportSubject(features), "npy", place, ExportOptions(overwrite=True))
    assert (place / "rows.csv").is_file()


def test_the_current_folder_is_replaced_where_an_export_wrote_it(
    tmp_path: Path, features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportRefusedError, match="is a folder that no export wrote"):
        export_features(ExportSubject(features), "npy", Path(), ExportOptions(overwrite=True))
    export_features(ExportSubject(features), "npy", Path("out"))
    before = (tmp_path / "out" / "rows.csv").read_bytes()
    monkeypatch.chdir(tmp_path / "out")
    few = ExportSubject(features, rows=np.arange(3))
    written = export_features(few, "npy", Path(), ExportOptions(overwrite=True))
    assert written == sum(map(len, samples.files_of(tmp_path / "out").values()))
    assert (tmp_path / "out" / "rows.csv").read_bytes() != before


def test_a_file_gives_way_to_no_folder(tmp_path: Path, features: FeatureSet) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(ExportRefusedError, match="is a file, and this format writes a folder"):
        export_features(ExportSubject(features), "npy", tmp_path / "out", ExportOptions(overwrite=True))
    assert (tmp_path / "out").read_bytes() == b"mine"


SLOW_EXPORT = """
import sys, time
from pathlib import Path
from feature_store import open_store
from feature_store.exports import ExportSubject, export_features
subject = ExportSubject(open_store(sys.argv[1]).features())
real = subject.blocks
def slow():
    for block in real():
        print("block", flush=True)
        yield block
        time.sleep(60)
subject.blocks = slow
export_features(subject, sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_a_killed_export_leaves_nothing_that_looks_finished_and_the_next_cleans_up(
    tmp_path: Path, features: FeatureSet, to: str
) -> None:
    place = tmp_path / PLACES[to]
    command = [sys.executable, "-c", SLOW_EXPORT, features.root.url, to, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parent.parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"block\n"
        left = [path.name for path in tmp_path.iterdir()]
        # A live export's file is not another's to remove.
        export_features(ExportSubject(features), to, place)
        assert set(left) < {path.name for path in tmp_path.iterdir()}
        process.send_signal(signal.SIGKILL)
    assert len(left) == 1
    assert left[0].startswith(f".{PLACES[to]}.")
    time.sleep(0.05)
    export_features(ExportSubject(features), to, place, ExportOptions(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == [PLACES[to]]


@pytest.mark.parametrize(
    ("kind", "to", "options", "message"),
    [
        ("cls", "hdf5", ExportOptions(), "--to 'hdf5': choose among atlas, fiftyone, npy, parquet, webdataset"),
        ("cls", "parquet", ExportOptions(patches=True), "only --kind patches has a row a patch"),
        ("patches", "npy", ExportOptions(patches=True), "npy has a row a view; atlas and parquet can do it"),
        ("patches", "atlas", ExportOptions(), "a point is one vector"),
        ("cls", "atlas", ExportOptions(projection="umap"), "--projection 'umap': choose pca, tsne or none"),
    ],
)
def test_formats_that_cannot_hold_the_subject_are_refused(
    tmp_path: Path, features: FeatureSet, kind: Any, to: str, options: ExportOptions, message: str
) -> None:
    with pytest.raises(ExportRefusedError, match=message):
        export_features(ExportSubject(features, kind=kind), to, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, features: FeatureSet) -> None:
    with pytest.raises(ExportRefusedError, match="none is not a folder; make it first"):
        export_features(ExportSubject(features), "npy", tmp_path / "none" / "out")


def test_unknown_kinds_and_empty_subjects_are_refused(features: FeatureSet) -> None:
    with pytest.raises(ExportRefusedError, match="--kind 'tokens': choose among cls, patches, registers, mean"):
        ExportSubject(features, kind="tokens")
    with pytest.raises(ExportRefusedError, match="has no valid row among those asked for"):
        ExportSubject(features, rows=np.array(INVALID))
    with pytest.raises(StoreError, match="has no 'registers' tokens"):
        next(ExportSubject(features, kind="registers").blocks())


def test_an_incomplete_feature_set_is_refused(tmp_path: Path, features: FeatureSet) -> None:
    store = tmp_path / "store"
    shutil.copytree(features.root.url, store)
    next((store / "features").rglob("receipts/000001.json")).unlink()
    from feature_store import open_store

    with pytest.raises(StoreError, match="has 2 of 3 shards"):
        ExportSubject(open_store(str(store)).features())
