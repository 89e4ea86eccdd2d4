"""What commands ask of a large store: requests by kind, and bytes, as an object store would count them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.ratio import sized
from feature_store import open_store
from tests.counted_filesystem import CountedFileSystem
from tests.large_store import LargeStore, make_large_store
from tests.vitrine.conftest import run_vitrine


def _count(what: str, act: Callable[[], object]) -> None:
    CountedFileSystem.forget()
    act()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(CountedFileSystem.requests.items()))
    print(f"  {what}: {CountedFileSystem.requests.total()} requests ({kinds}), {CountedFileSystem.octets / 1e6:.2f} MB")


def _open(store: LargeStore) -> None:
    features = open_store(store.url).features("largest")
    assert features.complete
    assert features.dataset.n_rows == len(features)


def _command(*words: str) -> Callable[[], object]:
    def run() -> None:
        done = run_vitrine(*words)
        assert done.code == 0, done.err

    return run


def test_requests(tmp_path: Path) -> None:
    CountedFileSystem.register()
    sizes = sized(
        tiny={"n_runs": 20, "n_sets": 5, "n_shards": 20}, full={"n_runs": 1000, "n_sets": 50, "n_shards": 10_000}
    )
    store = make_large_store("counted://bucket/store", tmp_path, **sizes)
    print(f"\n{sizes}")
    name = store.folders[0].removeprefix("features/")
    _count("ls", _command("ls", store.url))
    _count("show", _command("show", store.url, "--features", name))
    _count("results", _command("results", store.url))
    _count("opened by a name", lambda: _open(store))
    _count("extract, done already", _command(*store.extract))
    _count("extract --dry-run of a new dataset", _command(*store.extract_new, "--dry-run"))
    for path in ("receipts/000001.json", "receipts.json"):
        CountedFileSystem.delete(f"{store.url}/{store.folders[0]}/{path}")
    _count("extract --dry-run where one shard is missing", _command(*store.extract, "--dry-run"))
    _count("ls where one shard is missing", _command("ls", store.url))
    CountedFileSystem.objects.clear()
