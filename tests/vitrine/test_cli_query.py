"""`vitrine query`: what the shell gets is what Python gets from the same store."""

import csv
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureSet, write_selection
from feature_store.query.columns import column_batches
from tests.feature_store.samples import all_tokens, files_of, fill_store, make_selection

from .conftest import Run, run_process

_INVALID = (3, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """21 rows of 2 x 2 patches in 3 shards; two rows have no tokens."""
    features = fill_store(str(tmp_path_factory.mktemp("query") / "store"), invalid=_INVALID)
    write_selection(features.root, make_selection())
    return features


def test_a_table_shows_the_rows_that_a_condition_leaves(vitrine: Run, store: FeatureSet) -> None:
    shown = vitrine("query", store.root.url, "--where", "split = 'train' AND class_name = 'road'")
    assert shown.code == 0, shown.err
    assert f"{store.name}: 5 of 21 rows" in shown.out
    assert [line.split()[0] for line in shown.out.splitlines()[3:]] == ["1", "4", "7", "10", "13"]
    asked = ("--where", "NOT valid", "--columns", "row,uri,label", "--json")
    found = vitrine("query", store.root.url, *asked).json
    assert found == {
        "features": store.name,
        "n_rows": 2,
        "rows": [{"row": row, "uri": f"images/{row:03d}.png", "label": row % 3} for row in _INVALID],
    }


def test_a_table_says_what_it_leaves_out(vitrine: Run, store: FeatureSet) -> None:
    shown = vitrine("query", store.root.url, "--limit", 3)
    assert "21 of 21 rows" in shown.out
    assert shown.out.splitlines()[-1] == "the first 3; --limit shows more, --output FILE writes all"
    found = vitrine("query", store.root.url, "--limit", 3, "--json").json
    assert (found["n_rows"], len(found["rows"])) == (21, 3)


def test_parquet_holds_columns_and_tokens(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    arguments = ("--where", "row > 1", "--columns", "row,class_name", "--tokens", "patches", "--patches", "3,0-1")
    done = vitrine("query", store.root.url, *arguments, "-o", path)
    assert done.code == 0, done.err
    assert done.out == f"wrote {path}: 17 of 19 rows; 2 without tokens left out (--where 'NOT valid' lists them)\n"
    table = pq.read_table(path)
    rows = [row for row in range(2, 21) if row not in _INVALID]
    assert table["row"].to_pylist() == rows
    assert table["class_name"].to_pylist() == [("sky", "road", "tree")[row % 3] for row in rows]
    tokens = all_tokens(store.spec, 1, "patches")[:, [3, 0, 1]]
    assert table["patches"].to_pylist() == tokens[rows].tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_stands_there_is_kept_unless_it_may_be_replaced(
    vitrine: Run, store: FeatureSet, tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("mine\n")
    for asked in ((), ("--nearest", "5")):
        ran = vitrine("query", store.root.url, *asked, "-o", path)
        assert (ran.code, ran.out) == (2, "")
        assert "exists; choose another path, or pass --overwrite" in ran.err
        assert path.read_text() == "mine\n"
        path.with_name("mine.csv").write_text("mine\n")
        assert vitrine("query", store.root.url, *asked, "-o", path, "--overwrite").code == 0
        assert path.read_text() != "mine\n"
        path.write_text("mine\n")


def test_nothing_is_written_into_a_store(vitrine: Run, store: FeatureSet) -> None:
    folder = Path(store.root.url)
    before = files_of(folder)
    (manifest,) = folder.glob("datasets/*/*/manifest.parquet")
    for path in (manifest, folder / "new.parquet", manifest.parent / "new.csv"):
        ran = vitrine("query", folder, "-o", path, "--overwrite")
        assert (ran.code, ran.out) == (2, "")
        assert "lies in the Vitrine store" in ran.err
        assert len(ran.err.splitlines()) == 1
    assert files_of(folder) == before


def test_npy_holds_the_tokens_of_rows_that_have_some(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    done = vitrine("query", store.root.url, "--tokens", "cls", "-o", path, "--json").json
    assert done["rows_written"] == 19
    assert done["rows_without_tokens"] == 2
    expected = np.delete(all_tokens(store.spec, 1, "cls"), _INVALID, axis=0)
    np.testing.assert_array_equal(np.load(path), expected)
    vitrine(
        "query", store.root.url, "--tokens", "patches", "--patches", "2", "--where", "false", "-o", path, "--overwrite"
    )
    assert np.load(path).shape == (0, 1, 3)


def test_csv_holds_columns(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    vitrine("query", store.root.url, "--where", "row < 2", "--columns", "uri,label,valid,tile", "-o", path)
    assert list(csv.reader(path.read_text().splitlines())) == [
        ["uri", "label", "valid", "tile"],
        ["images/000.png", "0", "True", ""],
        ["images/001.png", "1", "True", ""],
    ]


def test_nearest_is_what_the_vectors_say(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    found = vitrine("query", store.root.url, "--nearest", "5:2", "-k", 3, "--metric", "l2", "--json").json
    assert (found["on"], found["row"], found["patch"]) == ("patches", 5, 2)
    tokens = np.delete(all_tokens(store.spec, 1, "patches"), _INVALID, axis=0).astype("f8")
    distances = np.sort(((tokens - store.read(1, "patches", [5])[0, 2]) ** 2).sum(axis=2).reshape(-1))
    np.testing.assert_allclose([entry["score"] for entry in found["nearest"]], distances[:3], rtol=1e-5)
    assert found["nearest"][0] == {
        "rank": 1, "row": 5, "patch": 2, "score": 0.0, "uri": "images/005.png", "tile": None,
    }  # fmt: skip
    some = ("--where", "split = 'test'", "--selection", "no1", "--nearest", "5")
    images = vitrine("query", store.root.url, *some, "-k", 6, "--any-layer", "--json").json
    assert images["selection_made_on"] == "patches of layer 2"
    assert (images["on"], images["patch"], images["selection"]) == ("cls", None, "no1")
    # Rows 14 to 19 are the test rows with tokens; the selection leaves features 0 and 2.
    cls = all_tokens(store.spec, 1, "cls").astype("f8")[:, [0, 2]]
    cosine = cls[14:20] @ cls[5] / np.linalg.norm(cls[14:20], axis=1) / np.linalg.norm(cls[5])
    assert [entry["row"] for entry in images["nearest"]] == (14 + np.argsort(-cosine)).tolist()


def test_what_cannot_be_asked_is_one_line_and_code_2(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    url = store.root.url
    for arguments, reason in [
        (("--where", "lable = 3"), "there is no column 'lable', only row, valid, class_name, view_id"),
        (("--where", "label=1) OR (1=1"), "it holds more than one expression"),
        (("--where", "label=1 -- x"), "it holds a comment"),
        (("--where", "true) AND (true"), "it holds more than one expression"),
        (("--where", "random() < 0.5"), "the function 'random' is not allowed"),
        (("--where", "true; DROP TABLE manifest"), "cannot be asked"),
        (("--where", "uri IN (SELECT content FROM read_text('/etc/passwd'))"), "a query of its own"),
        (("--columns", "lable"), "there are no columns ['lable']"),
        (("--columns", ","), "--columns ',' has an empty part"),
        (("--tokens", "cls"), "needs --output FILE.parquet or FILE.npy"),
        (("--tokens", "pixels", "-o", tmp_path / "a.npy"), "choose patches, cls, registers"),
        (("--patches", "1"), "say which with --tokens"),
        (("-o", tmp_path / "a.npy"), "say which with --tokens"),
        (("--tokens", "cls", "-o", tmp_path / "a.csv"), "a table or csv holds columns"),
        (("--tokens", "cls", "-o", tmp_path / "a.npy", "--columns", "uri"), "write .parquet"),
        (("--tokens", "patches", "--patches", "1,x", "-o", tmp_path / "a.npy"), "as in 0,1,16-31"),
        (
            ("--tokens", "patches", "--patches", "4", "-o", tmp_path / "a.npy"),
            "patch 4 does not exist: a row has patches 0 to 3,",
        ),
        (("--tokens", "cls", "--patches", "1", "-o", tmp_path / "a.npy"), "choose patches of kind 'patches'"),
        (("-o", tmp_path / "a.txt"), "name a .parquet, .npy, .csv file in a folder that exists"),
        (("-o", tmp_path / "no" / "a.csv"), "in a folder that exists"),
        (("--nearest", "x"), "give a row number, or row and patch as in 12:40"),
        (("--nearest", "5:"), "give a row number, or row and patch"),
        (("--nearest", "99"), "row 99 does not exist"),
        (("--nearest", "3"), "has no tokens; name another row"),
        (("--nearest", "5:99"), "--nearest 5:99: a row has patches 0 to 3, row-major over the grid; name one"),
        (("--nearest", "5", "--where", "false"), "nothing is nearest: the condition leaves no row"),
        (("--nearest", "5", "--where", "NOT valid"), "among the 2 rows that the condition leaves, of which none has"),
        (("--nearest", "5", "--on", "patches"), "choose cls or mean"),
        (("--nearest", "5", "--metric", "manhattan"), "choose dot, cosine, l2"),
        (("--nearest", "5", "--tokens", "cls"), "--tokens has no meaning with --nearest"),
        (("--nearest", "5", "-k", 20), "20 neighbours were asked for among 19 tokens"),
        (("--nearest", "5", "-o", tmp_path / "a.npy"), "write .csv or .parquet"),
        (("--selection", "no1"), "--selection needs --nearest"),
    ]:
        refused = vitrine("query", url, *arguments)
        assert refused.code == 2, (arguments, refused)
        assert refused.out == ""
        assert refused.err.count("\n") == 1
        assert reason in refused.err, (arguments, refused.err)
    assert list(tmp_path.iterdir()) == []


def test_the_default_k_gives_as_many_as_there_are(vitrine: Run, store: FeatureSet) -> None:
    for place, where, n in (("5", "row IN (1, 2, 3)", 2), ("5:0", "row = 7", 4), ("5", "true", 10)):
        found = vitrine("query", store.root.url, "--nearest", place, "--where", where, "--json").json
        assert len(found["nearest"]) == n


def test_tiles_are_told_apart_where_there_are_some(
    vitrine: Run, store: FeatureSet, tiny_images: Path, tmp_path: Path
) -> None:
    usual = ["row", "uri", "split", "label", "class_name"]
    assert list(vitrine("query", store.root.url, "--json").json["rows"][0]) == usual
    tiled = ("extract", f"segmentation:{tiny_images}", "--model", "null", "--tile", 16, "--limit-per-split", 1)
    assert vitrine(*tiled, "--store", tmp_path / "tiled").code == 0
    rows = vitrine("query", tmp_path / "tiled", "--json").json["rows"]
    assert list(rows[0]) == [*usual[:2], "tile", *usual[2:]]
    # Two images of 64 x 48 pixels.
    places = [(x, y) for y in range(0, 48, 16) for x in range(0, 64, 16)]
    assert sorted((row["tile"]["x"], row["tile"]["y"]) for row in rows) == sorted(places * 2)
    lines = vitrine("query", tmp_path / "tiled", "--where", "uri LIKE 'train/%'").out.splitlines()[3:]
    assert len(set(lines)) == len(lines) == 12
    vitrine("query", tmp_path / "tiled", "-o", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().startswith("row,uri,tile,split,label,class_name\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compress", "s", "--pca", "0"), "--pca '0': give a number of 1 or more. See `vitrine compress --help`."),
        (("query", "s", "-k", "0"), "--k '0': give a number of 1 or more. See `vitrine query --help`."),
        (("query", "s", "--limit", "x" * 99), f"--limit '{'x' * 60}...': give a whole number. See"),
        (("query", "s", "--time-limit", "1e9"), "--time-limit '1e9': give a number of at most 86400. See"),
        (("extract", "x", "--batch-size", "0"), "--batch-size '0': give a number of 1 or more. See"),
        (("extract", "x", "--workers", "2000"), "--workers '2000': give a number of at most 1024. See"),
        (("extract", "x", "--rows-per-shard", "3"), "--rows-per-shard '3': give a number of 8 or more. See"),
        (("extract", "x", "--rows-per-shard", "99999999"), "'99999999': give a number of at most 16777216. See"),
        (("import", "x", "--prefix-tokens", "-1"), "--prefix-tokens '-1': give a number of 0 or more. See"),
        (("import", "x", "--layer", "0"), "--layer '0': give a number of 1 or more. See"),
        (("knn", "s", "--seed", "1.5"), "--seed '1.5': give a whole number. See"),
        (("query", "s", "--nope"), "No such option: --nope (Possible options: --on). See `vitrine query --help`."),
        (("query",), "Missing argument 'store'. See `vitrine query --help`."),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(vitrine: Run, arguments: tuple[str, ...], said: str) -> None:
    refused = vitrine(*arguments)
    assert refused.code == 2
    assert refused.err.startswith("vitrine: error: ")
    assert said in refused.err


def test_ctrl_c_and_a_time_limit_end_a_condition(
    vitrine: Run, store: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def late(*arguments: Any) -> Any:
        over.wait(20)
        yield from column_batches(*arguments)

    monkeypatch.setattr("feature_store.query.conditions.column_batches", late)
    monkeypatch.setattr("feature_store.query.conditions._GRACE_S", 0.1)
    refused = vitrine("query", store.root.url, "--where", "label = 1", "--time-limit", 0.2)
    assert refused.code == 2
    assert "it took more than 0.2 s; ask for less, or allow more time (--time-limit)" in refused.err
    words = ("--to", "npy", "--where", "label = 1", "--time-limit", 0.3)
    refused = vitrine("export", store.root.url, tmp_path / "out", *words)
    assert refused.code == 2
    assert "it took more than 0.3 s; ask for less, or allow more time (--time-limit)" in refused.err
    assert not (tmp_path / "out").exists()
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    stopped = vitrine("query", store.root.url, "--where", "label = 1")
    over.set()
    timer.join()
    for thread in threading.enumerate():
        if thread.name == "condition":
            thread.join(20)
    assert stopped.code == 130, stopped


def test_neighbours_are_written_too(vitrine: Run, store: FeatureSet, tmp_path: Path) -> None:
    shown = vitrine("query", store.root.url, "--nearest", "5", "-k", 2, "--on", "mean")
    assert "nearest to row 5 on mean, cosine" in shown.out
    for name in ("n.parquet", "n.csv"):
        done = vitrine("query", store.root.url, "--nearest", "5:0", "-k", 4, "-o", tmp_path / name)
        assert done.out == f"wrote {tmp_path / name}: 4 of 4 rows\n"
    rows = pq.read_table(tmp_path / "n.parquet").to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    with (tmp_path / "n.csv").open() as file:
        assert [int(row["row"]) for row in csv.DictReader(file)] == [row["row"] for row in rows]


def test_rows_are_answered_without_torch(store: FeatureSet) -> None:
    """A process that lists rows must not wait seconds for what it does not use."""
    code = f"""
import sys
from vitrine.__main__ import run
assert run(["query", {store.root.url!r}, "--where", "label = 1", "--json"]) == 0
print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["n_rows"] == 7
    assert done.stderr == "False\n"


def test_help_has_an_example_of_each_form() -> None:
    shown = run_process("query", "--help")
    assert shown.code == 0
    for form in ("rows.csv", "test.npy", "top.parquet", "--nearest 12:40", "--where", "--json"):
        assert form in shown.out
