"""What commands ask of a large store: requests grow with one size at a time, never with the product of two."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from feature_store import open_store
from tests.counted_filesystem import CountedFileSystem
from tests.large_store import LargeStore, make_large_store
from tests.vitrine.conftest import Run

_SIZES = ("n_runs", "n_sets", "n_shards")
_SMALL = {"n_runs": 12, "n_sets": 4, "n_shards": 8}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., LargeStore]]:
    """Makes a store of given sizes behind a URL that counts its requests, instead of the one before."""
    CountedFileSystem.register()

    def made(**sizes: int) -> LargeStore:
        CountedFileSystem.objects.clear()
        CountedFileSystem.register()
        return make_large_store("counted://bucket/store", tmp_path, **sizes)

    yield made
    CountedFileSystem.objects.clear()


def _requests(act: Callable[[], object]) -> int:
    CountedFileSystem.forget()
    act()
    return CountedFileSystem.requests.total()


def _open(store: LargeStore) -> None:
    features = open_store(store.url).features("largest")
    assert features.complete
    assert features.dataset.n_rows == len(features)


def _lose_one_shard(store: LargeStore) -> None:
    """As a killed run leaves it: one receipt is missing, and so is the index."""
    for path in ("receipts/000001.json", "receipts.json"):
        CountedFileSystem.delete(f"{store.url}/{store.folders[0]}/{path}")


def _counts(run: Run, store: LargeStore) -> dict[str, int]:
    """How many requests each question takes."""

    def asks(*words: str) -> Callable[[], object]:
        def ask() -> None:
            done = run(*words)
            assert done.code == 0, done.err

        return ask

    name = store.folders[0].removeprefix("features/")
    questions = {
        "ls": asks("ls", store.url),
        "show": asks("show", store.url, "--features", name),
        "open": lambda: _open(store),
        "done already": asks(*store.extract),
        "plan": asks(*store.extract_new, "--dry-run"),
    }
    found = {what: _requests(ask) for what, ask in questions.items()}
    _lose_one_shard(store)
    found["resume"] = _requests(asks(*store.extract, "--dry-run"))
    found["ls of an unfinished set"] = _requests(asks("ls", store.url))
    return found


def test_requests_never_grow_with_the_product_of_two_sizes(vitrine: Run, make: Callable[..., LargeStore]) -> None:
    """For every two sizes: doubling both costs no more than doubling the one and doubling the other."""
    counts = {}
    for factors in product((1, 2), repeat=len(_SIZES)):
        sizes = {name: _SMALL[name] * factor for name, factor in zip(_SIZES, factors, strict=True)}
        counts[factors] = _counts(vitrine, make(**sizes))
    smallest = counts[1, 1, 1]
    for what, least in smallest.items():
        grown = [counts[factors][what] - least for factors in ((2, 1, 1), (1, 2, 1), (1, 1, 2))]
        for factors, found in counts.items():
            linear = least + sum(more for more, factor in zip(grown, factors, strict=True) if factor == 2)
            assert found[what] <= linear, (what, dict(zip(_SIZES, factors, strict=True)), found[what], linear)


def test_requests_do_not_grow_with_runs_and_only_a_resumed_run_reads_receipts(
    vitrine: Run, make: Callable[..., LargeStore]
) -> None:
    small = _counts(vitrine, make(n_runs=8, n_sets=4, n_shards=10))
    large = _counts(vitrine, make(n_runs=240, n_sets=4, n_shards=200))
    reading = large.pop("resume") - small.pop("resume")
    assert large == small
    assert reading == 200 - 10  # one GET a receipt


def test_independent_requests_go_side_by_side(
    make: Callable[..., LargeStore], vitrine: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(n_runs=30, n_sets=15, n_shards=30)
    monkeypatch.setattr(CountedFileSystem, "latency_s", 0.005)
    _lose_one_shard(store)
    for words in (["ls", store.url], [*store.extract_new, "--dry-run"], [*store.extract, "--dry-run"]):
        CountedFileSystem.forget()
        assert vitrine(*words).code == 0
        assert CountedFileSystem.side_by_side > 10, words
