"""What `vitrine results` says of each result."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evaluators import KnnParameters, LinearParameters, Subject
from vitrine.answer_lines import asked_in_words
from vitrine.result_lines import result_rows

from .conftest import Run

DIGEST = "ab" * 32


def record(parameters: KnnParameters, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A kept answer to a k-NN question."""
    key = {
        "feature_set": DIGEST,
        "annotations": "cd" * 32,
        "selection": None,
        "evaluator": "knn",
        "revision": 2,
        "parameters": json.loads(json.dumps(asdict(parameters))),
        **changes,
    }
    result = {"features": "photos-1/vit-2", "miou": 0.5, "computed": "2026-01-02T03:04:05+00:00", "selection": "no200"}
    return "knn", {"key": key, "result": result, "digest": "ef" * 32}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (record(KnnParameters(subject=Subject(layer=3))), "layer=3"),
        (record(KnnParameters(subject=Subject(on="mean"))), "on=mean"),
        (record(KnnParameters(k=5)), "k=5"),
        (record(KnnParameters(metric="l2")), "metric=l2"),
        (record(KnnParameters(standardise=True)), "standardise=True"),
        (record(KnnParameters(subject=Subject(hold_out=0.25))), "hold_out=0.25"),
        (record(KnnParameters(subject=Subject(seed=4))), "seed=4"),
        (record(KnnParameters(subject=Subject(test_split="val"))), "test_split=val"),
        (record(KnnParameters(), selection="12" * 32), "selection=no200@12121212"),
        (record(KnnParameters(), annotations="34" * 32), "labels=34343434"),
        (record(KnnParameters(), feature_set="56" * 32), "feature_set=56565656"),
        (record(KnnParameters(), revision=3), "revision=3"),
    ],
)
def test_a_line_says_in_what_it_differs_from_its_neighbour(changed: tuple[str, dict[str, Any]], word: str) -> None:
    ((_, _, *_), (_, said, score, computed, digest)), alike = result_rows([record(KnnParameters()), changed])
    assert word in str(said).split()
    assert word not in {f"{name}={value}" for name, value in alike.items()}
    assert (score, computed, digest) == (0.5, "2026-01-02 03:04", "efefefef")


def test_lines_of_two_evaluators_say_which_images_each_was_tested_on() -> None:
    _, knn = record(KnnParameters(subject=Subject(hold_out=0.5, seed=7)))
    _, linear = record(KnnParameters(subject=Subject(hold_out=0.25, seed=1)))
    rows, alike = result_rows([("knn", knn), ("linear", linear)])
    assert {"hold_out=0.5", "seed=7"} <= set(str(rows[0][1]).split())
    assert {"hold_out=0.25", "seed=1"} <= set(str(rows[1][1]).split())
    assert not {"hold_out", "seed"} & set(alike)


def test_what_all_lines_say_alike_is_said_once() -> None:
    layers = [record(replace(KnnParameters(), subject=Subject(layer=layer))) for layer in (3, 6, 9, 12)]
    rows, alike = result_rows(layers)
    assert [row[1] for row in rows] == ["layer=3", "layer=6", "layer=9", "layer=12"]
    assert (alike["metric"], alike["features"], alike["labels"]) == ("cosine", "photos-1/vit-2", "cdcdcdcd")


def test_results_and_answers_name_layer_labelling_and_time(vitrine: Run, tiny_store: Path) -> None:
    vitrine("knn", tiny_store, "--k", "1,7")
    answer = vitrine("knn", tiny_store, "--k", 7, "--json").json
    assert answer["layer"] == 6
    assert {"computed", "annotations", "feature_set", "parameters"} <= answer.keys()
    assert f"computed {answer['computed']}" in vitrine("knn", tiny_store, "--k", 7).out
    listed = vitrine("results", tiny_store).out
    assert "k=7" in listed
    assert answer["digest"][:8] in listed
    assert answer["computed"][:10] in listed


def test_the_heading_and_the_results_name_the_memory_and_the_sample() -> None:
    asked: dict[str, Any] = {"memory_bytes": 3_200_000, "max_passes": None, "l2s": [0.1], "subject": {}}
    sampled = {"l2": 0.1, "sample": {"images": 5, "of": 240, "seed": 0}, "converged": True}
    assert asked_in_words({**sampled, "parameters": asked}) == "l2=0.1 memory=0.0032GB sample=5/240-images"
    (name, kept), (_, usual) = record(KnnParameters()), record(KnnParameters())
    kept["key"]["parameters"], kept["result"] = asked, {**kept["result"], **sampled}
    usual["key"]["parameters"] = {**asked, "memory_bytes": LinearParameters().memory_bytes}
    ((_, words, *_), _), _ = result_rows([(name, kept), (name, usual)])
    assert {"memory=0.0032GB", "sample=5/240-images"} <= set(str(words).split())
