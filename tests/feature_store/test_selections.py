"""selections: a stored choice of features, for one model's weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import (
    CorruptError,
    SelectionError,
    UnknownNameError,
    create_store,
    dropping,
    made_elsewhere,
    read_selection,
    selection_names,
    write_selection,
)
from feature_store.records import read_record, write_record
from tests.feature_store.samples import make_selection, make_spec


@given(st.integers(1, 60).flatmap(lambda width: st.tuples(st.just(width), st.sets(st.integers(0, width - 1)))))
def test_dropping_keeps_the_others_in_order(case: tuple[int, set[int]]) -> None:
    width, dropped = case
    kept = dropping(sorted(dropped, reverse=True), width)
    assert sorted({*kept, *dropped}) == list(range(width))
    assert list(kept) == sorted(kept)
    assert len(kept) + len(dropped) == width


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ([1, 1, 2], r"features \[1\] are dropped twice; name each once"),
        ([3], r"features \[3\] do not exist; this model"),
    ],
)
def test_dropping_what_cannot_be_dropped_is_refused(dropped: list[int], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        dropping(dropped, 3)


def test_a_selection_is_kept_by_name(store_url: str) -> None:
    root = create_store(store_url)
    assert selection_names(root) == []
    for name in ("no1", "another.one"):
        write_selection(root, make_selection(name))
        assert read_selection(root, name) == make_selection(name)
    assert selection_names(root) == ["another.one", "no1"]


def test_the_digest_is_of_what_a_selection_does() -> None:
    base = make_selection()
    assert replace(base, name="x", made_by={}, layer=1, kind="cls").digest == base.digest
    others = [
        replace(base, features=(0, 1)),
        replace(base, width=4),
        replace(base, weights_sha256="c" * 64),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 4


def test_a_name_means_one_choice_for_ever(store_url: str) -> None:
    root = create_store(store_url)
    write_selection(root, make_selection())
    write_selection(root, make_selection(made_by={"again": True}))
    with pytest.raises(
        SelectionError,
        match=r"^a selection 'no1' with other features, or made on other tokens .*, exists; choose another --name, or",
    ):
        write_selection(root, make_selection(features=(0, 1)))
    assert read_selection(root, "no1") == make_selection()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a b", ".hidden", "x" * 201, "a\0b", "a-"])
def test_a_name_that_cannot_be_a_files_is_refused(store_url: str, name: str) -> None:
    root = create_store(store_url)
    for act in (lambda: write_selection(root, make_selection(name)), lambda: read_selection(root, name)):
        with pytest.raises(SelectionError, match=r"^selection name .* is not a plain name; use up to 200 letters"):
            act()


def test_an_unknown_name_lists_the_known_ones(store_url: str) -> None:
    root = create_store(store_url)
    with pytest.raises(UnknownNameError, match=r"^no selection 'no2' in .* \(there: none yet\); `vitrine prune` makes"):
        read_selection(root, "no2")
    write_selection(root, make_selection())
    with pytest.raises(UnknownNameError, match=r"\(there: no1\)"):
        read_selection(root, "no2")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ((), "keeps none of 3 features; drop fewer"),
        ((2, 0), r"has feature 0 after 2; features ascend within 0\.\.2\. Sort them"),
        ((1, 1), "has feature 1 after 1"),
        ((-1, 1), "has feature -1 after -1"),
        ((0, 3), "has feature 3 after 3"),
    ],
)
def test_features_ascend_within_the_width(features: tuple[int, ...], message: str) -> None:
    with pytest.raises(SelectionError, match=f"^selection 'no1' {message}"):
        make_selection(features=features)


def test_a_selection_fits_its_own_weights_alone() -> None:
    made = make_selection()
    made.check_fits(make_spec(), layer=made.layer, kind=made.kind)
    for wrong in (make_selection(weights_sha256="c" * 64), make_selection(width=4)):
        with pytest.raises(SelectionError, match="feature numbers mean something only within one model"):
            wrong.check_fits(make_spec(), layer=wrong.layer, kind=wrong.kind)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("features", [0, 1], "the file was changed after it was written"),
        ("features", [2, 0], "it is no selection"),
        ("features", "02", "'features' is '02', and must be a list"),
        ("features", [0.0, 2.0], "'features' holds 0.0, and must hold whole numbers"),
        ("width", -3, "'width' is -3, and must be within"),
        ("made_by", [], r"'made_by' is \[\], and must be an object"),
        ("weights_sha256", None, "'weights_sha256' is None, and must be a text"),
    ],
)
def test_a_damaged_selection_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    root = create_store(str(tmp_path))
    write_selection(root, make_selection())
    path = "selections/no1.json"
    write_record(root, path, {**read_record(root, path), key: value})
    with pytest.raises(CorruptError, match=rf"^selections/no1\.json: {message}.* make it again with `vitrine prune`"):
        read_selection(root, "no1")


def test_a_selection_is_bound_to_its_layer_and_token_kind_unless_its_user_says_otherwise(store_url: str) -> None:
    root, made = create_store(store_url), make_selection()
    write_selection(root, made)
    for layer, kind in ((made.layer + 1, made.kind), (made.layer, "registers")):
        with pytest.raises(SelectionError, match=r"was made on .* --any-layer"):
            read_selection(root, made.name).check_fits(make_spec(), layer=layer, kind=kind)
        taken = read_selection(root, made.name, any_layer=True)
        taken.check_fits(make_spec(), layer=layer, kind=kind)
        assert made_elsewhere(taken, layer, kind) == {"selection_made_on": f"{made.kind} of layer {made.layer}"}
        assert taken.digest == made.digest
    assert made_elsewhere(made, made.layer, made.kind) == {}


def test_a_name_is_not_given_anew_to_a_selection_of_other_tokens(store_url: str) -> None:
    root, made = create_store(store_url), make_selection()
    write_selection(root, made)
    write_selection(root, replace(made, any_layer=True))
    with pytest.raises(SelectionError, match="made on other tokens"):
        write_selection(root, replace(made, layer=made.layer + 1))
