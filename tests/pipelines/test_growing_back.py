"""A view that goes and comes back: the chain goes on, names stay clear, and a repeated run gives the same."""

from pathlib import Path

import pytest

from feature_store import open_store
from feature_store.roots import open_root
from feature_store.upkeep import collect_garbage
from pipelines.run import run_extraction
from tests.pipelines.nights import Nights, here


@pytest.fixture
def nights(tmp_path: Path, pictures: Path) -> Nights:
    return Nights(tmp_path, pictures)


def take_away(nights: Nights) -> None:
    (nights.images / "odd" / "001.png").unlink()


def put_back(nights: Nights) -> None:
    nights.add(1, "odd/001.png")


def two_nights(nights: Nights) -> list[str]:
    """The whole folder, and then without a picture, which is there again afterwards."""
    names = [nights.extract().feature_set]
    take_away(nights)
    names.append(nights.extract().feature_set)
    put_back(nights)
    return names


def test_a_view_that_comes_back_makes_a_state_of_its_own_and_the_name_means_it(nights: Nights) -> None:
    first, second = two_nights(nights)
    third = nights.extract().feature_set
    store = open_store(nights.store)
    assert len({first, second, third}) == 3
    for name in ("images", "images@latest", None, "images/null"):
        assert store.choose(name) == (third, (second, first)), name
    one, three = store.features(first).spec.identity, store.features(third).spec.identity
    assert one.views_digest == three.views_digest
    assert three.grown_from is not None
    assert (three.grown_from.origin, three.grown_from.generation) == (one.views_digest, 2)


def test_a_view_that_comes_back_and_goes_again_lets_every_repeated_run_be_the_same(nights: Nights) -> None:
    two_nights(nights)
    states = []
    for change in (None, take_away, put_back):
        if change is not None:
            change(nights)
        states.append(nights.extract().feature_set)
        assert nights.prepare().missing == ()
        assert nights.extract().feature_set == states[-1]
        assert open_store(nights.store).resolve("images") == states[-1]
    assert len(set(states)) == 3


def test_a_night_in_which_a_view_comes_back_goes_on_after_it_was_cut_off(nights: Nights, tmp_path: Path) -> None:
    two_nights(nights)
    cut_off = nights.prepare()
    run_extraction(cut_off, lambda plan, shards, folder, workers: here(plan, shards[:1], folder, workers))
    again = nights.prepare()
    assert (again.name, len(again.missing)) == (cut_off.name, 2)
    assert nights.extract().feature_set == cut_off.name
    assert open_store(nights.store).features().name == cut_off.name


def test_after_the_older_states_were_collected_the_same_command_finds_the_same_state(nights: Nights) -> None:
    two_nights(nights)
    third = nights.extract().feature_set
    collect_garbage(open_root(nights.store), superseded=True, remove=True)
    for _ in range(2):
        assert open_store(nights.store).names() == [third]
        assert nights.extract().feature_set == third
