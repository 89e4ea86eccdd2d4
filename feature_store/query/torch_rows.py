"""Tokens for torch's DataLoader; the only module of the store that imports torch."""

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from feature_store.errors import QueryError
from feature_store.identity import TokenKind
from feature_store.query.columns import dense_column
from feature_store.query.patches import PatchChoice
from feature_store.query.rows import RowQueries
from feature_store.reader import FeatureSet
from feature_store.shards import ROWS_PER_CHUNK
from feature_store.token_reader import RowNumbers, Rows

Sample = dict[str, Any]
# Among the rows with tokens of a query; each shard has its own number of them.
Positions = Int64[np.ndarray, "_"]

# Chunks read at a time: enough to be worth a request, few enough to mix.
_CHUNKS_PER_READ = 16


class QueriedTokens:
    """The rows with tokens of a query, and their samples; the arguments are those of `RowQueries.to_torch`."""

    def __init__(
        self,
        query: RowQueries,
        *,
        layer: int | str,
        kind: TokenKind,
        patches: PatchChoice | None,
        columns: Sequence[str],
    ) -> None:
        self.features: FeatureSet = query.features
        self._layer, self._kind, self._patches = layer, kind, patches
        self.features.require_readable(layer, kind, query.rows)
        has_tokens = self.features.valid[query.rows]
        self.rows: RowNumbers = query.rows[has_tokens]
        table = query.columns([name for name in columns if name != "row"])
        self._columns = {name: dense_column(table[name])[has_tokens] for name in table.column_names}

    def read(self, positions: Positions) -> Rows:
        """The tokens of the rows at these positions, a new array."""
        return self.features.read(self._layer, self._kind, self.rows[positions], self._patches)

    def sample(self, position: int, tokens: np.ndarray[Any, Any]) -> Sample:
        """One item: `tokens` (a tensor of the stored dtype), `row`, and the columns."""
        beside = {name: _plain(values[position]) for name, values in self._columns.items()}
        return {"tokens": torch.from_numpy(tokens), "row": int(self.rows[position]), **beside}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of several equal readers one is.

    Attributes:
        number: counted from 0.
        count: how many readers there are.

    Raises:
        QueryError: a number that is not one of the readers.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise QueryError(f"rank {self.number} of {self.count}: ranks count from 0 to the number of ranks less one.")

    def worker(self, number: int, count: int) -> "Share":
        """The share of one worker among the workers of this rank, every rank having as many."""
        return Share(number=self.number * count + number, count=self.count * count)


def share_of_rank() -> Share:
    """The rank of this process in a distributed training: from its process group, or else from torchrun's variables."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Share(number=torch.distributed.get_rank(), count=torch.distributed.get_world_size())
    return Share(number=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1")))


class TokenStream(IterableDataset[Sample]):
    """Samples in an order that seed, epoch and number of readers decide; each row once an epoch, whoever reads it.

    A reader is one worker of a DataLoader on one rank of a distributed training. Shards are shuffled and dealt out to
    the readers, so two ranks may have different numbers of rows. Each worker shuffles the chunks of its shards, and
    draws at random from a buffer of waiting rows. A buffer that holds all rows makes every order equally likely.
    Readers share nothing but the number of the epoch. There is no `len()`: each worker's last batch may be short, so
    the number of batches is not the one that a DataLoader would work out; `n_rows` counts the samples over all readers.
    """

    def __init__(
        self, tokens: QueriedTokens, *, seed: int | None, buffer_bytes: int, rank: Share | None = None
    ) -> None:
        self._tokens = tokens
        self._rank = rank
        self._seed = seed
        self._buffer_bytes = buffer_bytes
        # Shared memory, because persistent workers hold copies of the dataset that no later call would reach.
        epoch: Any = torch.zeros(1, dtype=torch.int64)
        self._epoch = epoch.share_memory_()

    @property
    def n_rows(self) -> int:
        """Samples of one epoch."""
        return len(self._tokens.rows)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch that begins next; the same number gives the same order."""
        self._epoch[0] = epoch

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of its rank's process group, so the rank travels with the dataset.
        return {**self.__dict__, "_rank": self._rank or share_of_rank()}

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        rank = self._rank or share_of_rank()
        share = rank if info is None else rank.worker(info.id, info.num_workers)
        # A copy, so that a forked worker opens connections of its own.
        tokens = self._tokens if info is None else pickle.loads(pickle.dumps(self._tokens))
        if self._seed is None:
            yield from self._in_order(tokens, share)
        else:
            yield from self._shuffled(tokens, share, [self._seed, int(self._epoch[0])])

    def _in_order(self, tokens: QueriedTokens, share: Share) -> Iterator[Sample]:
        for shard in _shards(tokens)[share.number :: share.count]:
            for positions in np.array_split(shard, -(-len(shard) // (_CHUNKS_PER_READ * ROWS_PER_CHUNK))):
                for position, row in zip(positions.tolist(), tokens.read(positions), strict=True):
                    yield tokens.sample(position, row.copy())

    def _shuffled(self, tokens: QueriedTokens, share: Share, seed: list[int]) -> Iterator[Sample]:
        shards = _shards(tokens)
        order = np.random.default_rng(seed).permutation(len(shards))[share.number :: share.count]
        generator = np.random.default_rng([*seed, 1 + share.number])
        mine = [shards[index] for index in order]
        waiting_rows: np.ndarray[Any, Any] | None = None
        waiting: list[int] = []
        for position, row in _arriving(tokens, mine, generator):
            if waiting_rows is None:
                n_waiting = min(sum(map(len, mine)), max(1, self._buffer_bytes // max(1, row.nbytes)))
                waiting_rows = np.empty((n_waiting, *row.shape), dtype=row.dtype)
            if len(waiting) < len(waiting_rows):
                waiting_rows[len(waiting)] = row
                waiting.append(position)
                continue
            place = int(generator.integers(len(waiting)))
            yield tokens.sample(waiting[place], waiting_rows[place].copy())
            waiting_rows[place], waiting[place] = row, position
        for place in generator.permutation(len(waiting)).tolist():
            assert waiting_rows is not None
            yield tokens.sample(waiting[place], waiting_rows[place].copy())


def _shards(tokens: QueriedTokens) -> list[Positions]:
    """The positions of the rows of each shard that has any."""
    if not len(tokens.rows):
        return []
    shard_of_row = tokens.rows // tokens.features.spec.rows_per_shard
    return np.split(np.arange(len(tokens.rows)), np.flatnonzero(np.diff(shard_of_row)) + 1)


def _arriving(
    tokens: QueriedTokens, shards: Sequence[Positions], generator: np.random.Generator
) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Positions with their tokens, chunks in random order within each shard; a chunk is the least that a read costs."""
    for shard in shards:
        chunk_of_row = tokens.rows[shard] // ROWS_PER_CHUNK
        chunks = np.split(shard, np.flatnonzero(np.diff(chunk_of_row)) + 1)
        order = generator.permutation(len(chunks))
        for first in range(0, len(order), _CHUNKS_PER_READ):
            positions = np.concatenate([chunks[index] for index in order[first : first + _CHUNKS_PER_READ]])
            yield from zip(positions.tolist(), tokens.read(positions), strict=True)


class TokenMap(Dataset[Sample]):
    """Samples by position: for a sampler of one's own, e.g. one that balances classes."""

    def __init__(self, tokens: QueriedTokens) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens.rows)

    def __getitem__(self, position: int) -> Sample:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Sample]:
        """A batch in one read; torch's fetcher asks for whole batches where a dataset offers this."""
        numbers = np.asarray(positions, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(
                f"positions {numbers.min()}..{numbers.max()} were asked for; there are 0..{len(self) - 1}."
            )
        rows = self._tokens.read(numbers)
        # A copy each: a sample that is kept must not keep its whole batch.
        return [self._tokens.sample(position, row.copy()) for position, row in zip(numbers.tolist(), rows, strict=True)]
