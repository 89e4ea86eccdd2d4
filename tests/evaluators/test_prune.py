import numpy as np
import pytest

from evaluators import VarianceParameters, drop_listed, drop_random, drop_top_variance, evaluate_variance
from feature_store import SelectionError

from .conftest import Synthetic


def test_top_variance_drops_what_numpy_ranks_highest(segmented: Synthetic) -> None:
    rows = [r for r in range(14) if segmented.valid[r] and segmented.splits[r] == "train"]
    ranked = np.argsort(-segmented.patches[rows].reshape(-1, 6).astype(np.float64).var(axis=0))
    variance = evaluate_variance(segmented.features, VarianceParameters())
    selection = drop_top_variance(segmented.features, variance, name="no2", n_dropped=2, layer=2, kind="patches")
    assert set(range(6)) - set(selection.features) == set(ranked[:2].tolist())
    assert selection.weights_sha256 == "ab" * 32


def test_random_drops_repeat_by_seed_and_nest_in_their_number(segmented: Synthetic) -> None:
    def dropped(n: int, seed: int) -> set[int]:
        chosen = drop_random(segmented.features, name="r", n_dropped=n, seed=seed, layer=2, kind="patches")
        return set(range(6)) - set(chosen.features)

    assert dropped(3, 1) == dropped(3, 1)
    assert dropped(2, 1) < dropped(4, 1)
    assert len({frozenset(dropped(3, seed)) for seed in range(20)}) > 5


def test_listed_features_go_and_the_others_stay(segmented: Synthetic) -> None:
    assert drop_listed(segmented.features, [5, 0], name="l", layer=2, kind="patches").features == (1, 2, 3, 4)


@pytest.mark.parametrize(("dropped", "message"), [([6], "do not exist"), ([1, 1], "twice"), (range(6), "keeps none")])
def test_what_cannot_be_dropped_is_refused(segmented: Synthetic, dropped: list[int], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        drop_listed(segmented.features, list(dropped), name="l", layer=2, kind="patches")


@pytest.mark.parametrize("n_dropped", [-1, 6, 7])
def test_a_number_that_leaves_nothing_is_refused(segmented: Synthetic, n_dropped: int) -> None:
    with pytest.raises(SelectionError, match="cannot drop"):
        drop_random(segmented.features, name="r", n_dropped=n_dropped, seed=0, layer=2, kind="patches")
