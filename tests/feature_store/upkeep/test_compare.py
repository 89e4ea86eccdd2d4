"""diff: every number against brute force over the whole arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store import FeatureSet, FeatureStore, InvalidRow, Shard, StoreError, create_feature_set, create_store
from feature_store.shards import shards_of
from feature_store.upkeep import compare_feature_sets, pair_names
from feature_store.writer import write_shard
from tests.feature_store.samples import all_tokens, fill_store, make_spec, register, shard_tokens


def changed_copy(
    url: str, changes: dict[tuple[int, str], np.ndarray[Any, Any]], invalid: tuple[int, ...] = ()
) -> FeatureSet:
    """The store of `fill_store(layers=(1, 2))`, some of whose arrays have other values."""
    root = create_store(url)
    spec = make_spec(views=register(root, 21).views_digest)
    folder = create_feature_set(root, "tiny", spec)
    for shard in shards_of(spec.n_rows, spec.rows_per_shard):
        tokens = dict(shard_tokens(spec, shard, invalid))
        for (layer, kind), values in changes.items():
            tokens[layer, kind] = values[shard.start : shard.stop]
        write_shard(root, folder, spec, shard, tokens, _reasons(shard, invalid))
    return FeatureStore(root).features()


def _reasons(shard: Shard, invalid: tuple[int, ...]) -> list[InvalidRow]:
    return [InvalidRow(row=row, reason="truncated") for row in invalid if shard.start <= row < shard.stop]


def test_the_same_run_twice_is_equal(tmp_path: Path) -> None:
    a, b = (fill_store(str(tmp_path / name), layers=(1, 2), invalid=[3]) for name in "ab")
    found = compare_feature_sets(a, b)
    assert found.equal
    assert found.identity == ()
    assert [(each.layer, each.kind) for each in found.arrays] == [
        (1, "patches"),
        (1, "cls"),
        (2, "patches"),
        (2, "cls"),
    ]
    assert {(each.rows, each.rows_differing, each.first_row) for each in found.arrays} == {(20, 0, None)}
    assert {(each.max_abs_difference, each.min_cosine) for each in found.arrays} == {(0.0, 1.0)}


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_numbers_are_those_of_brute_force_whatever_the_block(tmp_path: Path, block_bytes: int) -> None:
    a = fill_store(str(tmp_path / "a"), layers=(1, 2))
    before = all_tokens(a.spec, 2, "patches")
    after = before.copy()
    after[5, 1] *= -1
    after[17, 0] = 0
    after[20] += np.float16(0.5)
    b = changed_copy(str(tmp_path / "b"), {(2, "patches"): after})
    found = compare_feature_sets(a, b, block_bytes=block_bytes)
    assert not found.equal
    (array,) = (each for each in found.arrays if each.rows_differing)
    left, right = (each.reshape(-1, 3).astype(np.float64) for each in (before, after))
    norms = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    cosines = [float(x @ y / n) if n else 0.0 for x, y, n in zip(left, right, norms, strict=True)]
    assert (array.layer, array.kind, array.rows, array.rows_differing, array.first_row) == (2, "patches", 21, 3, 5)
    assert array.max_abs_difference == np.abs(left - right).max()
    assert array.min_cosine == pytest.approx(min(cosines), abs=1e-12)


def test_rows_that_are_valid_in_one_alone_are_named_and_not_compared(tmp_path: Path) -> None:
    a, b = fill_store(str(tmp_path / "a"), layers=(1, 2)), changed_copy(str(tmp_path / "b"), {}, invalid=(4, 9))
    found = compare_feature_sets(a, b)
    assert not found.equal
    assert (found.invalid_differing, found.n_invalid_differing) == ((4, 9), 2)
    assert {(each.rows, each.rows_differing) for each in found.arrays} == {(19, 0)}


def test_a_missing_shard_and_a_missing_layer_are_not_equal(tmp_path: Path) -> None:
    a, b, one_layer = (
        fill_store(str(tmp_path / name), layers=layers) for name, layers in (("a", (1, 2)), ("b", (1, 2)), ("c", (1,)))
    )
    b.root.remove(f"{b.folder}/receipts/000002.json")
    found = compare_feature_sets(a, FeatureStore(b.root).features(partial=True))
    assert (found.equal, found.rows_only_in_a, found.rows_only_in_b) == (False, 5, 0)
    assert {each.rows for each in found.arrays} == {16}
    found = compare_feature_sets(one_layer, a)
    assert (found.equal, found.arrays_only_in_a, found.arrays_only_in_b) == (
        False,
        (),
        ("layer 2 patches", "layer 2 cls"),
    )
    assert [name for name, _, _ in found.identity] == ["digest", "identity.layers"]


def test_datasets_of_other_views_are_aligned_by_view(tmp_path: Path) -> None:
    a, b = fill_store(str(tmp_path / "a"), layers=(1, 2)), fill_store(str(tmp_path / "b"), n_rows=24, layers=(1, 2))
    found = compare_feature_sets(b, a)
    assert (found.aligned_by, found.equal, found.rows_only_in_a, found.rows_only_in_b) == ("view_id", False, 3, 0)
    assert {each.rows for each in found.arrays} == {21}


def test_values_that_are_no_numbers_are_far_from_any(tmp_path: Path) -> None:
    a = fill_store(str(tmp_path / "a"), layers=(1, 2))
    wrong = all_tokens(a.spec, 1, "cls")
    wrong[7, 1] = np.nan
    found = compare_feature_sets(a, changed_copy(str(tmp_path / "b"), {(1, "cls"): wrong}))
    (array,) = (each for each in found.arrays if each.rows_differing)
    assert (array.first_row, array.max_abs_difference, array.min_cosine) == (7, np.inf, 0.0)


def test_stores_are_compared_by_name_or_where_each_has_one_alone() -> None:
    assert pair_names(["a/x", "b/y"], ["b/y", "c/z"]) == [("b/y", "b/y")]
    assert pair_names(["a/x"], ["a/y"]) == [("a/x", "a/y")]
    with pytest.raises(StoreError, match=r"no feature set of one name .*STORE#NAME"):
        pair_names(["a/x", "b/y"], ["c/z"])
