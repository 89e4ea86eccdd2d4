"""conditions: a condition finds the rows that Python finds, and a stranger's reaches nothing but the columns."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_store import CorruptError, FeatureSet, QueryError, open_store
from feature_store.datasets import manifest_batches
from feature_store.query import conditions
from feature_store.query.columns import column_batches
from tests.feature_store.samples import CLASSES, fill_store

_N_ROWS = 45
_INVALID = (0, 8, 9, 44)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return fill_store(str(tmp_path_factory.mktemp("query") / "s"), n_rows=_N_ROWS, rows_per_shard=16, invalid=_INVALID)


def _split(row: int) -> str:
    return "train" if row < 30 else "test"


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("split = 'train' AND label IN (0, 2)", lambda row: row < 30 and row % 3 in {0, 2}),
        ("NOT valid", lambda row: row in _INVALID),
        ("valid AND row % 2 = 0", lambda row: row not in _INVALID and row % 2 == 0),
        ("class_name = 'road'", lambda row: CLASSES[row % 3] == "road"),
        ("manifest.label = 1", lambda row: row % 3 == 1),
        ("uri = 'images/007.png -- no /* comment */' OR label = 1", lambda row: row % 3 == 1),
        ("((label = (1))) AND (uri <> ') OR (1=1')", lambda row: row % 3 == 1),
        ("CASE WHEN label = 1 THEN row ELSE -row END > 40", lambda row: row > 40 and row % 3 == 1),
        ("label IN [0, 2] AND contains([0, 2], label)", lambda row: row % 3 != 1),
        ("len(coalesce(objects, [])) + 1 > 1", lambda row: False),
        ("regexp_matches(uri, '/0[01]\\d') AND uri SIMILAR TO '.*[05]\\.png'", lambda row: row < 20 and row % 5 == 0),
        ("starts_with(upper(uri), 'IMAGES') AND row::VARCHAR = '7'", lambda row: row == 7),
        ("split_part(uri, '/', 2) = '003.png' AND valid IS TRUE", lambda row: row == 3),
        ("abs(row - 10) <= 1 AND round(row / 2) >= 0 AND hash(row) IS NOT NULL", lambda row: 9 <= row <= 11),
        ("label\n=\n1", lambda row: row % 3 == 1),
        ("mask_uri IS NULL", lambda row: row % 4 == 3),
        ("mask_uri = 'masks/000.png' OR (NULL)", lambda row: row == 0),
        ("tile IS NULL OR tile.x < 120", lambda row: True),
        ("\"LABEL\" = 1 AND Split = 'test'", lambda row: row % 3 == 1 and row >= 30),
        ("len(list_filter(objects, lambda o: o.category = 3)) > 0", lambda row: False),
        ("row BETWEEN 3 AND 5", lambda row: 3 <= row <= 5),
        ("uri LIKE '%/01_.png'", lambda row: 10 <= row < 20),
        ("false", lambda row: False),
    ],
)
def test_a_condition_finds_the_rows_that_python_finds(
    features: FeatureSet, condition: str, fits: Callable[[int], bool]
) -> None:
    found = features.where(condition)
    assert found.rows.tolist() == [row for row in range(_N_ROWS) if fits(row)]
    assert len(found) == len(found.rows)


def test_conditions_narrow_one_another(features: FeatureSet) -> None:
    found = features.where("split = 'train'").where("label = 1").where("row > 20")
    assert found.rows.tolist() == [22, 25, 28]
    assert repr(found) == f"<FeatureRows: 3 of 45 rows of {features.name}>"


def test_values_are_handed_over_beside_the_condition(features: FeatureSet) -> None:
    assert features.where("uri = ?", ["images/007.png"]).rows.tolist() == [7]
    assert features.where("label = $label AND row < $stop", {"label": 1, "stop": 6}).rows.tolist() == [1, 4]
    assert features.where("label IN ?", [[1, 2]]).rows.tolist() == [row for row in range(_N_ROWS) if row % 3]
    assert features.where("uri = ?", ["' OR true --"]).rows.tolist() == []
    with pytest.raises(QueryError, match="cannot be asked"):
        features.where("uri = ?")


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("", "it must have 1 to"),
        (" \n ", "it must have 1 to"),
        ("label = '\0'", "none of them NUL"),
        ("label=1) OR (1=1", "more than one expression"),
        ("true) AND (true", "more than one expression"),
        ("label = 1) OR NOT (label = 1", "more than one expression"),
        ("(label = 1)) OR ((true)", "more than one expression"),
        ("label IN (1)) OR (row IN (2, 3)", "more than one expression"),
        ("label = 1)\n OR\n (true", "more than one expression"),
        ("label = 1, true", "more than one expression|syntax error"),
        ("true AS chosen", "more than one expression|syntax error"),
        ("true chosen", "more than one expression|syntax error"),
        ("DISTINCT true", "syntax error|more than one expression"),
        ("true FROM manifest", "syntax error"),
        ("label = 1 -- x", "it holds a comment"),
        ("label = 1 -- )", "it holds a comment"),
        ("label = /* 2 */ 1", "it holds a comment"),
        ("label = 1 /* x", "cannot be asked"),
        ("label = 1) /* x */ OR (true", "more than one expression"),
        ("random() < 0.5", "the function 'random' is not allowed in it, only abs"),
        ("current_setting('threads') = '2'", "the function 'current_setting' is not allowed"),
        ("now() IS NULL", "the function 'now' is not allowed"),
        ("current_date IS NULL", "there is no column 'current_date'"),
        ("main.lower(uri) = ''", "the function 'main.lower' is not allowed"),
        (
            "list_sum(list_transform(range(row, 20000000), lambda x: sqrt(x))) > 0",
            "the function '[a-z_]+' is not allowed in it, only abs",
        ),
        ("len(list_filter(generate_series(1, 9), lambda x: x > 1)) > 0", "the function 'generate_series' is not"),
        ("length(uri || uri) > 0", r"the function '\|\|' is not allowed"),
        ("len(objects + objects) > 0", "lists cannot be joined"),
        ("len([x for x in objects]) > 0", "is not allowed"),
        ("len([row, row]) > 0", "its lists in square brackets may hold"),
        (f"label IN [{', '.join(map(str, range(300)))}]", "its lists in square brackets may hold 256 values"),
        (" AND ".join(["abs(row) > 0"] * 300), "it calls 300 functions, of 256"),
        ("uri::BLOB IS NULL", "a cast to 'blob' is not allowed"),
        ("len(uri::INTEGER[]) > 0", "a cast to 'list' is not allowed"),
        ("len(objects[1:2]) > 0", "the operation array slice is not allowed"),
        (
            "len(list_filter(objects, lambda o: len(list_filter(objects, lambda p: true)) > 0)) > 0",
            "a lambda within a lambda",
        ),
        ("x" * 5000 + " = 1", "there is no column 'x{60}\\.\\.\\.'"),
        ("x" * 5000 + "() = 1", "the function 'x{60}\\.\\.\\.' is not"),
        ("true OR " * 200_000 + "true", "it must have 1 to"),
        ("lable = 3", "there is no column 'lable', only row, valid, class_name, view_id"),
        ('split = "train"', "there is no column 'train'"),
        ("label = 'x'", "Could not convert string 'x'"),
        ("label = 3)", "syntax error"),
        ("(" * 5000 + "true" + ")" * 5000, "cannot be asked"),
        ("NOT " * 2000 + "true", "cannot be asked"),
        ("true) UNION SELECT 1 WHERE (true", "more than one expression"),
        ("true) UNION SELECT content FROM read_text('{canary}') WHERE (true", "more than one expression"),
        ("true) LIMIT (1", "more than one expression"),
        ("true) ORDER BY (row", "more than one expression"),
        ("true) GROUP BY (row", "more than one expression"),
        ("true; DROP TABLE manifest", "more than one statement|syntax error"),
        ("true); DROP TABLE manifest; SELECT (true", "more than one statement"),
        ("true); SELECT (true", "more than one statement"),
        ("true); COPY (SELECT 1) TO '{target}'; SELECT (true", "more than one statement"),
        ("true); ATTACH '{target}' AS other; SELECT (true", "more than one statement"),
        ("true); INSTALL httpfs; SELECT (true", "more than one statement"),
        ("true); SET threads = 64; SELECT (true", "more than one statement"),
        ("COPY manifest TO '{target}'", "syntax error"),
        ("ATTACH '{target}'", "cannot be asked"),
        ("read_csv('{canary}') IS NOT NULL", "the function 'read_(csv|text)' is not allowed"),
        ("read_text('{canary}') = ''", "the function 'read_(csv|text)' is not allowed"),
        ("getenv('HOME') = ''", "cannot be asked"),
        ("row IN (SELECT 1)", "a query of its own"),
        ("EXISTS (SELECT * FROM read_csv('{canary}'))", "a query of its own"),
        ("uri IN (SELECT content FROM read_text('{canary}'))", "a query of its own"),
        ("uri IN (FROM '{canary}')", "a query of its own"),
        ("len(list_transform([1], lambda x: (SELECT 1))) > 0", "a query of its own"),
        ("len(ARRAY(SELECT * FROM duckdb_settings())) > 0", "a query of its own"),
        ("COLUMNS(*) IS NULL", "all columns at once"),
        ("count(*) > 0", "cannot be asked"),
        ("row_number() OVER () = 1", "cannot be asked"),
        ("len(range(1000000000000)) > 0", "cannot be asked"),
        ("len(repeat('x', 100000000000)) > 0", "cannot be asked"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(
    features: FeatureSet, condition: str, reason: str, tmp_path: Path
) -> None:
    canary, target = tmp_path / "canary.csv", tmp_path / "written"
    canary.write_text("a\nsecret\n")
    text = condition.replace("{canary}", str(canary)).replace("{target}", str(target))
    with pytest.raises(QueryError, match=reason) as refused:
        features.where(text)
    message = str(refused.value)
    assert message.startswith("the condition ")
    assert "Give one SQL expression over the manifest's columns" in message
    assert "\n" not in message.replace(text[:200], "")
    assert "secret" not in message
    assert len(message) < 1200
    assert list(tmp_path.iterdir()) == [canary]


@pytest.fixture
def slow_manifest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A manifest that comes when the test is over."""
    over = threading.Event()

    def late(*arguments: Any) -> Any:
        over.wait(20)
        yield from column_batches(*arguments)

    monkeypatch.setattr(conditions, "column_batches", late)
    monkeypatch.setattr(conditions, "_GRACE_S", 0.1)
    yield
    over.set()
    for thread in threading.enumerate():
        if thread.name == "condition":
            thread.join(20)


@pytest.mark.usefixtures("slow_manifest")
def test_a_condition_is_given_up_when_its_time_is_over(features: FeatureSet) -> None:
    with pytest.raises(QueryError, match=r"it took more than 0\.2 s; ask for less, or allow more time"):
        features.where("label = 1", time_limit_s=0.2)


@pytest.mark.usefixtures("slow_manifest")
def test_ctrl_c_ends_a_condition(features: FeatureSet) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        features.where("label = 1", time_limit_s=15.0)
    timer.join()


def test_a_running_query_of_duckdb_is_interrupted() -> None:
    connection = duckdb.connect(":memory:", config={"threads": 1})
    text = "SELECT count(*) AS row FROM range(100000000000) a WHERE a.range % 7 = 3"
    with pytest.raises(TimeoutError):
        conditions._Asked(connection, text, ()).rows(0.2)
    assert not [thread for thread in threading.enumerate() if thread.name == "condition"]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_time_limit_is_a_time(features: FeatureSet, seconds: float) -> None:
    with pytest.raises(QueryError, match=r"a time limit of .* give more than 0 and at most 86400"):
        features.where("label = 1", time_limit_s=seconds)


def test_only_the_columns_that_a_condition_names_are_read(
    features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def spy(root: Any, dataset: Any, columns: list[str]) -> Any:
        asked.append(sorted(columns))
        return manifest_batches(root, dataset, columns)

    monkeypatch.setattr("feature_store.query.columns.manifest_batches", spy)
    features.where("split = 'train' AND class_name = 'sky' AND valid")
    features.where("row < 3 AND valid")
    assert asked == [["label", "split"]]


def test_a_damaged_manifest_is_corrupt_and_not_a_wrong_condition(tmp_path: Path) -> None:
    fill_store(str(tmp_path / "s"))
    features = open_store(str(tmp_path / "s")).features()
    path = tmp_path / "s" / features.dataset.folder / "manifest.parquet"
    content = bytearray(path.read_bytes())
    chunks = pq.ParquetFile(path).metadata.row_group(0)
    (uri,) = [chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == "uri"]
    content[(uri.dictionary_page_offset or uri.data_page_offset) + uri.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"manifest\.parquet cannot be read"):
        features.where("uri = 'images/010.png'")
    path.unlink()
    with pytest.raises(CorruptError, match=r"manifest\.parquet cannot be read"):
        features.where("label = 1")


def test_conditions_are_answered_from_an_object_store(store_url: str) -> None:
    features = fill_store(store_url, invalid=[3])
    assert features.where("label = 0 AND NOT valid").rows.tolist() == [3]


def test_columns_come_with_the_rows_asked_for(features: FeatureSet) -> None:
    rows = features.where("label = 1 AND row < 9")
    table = rows.columns(["class_name", "row", "valid", "uri"])
    assert table.to_pydict() == {
        "class_name": ["road"] * 3,
        "row": [1, 4, 7],
        "valid": [True, True, True],
        "uri": ["images/001.png", "images/004.png", "images/007.png"],
    }
    assert rows.column("split") == ["train"] * 3
    assert features.column("valid") == np.isin(np.arange(_N_ROWS), _INVALID, invert=True).tolist()
    with pytest.raises(QueryError, match=r"there are no columns \['lable'\], only row, valid"):
        rows.columns(["lable"])
    with pytest.raises(
        QueryError, match=r"there are no columns \['x{60}\.\.\.', 'y0', 'y1', 'y10', 'y11'\] and 15 more, only"
    ):
        rows.columns(["x" * 5000, *(f"y{number}" for number in range(19))])
    with pytest.raises(QueryError, match="name one twice"):
        rows.columns(["uri", "uri"])
