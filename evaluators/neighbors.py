"""Exact nearest neighbours, streamed over a bank of any size, with one rule for ties."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float32, Int64

from evaluators.parameters import Backend, Metric
from evaluators.tensors import as_tensor

# Block sizes at which the matrix product, not the bookkeeping, takes the time. Callers choose their own blocks.
QUERY_ROWS = 16_384
BANK_ROWS = 65_536

# A key holds the bank row in 32 bits.
MAX_BANK_ROWS = 2**32

# Candidates taken beyond k. A list that still ends within rounding of its k-th score is searched row by row.
_MARGIN = 8
_TILE_ROWS = 8_192
_EXACT_TILE_QUERIES = 512
# Pairs are gathered in pieces that stay in a core's cache: 4 times as fast as all at once.
_PIECE_BYTES = 3 * 2**20
_VOTES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The k nearest bank rows of each query of a block, best first.

    Attributes:
        scores: similarity (dot, cosine), or squared distance in squared feature units (l2).
        rows: positions in the bank, counted from 0 over all of its blocks.
    """

    scores: Float32[np.ndarray, "queries k"]
    rows: Int64[np.ndarray, "queries k"]


def search(
    bank: Callable[[], Iterable[Float32[np.ndarray, "_ features"]]],
    queries: Iterable[Float32[np.ndarray, "_ features"]],
    *,
    k: int,
    metric: Metric,
    backend: Backend = "auto",
    device: str = "cpu",
) -> Iterator[Neighbors]:
    """Find the k nearest bank rows of every query, exactly.

    The bank is streamed once for every block of queries, against a running list of the best k; memory holds one
    block of each, whatever the size of the bank. Blocks of `QUERY_ROWS` and `BANK_ROWS` rows suit most machines.

    A fast matrix product in float32 proposes candidates; whatever lies within its rounding error of the k-th score is
    scored again in double precision, rounded to float32 and ranked. Equal scores go to the lower bank row. So identical
    bank rows tie wherever they stand, and neither block sizes nor the backend change the result.

    Args:
        bank: gives the bank's blocks in row order, anew at every call.
        queries: blocks of queries; each gives one `Neighbors`.
        k: how many neighbours, at most the rows of the bank.
        metric: "dot" and "cosine" rank by similarity, "l2" by squared distance. For "cosine" rows are normalised in
            float32; a zero vector stays zero.
        backend: what proposes candidates: "faiss" (on the CPU), "torch", or "auto", faiss where it is installed and
            the device is the CPU.
        device: torch device on which blocks are compared. On CUDA leave float32 matrix products at full precision.

    Yields:
        The neighbours of each block of queries, in order.

    Raises:
        ValueError: k is below 1 or above the bank's rows, the bank has more than `MAX_BANK_ROWS`, blocks differ in
            their number of features, the metric or backend is unknown, or a score is not finite.
        ModuleNotFoundError: faiss was asked for and is not installed.
    """
    _check_choices(k, metric, backend, device)
    propose = _proposer(metric, backend, device)
    for block in queries:
        query = _Queries(block, metric=metric, device=device)
        best = torch.empty((len(block), 0), dtype=torch.int64, device=device)
        bank_rows = 0
        for bank_block in bank():
            _check_features(block, bank_block)
            check_bank_rows(bank_rows + len(bank_block))
            if len(bank_block):
                rows = query.prepared(bank_block)
                found = _nearest_in_block(query, rows, best, k=k, first_row=bank_rows, propose=propose)
                best = _merged(best, found, k)
                bank_rows += len(bank_block)
        if bank_rows < k:
            raise ValueError(
                f"k is {k} and the bank has {bank_rows} rows; there are not as many neighbours. "
                f"Ask for at most {bank_rows}, or give a larger bank."
            )
        yield _neighbors(best, metric)


def majority_vote(labels: Int64[np.ndarray, "queries k"], n_classes: int) -> Int64[np.ndarray, " queries"]:
    """The most frequent class among each query's neighbours.

    Args:
        labels: class of each neighbour, best neighbour first, in 0..n_classes-1.
        n_classes: number of classes.

    Returns:
        One class for each query. Of classes with equally many votes, the one whose nearest member ranks first.

    Raises:
        ValueError: there is no neighbour to vote, or a label lies outside the classes.
    """
    if labels.shape[1] == 0:
        raise ValueError("k is 0; a vote needs at least one neighbour. Search with k >= 1.")
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"labels span {labels.min()}..{labels.max()}; with {n_classes} classes they must lie in "
            f"0..{n_classes - 1}. Count void as a class of its own, or leave void rows out of the bank."
        )
    winners = np.empty(len(labels), dtype=np.int64)
    rows_at_once = max(1, _VOTES_AT_ONCE // n_classes)
    for start in range(0, len(labels), rows_at_once):
        part = labels[start : start + rows_at_once]
        row = np.arange(len(part))[:, None]
        counts = np.bincount((row * n_classes + part).ravel(), minlength=len(part) * n_classes)
        votes = counts.reshape(len(part), n_classes)[row, part]
        # argmax takes the first maximum, and neighbours stand best first: that is the rule for tied votes.
        winners[start : start + rows_at_once] = part[row[:, 0], votes.argmax(axis=1)]
    return winners


# Takes queries, a bank block and a count; gives approximate scores (greater is better) and positions in the block,
# best first.
_Propose = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


class _Queries:
    """One block of queries, prepared for the metric, and the arithmetic that scores bank rows for it.

    Scores grow towards the better for every metric: squared distances are negated.
    """

    def __init__(self, block: np.ndarray, *, metric: Metric, device: str) -> None:
        self.metric = metric
        self.device = device
        self.rows = self.prepared(block)

    def prepared(self, block: np.ndarray) -> torch.Tensor:
        """The block on the device, normalised where the metric asks for it."""
        rows = as_tensor(block).to(self.device)
        if self.metric != "cosine":
            return rows.contiguous()
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows / torch.where(norms > 0, norms, torch.ones_like(norms))

    def rounding_error(self, bank: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """How far a score of each query that a matrix product of `dtype` gives may lie from the true one.

        With u = eps / 2, a sum of n products in any order errs by at most n u |q| |b| to first order (Higham, Accuracy
        and Stability of Numerical Algorithms, 2002, section 3.1). For l2 the three sums of |q|^2 - 2 q b + |b|^2 err by
        n u (|q| + |b|)^2 together, and adding them up by a few u more. The 8 covers these, and the rounding of the
        score that is ranked.
        """
        norms, longest = torch.linalg.vector_norm(self.rows, dim=1), torch.linalg.vector_norm(bank, dim=1).max()
        largest = (norms + longest).square() if self.metric == "l2" else norms * longest
        # In double precision: the bound itself must not be rounded to something smaller.
        error: torch.Tensor = largest.double() * ((bank.shape[1] + 8) * torch.finfo(dtype).eps / 2)
        return error

    def score_pairs(self, queries: torch.Tensor, bank_rows: torch.Tensor) -> torch.Tensor:
        """Scores of pairs in double precision, rounded: `queries` are positions, `bank_rows` vectors.

        This is the one arithmetic that decides a score. A pair has the same bits whatever stands beside it.
        """
        chosen, rows = self.rows[queries].double(), bank_rows.double()
        terms = chosen.sub_(rows).square_().neg_() if self.metric == "l2" else chosen.mul_(rows)
        return terms.sum(dim=1).float()

    def products(self, queries: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
        """Scores of some queries with every row of a tile by matrix products in double precision.

        They lie within `rounding_error(bank, torch.float64)` of the true ones. That is not enough to rank by: two
        nearly equal vectors far from the origin lose their small distance in the difference of their lengths.
        """
        chosen, rows = self.rows[queries].double(), bank.double()
        products = chosen @ rows.T
        if self.metric != "l2":
            return products
        return 2 * products - chosen.square().sum(dim=1, keepdim=True) - rows.square().sum(dim=1)


def _nearest_in_block(
    query: _Queries, bank: torch.Tensor, best: torch.Tensor, *, k: int, first_row: int, propose: _Propose
) -> torch.Tensor:
    """Keys of the rows of one bank block that may belong to the best k; a row that cannot has the lowest key."""
    approximate, positions = propose(query.rows, bank, min(k + _MARGIN, len(bank)))
    _check_finite(approximate, positions)
    error = query.rounding_error(bank, torch.float32)
    # Each of the first k is at least its proposed score less the error, and a row beyond them at most its own plus it.
    needed = approximate[:, min(k, len(bank)) - 1].double() - 2 * error
    if best.shape[1] == k:
        needed = torch.maximum(needed, _scores_of(best[:, -1]).double() - error)
    possible = approximate >= needed[:, None]
    found = torch.full_like(positions, _LOWEST_KEY)
    which, rank = possible.nonzero(as_tuple=True)
    rows = positions[which, rank]
    found[which, rank] = _exact_keys(query, which, bank, rows, first_row=first_row)
    if positions.shape[1] < len(bank):
        # Such a list ends within rounding of what is needed: rows beyond its end may tie with rows on it.
        cut_short = possible[:, -1].nonzero()[:, 0]
        found[cut_short] = _nearest_of_all(query, cut_short, bank, count=found.shape[1], first_row=first_row)
    return found


def _exact_keys(
    query: _Queries, which: torch.Tensor, bank: torch.Tensor, rows: torch.Tensor, *, first_row: int
) -> torch.Tensor:
    """Keys of pairs: the query at position `which[i]` with row `rows[i]` of the block, which begins at `first_row`."""
    keys = torch.empty_like(rows)
    step = max(16, _PIECE_BYTES // (8 * max(1, bank.shape[1])))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        keys[piece] = _keys(query.score_pairs(which[piece], bank[rows[piece]]), rows[piece] + first_row)
    return keys


def _nearest_of_all(
    query: _Queries, which: torch.Tensor, bank: torch.Tensor, *, count: int, first_row: int
) -> torch.Tensor:
    """Keys of the best rows of the block for the queries `which`, found among all of its rows.

    Matrix products in double precision leave few rows that can belong to the best; those are scored pair by pair.
    """
    best = torch.full((len(which), count), _LOWEST_KEY, dtype=torch.int64, device=bank.device)
    error = query.rounding_error(bank, torch.float64)
    for start in range(0, len(which), _EXACT_TILE_QUERIES):
        part = slice(start, start + _EXACT_TILE_QUERIES)
        for first in range(0, len(bank), _TILE_ROWS):
            tile = bank[first : first + _TILE_ROWS]
            scores = query.products(which[part], tile)
            worst = scores.topk(min(count, len(tile)), dim=1).values[:, -1]
            # Scores are ranked when they are rounded to float32, where lower rows may tie with those: two last places.
            slack = 2 * error[which[part]] + worst.abs() * (2 * torch.finfo(torch.float32).eps)
            found = torch.full(scores.shape, _LOWEST_KEY, dtype=torch.int64, device=bank.device)
            near, row = (scores >= (worst - slack)[:, None]).nonzero(as_tuple=True)
            found[near, row] = _exact_keys(query, which[part][near], tile, row, first_row=first_row + first)
            best[part] = _merged(best[part], found, count)
    return best


# A key is an integer that orders (score, row) as ranking does: the score's bits above, the row counted down below.
_LOWEST_KEY = torch.iinfo(torch.int64).min
_LOW_BITS = MAX_BANK_ROWS - 1


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Keys of scores at bank rows below `MAX_BANK_ROWS`: greater for better scores, of equal ones for the lower row."""
    bits = (scores + 0.0).view(torch.int32).long()  # adding 0 makes one of the two zeros
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats order by falling bits, integers by rising
    return (ordered << 32) | (_LOW_BITS - rows)


def _scores_of(keys: torch.Tensor) -> torch.Tensor:
    """The scores inside keys."""
    ordered = keys >> 32
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).int().view(torch.float32)


def _merged(best: torch.Tensor, found: torch.Tensor, k: int) -> torch.Tensor:
    """The greatest k keys of two lists (all of them where there are fewer), greatest first."""
    keys = torch.cat([best, found], dim=1)
    return keys.topk(min(k, keys.shape[1]), dim=1).values


def _neighbors(keys: torch.Tensor, metric: Metric) -> Neighbors:
    """What the keys stand for, as the caller knows it."""
    scores = _scores_of(keys)
    if metric == "l2":
        scores = 0.0 - scores
    return Neighbors(scores=scores.cpu().numpy(), rows=(_LOW_BITS - (keys & _LOW_BITS)).cpu().numpy())


def _proposer(metric: Metric, backend: Backend, device: str) -> _Propose:
    """The backend's way to propose candidates under the metric."""
    if backend == "torch" or (backend == "auto" and torch.device(device).type != "cpu"):
        return _propose_l2_with_torch if metric == "l2" else _propose_dot_with_torch
    try:
        import faiss  # an optional dependency: faiss-cpu or faiss-gpu
    except ModuleNotFoundError:
        if backend == "faiss":
            raise
        return _propose_l2_with_torch if metric == "l2" else _propose_dot_with_torch
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT

    def propose(queries: torch.Tensor, bank: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, positions = faiss.knn(queries.numpy(), bank.numpy(), count, metric=kind)
        return torch.from_numpy(-scores if metric == "l2" else scores), torch.from_numpy(positions)

    return propose


def _propose_dot_with_torch(
    queries: torch.Tensor, bank: torch.Tensor, count: int, penalty: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest products of each query, less `penalty` for each bank row, over tiles of both."""
    scores = queries.new_full((len(queries), count), -torch.inf)
    positions = scores.new_zeros(scores.shape, dtype=torch.int64)
    for start in range(0, len(queries), _TILE_ROWS):
        part = slice(start, start + _TILE_ROWS)
        for first in range(0, len(bank), _TILE_ROWS):
            tile = queries[part] @ bank[first : first + _TILE_ROWS].T
            if penalty is not None:
                tile -= penalty[first : first + _TILE_ROWS]
            top, where = tile.topk(min(count, tile.shape[1]), dim=1)
            scores[part], order = torch.cat([scores[part], top], dim=1).topk(count, dim=1)
            positions[part] = torch.cat([positions[part], where + first], dim=1).gather(1, order)
    return scores, positions


def _propose_l2_with_torch(queries: torch.Tensor, bank: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest squared distances, negated: |q - b|^2 = |q|^2 - 2 (q b - |b|^2 / 2)."""
    halves, positions = _propose_dot_with_torch(queries, bank, count, penalty=bank.square().sum(dim=1) / 2)
    return 2 * halves - queries.square().sum(dim=1, keepdim=True), positions


def _check_choices(k: int, metric: str, backend: str, device: str) -> None:
    """Refuse what no search can do."""
    if k < 1:
        raise ValueError(f"k is {k}; a search needs at least one neighbour. Ask for k >= 1.")
    if metric not in get_args(Metric):
        raise ValueError(f"metric {metric!r} is unknown; there are {', '.join(get_args(Metric))}. Choose one of them.")
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend {backend!r} is unknown; there are {', '.join(get_args(Backend))}. Choose one of them."
        )
    if backend == "faiss" and torch.device(device).type != "cpu":
        raise ValueError(
            f"backend 'faiss' with device {device!r}; faiss proposes candidates on the CPU only. "
            "Use backend 'torch', or device 'cpu'."
        )


def check_bank_rows(n_rows: int) -> None:
    """Refuse a bank whose rows cannot be told apart.

    Raises:
        ValueError: more than `MAX_BANK_ROWS` rows.
    """
    if n_rows > MAX_BANK_ROWS:
        raise ValueError(
            f"the bank has {n_rows:,} rows or more; a search ranks at most {MAX_BANK_ROWS:,} (2**32). "
            "Search a sample of the images, or parts of the bank one by one."
        )


def _check_features(queries: np.ndarray, block: np.ndarray) -> None:
    """Refuse a bank block of another width than the queries."""
    if block.shape[1] != queries.shape[1]:
        raise ValueError(
            f"a bank block has {block.shape[1]} features and the queries {queries.shape[1]}; both must describe the "
            "same features. Apply the same selection to bank and queries."
        )


def _check_finite(scores: torch.Tensor, positions: torch.Tensor) -> None:
    """Refuse scores that cannot be ranked; faiss marks them by position -1."""
    if not bool(torch.isfinite(scores).all()) or bool((positions < 0).any()):
        raise ValueError(
            "a score is not finite; neighbours are ranked by finite scores only. "
            "Leave rows that are not valid out of bank and queries, and scale features whose products overflow float32."
        )
