import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from evaluators import KnnParameters, Subject, ask, evaluate_knn, question
from evaluators.changes import changes
from evaluators.subject import resolve_subject
from feature_store import Selection
from feature_store.results import all_results

from .conftest import Synthetic


def test_the_second_answer_comes_from_the_store_and_equals_the_first(segmented: Synthetic) -> None:
    features = segmented.features
    asked = question(features, "knn", 1, KnnParameters())
    first = ask(features, asked, lambda: evaluate_knn(features, KnnParameters()))
    second = ask(features, asked, lambda: evaluate_knn(features, KnnParameters(k=3)))
    assert (first.cached, second.cached) == (False, True)
    assert first.result == second.result
    assert [record["digest"] for _, record in all_results(features.root)] == [first.digest]


def test_fresh_computes_again_and_says_whether_it_changed(segmented: Synthetic) -> None:
    features = segmented.features
    asked = question(features, "knn", 1, KnnParameters())
    ask(features, asked, lambda: evaluate_knn(features, KnnParameters()))
    same = ask(features, asked, lambda: evaluate_knn(features, KnnParameters()), fresh=True)
    other = ask(features, asked, lambda: evaluate_knn(features, KnnParameters(k=7)), fresh=True)
    assert (same.changed, other.changed) == (False, True)


def test_every_input_that_decides_a_result_changes_its_key(
    segmented: Synthetic, synthetic: Callable[..., Synthetic]
) -> None:
    features = segmented.features
    selection = Selection(
        name="a", features=(0, 1), width=6, weights_sha256="ab" * 32, layer=2, kind="patches", made_by={}
    )
    relabelled = synthetic(n_rows=14, invalid=(0, 7), void=8).features
    assert relabelled.digest == features.digest
    keys = [
        question(features, "knn", 1, KnnParameters()).key,
        question(features, "knn", 2, KnnParameters()).key,
        question(features, "linear", 1, KnnParameters()).key,
        question(features, "knn", 1, KnnParameters(k=2)).key,
        question(features, "knn", 1, KnnParameters(), selection).key,
        question(relabelled, "knn", 1, KnnParameters()).key,
    ]
    assert len({str(key) for key in keys}) == len(keys)


def test_the_name_of_a_selection_does_not_change_the_key(segmented: Synthetic) -> None:
    made = [
        Selection(name=name, features=(0, 1), width=6, weights_sha256="ab" * 32, layer=2, kind="patches", made_by={})
        for name in ("a", "b")
    ]
    one, other = (question(segmented.features, "knn", 1, KnnParameters(), selection) for selection in made)
    assert one.key == other.key
    assert one.about != other.about


def test_an_answer_from_a_part_is_not_kept(synthetic: Callable[..., Synthetic]) -> None:
    features = synthetic(n_rows=20, commit=slice(0, 2)).features
    answer = ask(
        features, question(features, "knn", 1, KnnParameters()), lambda: evaluate_knn(features, KnnParameters())
    )
    assert answer.digest is None
    assert all_results(features.root) == []


def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    segmented: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = segmented.features

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/store/results")

    asked = question(features, "knn", 1, KnnParameters())
    with monkeypatch.context() as patch:
        patch.setattr(features.root, "put", refuse)
        answer = ask(features, asked, lambda: evaluate_knn(features, KnnParameters()))
    assert (answer.digest, answer.not_kept, answer.cached) == (None, "Read-only file system", False)
    kept = ask(features, asked, lambda: evaluate_knn(features, KnnParameters()))
    assert (kept.result, kept.not_kept, kept.cached) == (answer.result, None, False)


def test_a_difference_in_the_ninth_digit_is_no_change(segmented: Synthetic) -> None:
    was = {
        "miou": 0.50696,
        "class_iou": {"sky": 0.8, "road": None},
        "loss": 0.350241303,
        "n_test": 12,
        "iterations": 66,
    }
    near = {
        "miou": 0.50699,
        "class_iou": {"sky": 0.8, "road": None},
        "loss": 0.350241308,
        "n_test": 12,
        "iterations": 9,
    }
    assert changes(was, near) == {}
    other = {**near, "miou": 0.5071, "n_test": 13, "class_iou": {"sky": 0.8, "road": 0.1}, "loss": 0.3503}
    assert changes(was, other) == {
        "class_iou.road": (None, 0.1),
        "loss": (0.350241303, 0.3503),
        "miou": (0.50696, 0.5071),
        "n_test": (12, 13),
    }


def test_a_fresh_answer_says_which_score_changed_from_what_to_what(segmented: Synthetic) -> None:
    features = segmented.features
    asked = question(features, "knn", 1, KnnParameters())
    first = ask(features, asked, lambda: evaluate_knn(features, KnnParameters()))
    second = ask(features, asked, lambda: evaluate_knn(features, KnnParameters(k=7)), fresh=True)
    assert second.changes is not None
    assert second.changes["miou"] == (first.result["miou"], second.result["miou"])


def test_an_answer_says_all_that_it_was_computed_from_and_when(segmented: Synthetic) -> None:
    features = segmented.features
    parameters = KnnParameters(subject=resolve_subject(features, Subject()))
    answer = ask(features, question(features, "knn", 1, parameters), lambda: evaluate_knn(features, parameters))
    assert (answer.result["layer"], answer.result["on"]) == (2, "patches")
    assert answer.result["feature_set"] == features.digest
    assert answer.result["annotations"] == features.dataset.annotations_digest
    assert answer.result["parameters"]["subject"]["seed"] == 0
    age = datetime.now(UTC) - datetime.fromisoformat(answer.result["computed"])
    assert timedelta(0) <= age < timedelta(minutes=5)
