"""The store against NumPy on the same bytes: np.save, np.memmap and its fancy indexing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ratio import Comparison, compare, sized
from benchmarks.stores import some_tokens, spec_of, write_store
from feature_store import FeatureSet, FeatureSetSpec, create_feature_set, create_store, intact, shards_of, write_shard

BLOCK_BYTES = 32 << 20
N_RANDOM = 64
# ViT-S/14 at 224 pixels: a row has 196,608 bytes, and a shard of 64 MB 336 rows.
ROWS_PER_SHARD = sized(tiny=16, full=336)
N_SHARDS = sized(tiny=3, full=8)


@pytest.fixture(scope="module")
def spec() -> FeatureSetSpec:
    return spec_of(n_rows=ROWS_PER_SHARD * N_SHARDS, rows_per_shard=ROWS_PER_SHARD, n_features=384)


@pytest.fixture(scope="module")
def written(spec: FeatureSetSpec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FeatureSet, Path]]:
    """One layer as a feature set, and the same rows in one flat file; both in the page cache."""
    folder = tmp_path_factory.mktemp("bench")
    features = write_store(folder / "store", spec)
    flat = folder / "flat"
    with flat.open("wb") as file:
        for _, block in features.iter_blocks():
            file.write(block.tobytes())
    yield features, flat
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_sequential_write(spec: FeatureSetSpec, tmp_path: Path) -> None:
    shards = shards_of(spec.n_rows, spec.rows_per_shard)
    one = some_tokens(spec, shards[0])
    everything = np.concatenate([one[12, "patches"]] * len(shards))
    # Each round writes to a place of its own: to remove what stood there is no part of writing.
    places = (tmp_path / str(number) for number in itertools.count())

    def saved() -> int:
        path = next(places)
        with path.open("wb") as file:
            np.save(file, everything)
            file.flush()
            os.fsync(file.fileno())
        return path.stat().st_size

    def stored() -> int:
        root = create_store(str(next(places)))
        folder = create_feature_set(root, "synthetic", spec)
        for shard in shards:
            write_shard(root, folder, spec, shard, one)
        return spec.n_rows

    compare("sequential write, np.save and fsync", peer=saved, ours=stored)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _copied(buffer: np.ndarray, block: np.ndarray) -> float:
    np.copyto(buffer[: len(block)], block)
    return float(buffer[0, 0, 0])


def _summed(buffer: np.ndarray, block: np.ndarray) -> float:
    return float(block.sum(dtype=np.float32))


@pytest.mark.parametrize("first_touch", [True, False], ids=["first touch", "later"])
@pytest.mark.parametrize("use", [_copied, _summed])
def test_sequential_read(
    spec: FeatureSetSpec,
    written: tuple[FeatureSet, Path],
    use: Callable[[np.ndarray, np.ndarray], float],
    first_touch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On first touch every shard is also held to its checksum; later in the life of a process it is not."""
    features, flat = written
    shape = (spec.n_rows, *spec.row_shape("patches"))
    block_rows = BLOCK_BYTES // (spec.n_patches * spec.n_features * 2)
    buffer = np.empty((block_rows, *shape[1:]), np.float16)
    if not first_touch:
        monkeypatch.setattr(intact, "_SETTLED_S", -1)

    def mapped() -> float:
        rows = np.memmap(flat, np.float16, mode="r", shape=shape)
        return sum(use(buffer, rows[start : start + block_rows]) for start in range(0, spec.n_rows, block_rows))

    def streamed() -> float:
        if first_touch:
            intact._found.clear()
        opened = FeatureSet(features.root, features.name)
        return sum(use(buffer, block) for _, block in opened.iter_blocks(block_bytes=BLOCK_BYTES))

    name = f"sequential read, {use.__name__[1:]}, {'first touch' if first_touch else 'later'}, np.memmap"
    _same_bytes(compare(name, peer=mapped, ours=streamed), use)


def _same_bytes(found: Comparison[float, float], use: Callable[[np.ndarray, np.ndarray], float]) -> None:
    if use is _summed:
        np.testing.assert_allclose(found.ours, found.peer, rtol=1e-3, atol=10)


def test_random_rows(spec: FeatureSetSpec, written: tuple[FeatureSet, Path]) -> None:
    """Each call reads other rows; the feature set is opened once, as whoever draws rows does."""
    features, flat = written
    peer_random, our_random = np.random.default_rng(1), np.random.default_rng(1)
    rows_of_flat = np.memmap(flat, np.float16, mode="r", shape=(spec.n_rows, *spec.row_shape("patches")))
    opened = FeatureSet(features.root, features.name)
    repeats = sized(tiny=1, full=20)

    def fancy() -> np.ndarray:
        for _ in range(repeats):
            found = rows_of_flat[peer_random.integers(0, spec.n_rows, N_RANDOM)]
        return np.asarray(found)

    def read() -> np.ndarray:
        for _ in range(repeats):
            found = opened.read("last", "patches", our_random.integers(0, spec.n_rows, N_RANDOM))
        return found

    found = compare(f"{N_RANDOM} random rows, np.memmap fancy indexing", peer=fancy, ours=read)
    np.testing.assert_array_equal(found.ours, found.peer)
