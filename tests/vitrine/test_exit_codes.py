"""The rule of docs/exit_codes.md: 2 where a word of the command line is wrong, 1 where anything else fails."""

import re
from pathlib import Path

import pytest

from .conftest import Run

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "exit_codes.md"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("knn", "{store}", "--layer", "lsat"), "layer 'lsat' is not in .*did you mean 'last'"),
        (("knn", "{store}", "--layer", "3"), "layer '3' is not in .*; it has 6"),
        (("knn", "{store}", "--train-split", "trian"), "split 'trian' is not in .*did you mean 'train'"),
        (("knn", "{store}", "--test-split", "tset"), "split 'tset' is not in .*did you mean 'test'"),
        (("linear", "{store}", "--test-split", "tset"), "split 'tset' is not in .*did you mean 'test'"),
        (("variance", "{store}", "--split", "trian"), "split 'trian' is not in .*did you mean 'train'"),
        (("variance", "{store}", "--tokens", "registers"), "has no 'registers' tokens"),
        (("knn", "{store}", "--selection", "nosuch"), "no selection 'nosuch'"),
        (("knn", "{store}", "--features", "tinny"), "no feature set fits 'tinny' .did you mean 'tiny'"),
        (("show", "{store}", "--features", "tinny"), "did you mean 'tiny'"),
        (("rm", "{store}", "tinny"), "did you mean 'tiny'"),
        (("rm", "{store}", "selections/nosuch"), "nothing to remove"),
        (("knn", "{store}", "--metric", "cosin"), "did you mean 'cosine'"),
        (("knn", "{store}", "--on", "patch"), "did you mean 'patches'"),
        (("knn", "{store}", "--score", "Classs"), "--score 'Classs'"),
        (("knnn", "{store}"), "Did you mean 'knn'"),
        (("knn", "{store}", "--laier", "6"), "Possible options: --any-layer, --layer"),
        (("knn",), "Missing argument 'store'"),
        (("models", "inspekt"), "Did you mean 'inspect'"),
    ],
)
def test_a_wrong_word_is_2_and_the_nearest_right_one_is_named(
    vitrine: Run, tiny_store: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = vitrine(*(each.format(store=tiny_store) for each in arguments))
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert re.search(said, ran.err), ran.err


@pytest.mark.parametrize(
    "arguments", [("ls", "/nowhere"), ("knn", "/nowhere"), ("knn", "{store}", "--on", "cls"), ("show", "{empty}")]
)
def test_what_fails_with_every_word_right_is_1(
    vitrine: Run, tiny_store: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "vitrine.json").write_bytes((tiny_store / "vitrine.json").read_bytes())
    ran = vitrine(*(each.format(store=tiny_store, empty=tmp_path) for each in arguments))
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)


def test_the_page_names_every_code() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["0", "1", "2", "3", "130", "143"]
