from collections.abc import Callable

import numpy as np
import pytest

from evaluators.probe_input import ProbeInput, hold_out_images
from evaluators.subject import Subject, resolve_subject
from feature_store import StoreError

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
