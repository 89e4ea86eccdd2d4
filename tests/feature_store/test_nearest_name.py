"""What a mistyped name probably meant."""

import pytest

from feature_store.nearest_name import did_you_mean, nearest_names

NAMES = ["train", "test", "validation", "camvid-13d5df84/demo-b13182a6"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("tset", ["test"]),
        ("TRIAN", ["train"]),
        ("val", ["validation"]),  # begins with it
        ("camvid", ["camvid-13d5df84/demo-b13182a6"]),
        ("xyz", []),
        ("", []),
    ],
)
def test_names_that_begin_with_the_word_or_are_spelt_alike_are_near(word: str, near: list[str]) -> None:
    assert nearest_names(word, NAMES) == near


def test_a_question_is_asked_only_where_something_is_near() -> None:
    assert did_you_mean("tset", NAMES) == " (did you mean 'test'?)"
    assert did_you_mean("xyz", NAMES) == ""
