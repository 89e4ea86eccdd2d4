from collections.abc import Callable

import numpy as np
import pytest

from evaluators.held_out import groups_of, hold_out_images
from evaluators.probe_input import ProbeInput
from evaluators.subject import On, Subject, resolve_subject
from feature_store import StoreError, UnknownNameError

from .conftest import Synthetic


def test_a_dataset_without_test_rows_is_refused(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=10, splits=["train"] * 10)
    with pytest.raises(StoreError, match="--hold-out"):
        ProbeInput(data.features, Subject())


def test_a_split_without_rows_is_refused_and_the_others_named(segmented: Synthetic) -> None:
    with pytest.raises(StoreError, match="splits there: test, train"):
        ProbeInput(segmented.features, Subject(train_split="trian"))


def test_held_out_rows_share_no_image_with_the_rest(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=12, splits=["train"] * 12)
    probe = ProbeInput(data.features, Subject(hold_out=0.25, seed=3))
    train, test = set(probe.images_of(probe.train_rows)), set(probe.images_of(probe.test_rows))
    assert len(test) == 3
    assert not train & test
    assert len(train | test) == 12


def test_hold_out_keeps_the_rows_of_an_image_together_and_repeats_by_seed() -> None:
    images = [f"image{row // 4}" for row in range(40)]
    kept, held = hold_out_images(images, share=0.3, seed=5)
    assert {images[row] for row in kept} & {images[row] for row in held} == set()
    assert len({images[row] for row in held}) == 3
    again = hold_out_images(images, share=0.3, seed=5)
    np.testing.assert_array_equal(held, again[1])
    assert any(set(held) != set(hold_out_images(images, share=0.3, seed=seed)[1]) for seed in range(6, 12))


@pytest.mark.parametrize(("images", "share"), [(["a"], 0.5), (["a", "b"], 0.0), (["a", "b"], 1.0)])
def test_hold_out_refuses_what_leaves_one_side_empty(images: list[str], share: float) -> None:
    with pytest.raises(StoreError, match="cannot hold out"):
        hold_out_images(images, share=share, seed=0)


def test_invalid_rows_are_in_neither_split(segmented: Synthetic) -> None:
    probe = ProbeInput(segmented.features, Subject())
    assert not {0, 7} & {*probe.train_rows.tolist(), *probe.test_rows.tolist()}


def test_resolve_subject_says_what_auto_and_last_mean(segmented: Synthetic) -> None:
    resolved = resolve_subject(segmented.features, Subject())
    assert (resolved.on, resolved.layer) == ("patches", 2)


def test_blocks_of_any_size_give_the_same_tokens_and_labels(segmented: Synthetic) -> None:
    probe = ProbeInput(segmented.features, Subject())
    whole = np.concatenate([tokens for _, tokens in probe.stored_blocks(probe.train_rows)])
    for block_bytes in (1, 300, 5000):
        parts = [tokens for _, tokens in probe.stored_blocks(probe.train_rows, block_bytes=block_bytes)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole, segmented.patches[probe.train_rows].reshape(-1, 6))
    assert len(probe.labels(probe.train_rows)) == len(whole)


def test_hold_out_needs_no_splits_and_the_refusal_proposes_it(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=12, splits=[None] * 12, with_masks=False, invalid=(3,))
    with pytest.raises(StoreError, match=r"has no splits.*--hold-out 0\.25"):
        ProbeInput(data.features, Subject())
    probe = ProbeInput(data.features, Subject(hold_out=0.25))
    assert sorted([*probe.train_rows, *probe.test_rows]) == [row for row in range(12) if row != 3]
    assert (len(probe.test_rows), probe.test_name) == (3, "held out of all rows: 3 of 11 images, 3 of 11 rows, seed 0")


def test_the_note_of_rows_held_out_says_how_many_they_are(synthetic: Callable[..., Synthetic]) -> None:
    # One image stands in 30 of 40 rows, so that a quarter of the images is far from a quarter of the rows.
    data = synthetic(n_rows=40, splits=[None] * 40, same_image=dict.fromkeys(range(1, 30), 0))
    probe = ProbeInput(data.features, Subject(on="patches", hold_out=0.25, seed=1))
    n_images = len(np.unique(probe.images_of(probe.test_rows)))
    said = f"held out of all rows: {n_images} of 11 images, {len(probe.test_rows)} of 40 rows, seed 1"
    assert (n_images, probe.test_name) == (3, said)


def test_a_split_that_is_named_is_not_taken_for_all_rows(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=12, splits=[None] * 12)
    with pytest.raises(UnknownNameError, match=r"split 'trian' .* has no splits; leave it out, and --hold-out draws"):
        ProbeInput(data.features, Subject(train_split="trian", hold_out=0.25))
    with pytest.raises(UnknownNameError, match=r"split 'tst' .* has no splits; leave it out, and test on images held"):
        ProbeInput(data.features, Subject(test_split="tst"))


def test_of_every_class_the_same_share_of_images_is_held_out(synthetic: Callable[..., Synthetic]) -> None:
    data = synthetic(n_rows=60, splits=[None] * 60, by_class=True)
    labels = np.asarray(data.labels)
    for seed in range(5):
        probe = ProbeInput(data.features, Subject(on="cls", hold_out=0.25, seed=seed))
        for number in range(3):
            wanted = 0.25 * (labels == number).sum()
            assert abs((labels[probe.test_rows] == number).sum() - wanted) <= 1
    assert len(probe.test_rows) == 15


def test_classes_of_one_image_or_two_keep_one_to_train() -> None:
    images, strata = [f"image{row}" for row in range(9)], [0, 1, 1, 2, 2, 2, 2, 2, 2]
    for seed in range(10):
        kept, held = hold_out_images(images, share=0.5, seed=seed, strata=strata)
        assert {strata[row] for row in kept} == {0, 1, 2}
        assert 3 <= len(held) <= 5


@pytest.mark.parametrize("on", ["cls", "patches"])
def test_copies_of_one_image_are_never_on_both_sides(synthetic: Callable[..., Synthetic], on: On) -> None:
    copies = {row: row - 1 for row in range(1, 20, 2)}
    data = synthetic(n_rows=20, splits=["train"] * 20, same_image=copies)
    for seed in range(5):
        probe = ProbeInput(data.features, Subject(on=on, hold_out=0.3, seed=seed))
        train, test = (set(probe.images_of(rows)) for rows in (probe.train_rows, probe.test_rows))
        assert (len(test), train & test) == (3, set())


def test_what_shares_a_name_or_an_image_is_one_group_by_any_way_round() -> None:
    names = np.array([3, 0, 2, 1, 1, 4])
    images = np.array([0, 1, 0, 1, 2, 3])
    assert groups_of(names, images).tolist() == [2, 0, 2, 0, 0, 4]
    # A chain, in which each name shares an image with the next one, in an order that hides it.
    order = np.random.default_rng(0).permutation(1000)
    chain = np.concatenate([np.arange(500), np.arange(1, 501)])
    assert (groups_of(chain[order], np.tile(np.arange(500), 2)[order]) == 0).all()


def test_a_share_to_hold_out_beside_a_test_split_is_refused() -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        Subject(hold_out=0.2, test_split="val")
