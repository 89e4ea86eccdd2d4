"""results: kept under what decides them; a damaged one counts as absent."""

import json
from pathlib import Path

import pytest

from feature_store import StoreError, create_store
from feature_store.records import record_bytes
from feature_store.results import all_results, read_result, result_digest, write_result

_KEY = {"feature_set": "f" * 64, "parameters": {"k": 1, "layers": [1, 2]}}
_RESULT = {"miou": 0.25, "by_class": [0.5, None]}


def test_a_result_is_found_by_its_key_alone(store_url: str) -> None:
    root = create_store(store_url)
    assert read_result(root, "knn", _KEY) is None
    digest = write_result(root, "knn", _KEY, _RESULT)
    assert digest == result_digest(_KEY)
    assert read_result(root, "knn", _KEY) == _RESULT
    assert read_result(root, "linear", _KEY) is None
    assert read_result(root, "knn", {**_KEY, "parameters": {"k": 2, "layers": [1, 2]}}) is None
    assert all_results(root) == [("knn", {"key": _KEY, "result": _RESULT, "digest": digest})]


def test_a_key_with_a_tuple_is_found_again(store_url: str) -> None:
    root = create_store(store_url)
    key = {"parameters": {"layers": (1, 2)}}
    write_result(root, "knn", key, _RESULT)
    assert read_result(root, "knn", key) == _RESULT


def test_a_result_is_written_over(store_url: str) -> None:
    root = create_store(store_url)
    write_result(root, "knn", _KEY, {"miou": 0})
    write_result(root, "knn", _KEY, _RESULT)
    assert read_result(root, "knn", _KEY) == _RESULT


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"key": 1}',
        json.dumps({"key": _KEY, "result": _RESULT}),
        record_bytes({"key": _KEY, "result": []}).decode(),
        record_bytes({"key": {}, "result": _RESULT}).decode(),
    ],
)
def test_a_damaged_result_counts_as_absent(tmp_path: Path, content: str) -> None:
    root = create_store(str(tmp_path))
    digest = write_result(root, "knn", _KEY, _RESULT)
    (tmp_path / "results" / "knn" / f"{digest}.json").write_text(content)
    assert read_result(root, "knn", _KEY) is None


def test_stray_files_are_no_results(tmp_path: Path) -> None:
    root = create_store(str(tmp_path))
    write_result(root, "knn", _KEY, _RESULT)
    (tmp_path / "results" / "knn" / "notes.txt").write_text("{}")
    (tmp_path / "results" / "knn" / "broken.json").write_text("{")
    (tmp_path / "results" / "stray.json").write_text("{}")
    assert [evaluator for evaluator, _ in all_results(root)] == ["knn"]


def test_an_evaluators_name_is_one_folder(store_url: str) -> None:
    root = create_store(store_url)
    with pytest.raises(StoreError, match=r"^name '\.\./x' is not a plain name; use up to 200 letters"):
        write_result(root, "../x", _KEY, _RESULT)
