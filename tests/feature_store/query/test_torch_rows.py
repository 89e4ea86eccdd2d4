"""to_torch: every row once whatever the workers, orders that seed and epoch decide, and mixed as theory says."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from feature_store import FeatureSet, QueryError, create_feature_set, create_store, open_store
from tests.feature_store.samples import all_tokens, fill_store, make_spec, register, write_missing

_ROOT = Path(__file__).resolve().parents[3]
_N_ROWS = 90
_INVALID = (0, 8, 9, 89)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    store = tmp_path_factory.mktemp("torch") / "s"
    return fill_store(str(store), n_rows=_N_ROWS, rows_per_shard=16, invalid=_INVALID)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """6,400 rows in 100 shards, for statistics."""
    url = str(tmp_path_factory.mktemp("many") / "s")
    root = create_store(url)
    dataset = register(root, 6400)
    spec = make_spec(n_rows=6400, rows_per_shard=64, layers=(1,), kinds=("cls",), views=dataset.views_digest)
    write_missing(root, create_feature_set(root, "tiny", spec), spec)
    return open_store(url).features()


def _rows(samples: Any) -> list[int]:
    return [int(row) for sample in samples for row in np.atleast_1d(sample["row"])]


# Three workers on two cores is what is tried here, and torch would rather not.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("n_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [None, 7])
def test_each_row_comes_once_with_its_own_tokens(features: FeatureSet, n_workers: int, seed: int | None) -> None:
    rows = features.where("label != 1")
    stream = rows.to_torch(1, "patches", patches=[2], columns=["label", "uri"], seed=seed, buffer_bytes=60)
    expected = all_tokens(features.spec, 1, "patches")
    found = []
    for batch in DataLoader(stream, batch_size=8, num_workers=n_workers):
        assert batch["tokens"].dtype == torch.float16
        for row, tokens, label, uri in zip(batch["row"], batch["tokens"], batch["label"], batch["uri"], strict=True):
            np.testing.assert_array_equal(tokens.numpy(), expected[int(row)][[2]])
            assert int(label) == int(row) % 3
            assert uri == f"images/{int(row):03d}.png"
            found.append(int(row))
    assert sorted(found) == [row for row in range(_N_ROWS) if row % 3 != 1 and row not in _INVALID]
    assert stream.n_rows == len(found)
    if n_workers == 0 and seed is None:
        assert found == sorted(found)


_RANK_PROGRAM = """
import json, sys
import torch.distributed
from torch.utils.data import DataLoader
from feature_store import open_store

def main():
    url, rendezvous, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    early = open_store(url).features().to_torch(1, "cls", seed=0)  # made before the process group is
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for name, n_workers, method in (("none", 0, None), ("forked", 2, "fork"), ("spawned", 1, "spawn")):
        loader = DataLoader(early, batch_size=4, num_workers=n_workers, multiprocessing_context=method)
        found[name] = [int(row) for batch in loader for row in batch["row"]]
    alone = open_store(url).features().to_torch(1, "cls", seed=None, rank=(0, 1))
    found["alone"] = [sample["row"] for sample in alone]
    torch.distributed.destroy_process_group()
    print(json.dumps(found))

if __name__ == "__main__":
    main()
"""


def test_two_ranks_of_a_training_read_each_row_once_between_them(features: FeatureSet, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(_RANK_PROGRAM)
    command = [sys.executable, str(program), features.root.url, str(tmp_path / "rendezvous")]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT)
        for rank in (0, 1)
    ]
    ended = [rank.communicate(timeout=300) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], [errors for _, errors in ended]
    first, second = (json.loads(printed.splitlines()[-1]) for printed, _ in ended)
    every = [row for row in range(_N_ROWS) if row not in _INVALID]
    for workers in ("none", "forked", "spawned"):
        assert sorted(first[workers] + second[workers]) == every
        assert first[workers]
        assert second[workers]
    # Who asks for all rows in every process has them.
    assert first["alone"] == second["alone"] == every


def test_the_environment_of_torchrun_says_the_rank(features: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        found += _rows(features.to_torch(1, "cls", seed=5))
    assert sorted(found) == [row for row in range(_N_ROWS) if row not in _INVALID]


def test_a_rank_that_there_is_not_is_refused(features: FeatureSet) -> None:
    with pytest.raises(QueryError, match="rank 2 of 2: ranks count from 0"):
        features.to_torch(1, "cls", rank=(2, 2))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_seed_and_epoch_decide_the_order(features: FeatureSet, n_workers: int) -> None:
    def orders(seed: int) -> Iterator[list[int]]:
        stream = features.to_torch(1, "cls", seed=seed)
        loader = DataLoader(
            stream, batch_size=None, num_workers=n_workers, persistent_workers=n_workers > 0, prefetch_factor=None
        )
        for epoch in (0, 1, 0):
            stream.set_epoch(epoch)
            yield _rows(loader)

    first, second, again = orders(3)
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second)
    assert next(orders(3)) == first
    assert next(orders(4)) not in (first, second)


def test_a_buffer_for_all_rows_makes_a_uniform_permutation(many: FeatureSet) -> None:
    """Spearman's rank correlation of order and row has mean 0 and variance 1 / (n - 1) then; five deviations."""
    order = np.asarray(_rows(many.to_torch(1, "cls", columns=[])))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 5 / np.sqrt(len(order) - 1)
    # Of two rows that follow one another, 63 in 6,399 share a shard: binomial, five deviations.
    share, expected = np.mean(order[1:] // 64 == order[:-1] // 64), 63 / 6399
    assert abs(share - expected) < 5 * np.sqrt(expected / 6399)


def test_a_small_buffer_mixes_as_many_shards_as_it_holds(many: FeatureSet) -> None:
    """A buffer of b rows that gives one at random keeps each for b steps on average, geometrically distributed.

    So the ages of two rows drawn one after the other differ by a Laplace variable of scale b, and for shards of m < b
    rows they come from the same one with a chance of about m / (2 b); a reader of shards in order has 63 / 64. And of
    100 shuffled shards the rank correlation has variance 1 / 99.
    """
    buffer_rows, shard_rows, row_bytes = 640, 64, 6
    stream = many.to_torch(1, "cls", columns=[], buffer_bytes=buffer_rows * row_bytes)
    order = np.asarray(_rows(stream))
    assert sorted(order.tolist()) == list(range(6400))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 5 / np.sqrt(99)
    same = np.mean(order[1:] // shard_rows == order[:-1] // shard_rows)
    assert same < 2 * shard_rows / (2 * buffer_rows)
    unbuffered = np.asarray(_rows(many.to_torch(1, "cls", columns=[], buffer_bytes=1)))
    assert np.mean(unbuffered[1:] // shard_rows == unbuffered[:-1] // shard_rows) > 0.9


def test_samples_share_no_memory_with_the_buffer(features: FeatureSet) -> None:
    expected = all_tokens(features.spec, 1, "cls")
    kept = list(features.to_torch(1, "cls", buffer_bytes=30))
    for sample in kept:
        np.testing.assert_array_equal(sample["tokens"].numpy(), expected[sample["row"]])
        assert sample["tokens"].untyped_storage().nbytes() == 6


def test_a_map_style_dataset_takes_any_sampler(features: FeatureSet) -> None:
    found = features.to_torch_map(1, "patches", patches=[1], columns=["class_name"])
    expected = all_tokens(features.spec, 1, "patches")
    assert len(found) == _N_ROWS - len(_INVALID)
    assert found[0]["row"] == 1
    assert found[0]["class_name"] == "road"
    sampler = RandomSampler(found, generator=torch.Generator().manual_seed(0))
    rows = []
    for batch in DataLoader(found, batch_size=16, sampler=sampler, num_workers=2):
        rows += batch["row"].tolist()
        np.testing.assert_array_equal(batch["tokens"].numpy(), expected[batch["row"]][:, [1]])
    assert sorted(rows) == np.flatnonzero(features.valid).tolist()
    for position in (len(found), -1):
        with pytest.raises(IndexError, match=r"there are 0\.\.85"):
            found[position]


def test_missing_values_become_what_a_batch_can_hold(features: FeatureSet) -> None:
    (batch,) = DataLoader(features.to_torch(1, "cls", columns=["frame", "sequence"]), batch_size=200)
    assert batch["frame"].tolist() == [-1] * 86
    assert batch["sequence"] == [""] * 86
    with pytest.raises(QueryError, match="does not fit a flat array"):
        features.to_torch(1, "cls", columns=["objects"])


def test_no_rows_give_no_samples(features: FeatureSet, tmp_path: Path) -> None:
    none = features.where("false")
    assert list(none.to_torch(1, "cls")) == []
    assert list(none.to_torch(1, "cls", seed=None)) == []
    assert len(none.to_torch_map(1, "cls")) == 0
