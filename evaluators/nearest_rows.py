"""The stored patches or images nearest to a vector: exact, streamed, under any condition and selection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64

from evaluators.feature_map import FeatureMap
from evaluators.neighbors import MAX_BANK_ROWS, Neighbors, search
from evaluators.parameters import Metric
from evaluators.subject import KIND_READ
from evaluators.token_stream import BANK_BLOCK_TOKENS, TokensOn, joined_blocks, mean_over_patches, stored_tokens
from feature_store import FeatureRows, FeatureSet, QueryError, RowQueries, Selection

_READ_BYTES = 32 << 20
# The search counts bank tokens in 32 bits.


@dataclass(frozen=True, kw_only=True)
class NearestRows:
    """The k nearest stored tokens of each query, best first.

    Attributes:
        rows: row numbers of the feature set.
        patches: patch numbers, row-major over the grid; None where whole images were searched.
        scores: similarity (cosine, dot), or squared distance in squared feature units (l2).
        uris: of the images, by row number.
        tiles: by row number, the part of its image that it shows (x, y, width, height in pixels); None for all of it.
    """

    rows: Int64[np.ndarray, "queries k"]
    patches: Int64[np.ndarray, "queries k"] | None
    scores: Float32[np.ndarray, "queries k"]
    uris: Mapping[int, str]
    tiles: Mapping[int, Mapping[str, int] | None]

    def to_json(self) -> list[list[dict[str, Any]]]:
        """For each query its neighbours, best first, each with row, patch, score, uri and tile."""
        return [[self._entry(query, rank) for rank in range(self.rows.shape[1])] for query in range(self.rows.shape[0])]

    def _entry(self, query: int, rank: int) -> dict[str, Any]:
        row = int(self.rows[query, rank])
        return {
            "rank": rank + 1,
            "row": row,
            "patch": None if self.patches is None else int(self.patches[query, rank]),
            "score": float(self.scores[query, rank]),
            "uri": self.uris[row],
            "tile": self.tiles[row],
        }


def nearest(
    among: RowQueries,
    queries: Float[np.ndarray, "queries features"] | Float[np.ndarray, " features"],
    k: int,
    *,
    on: TokensOn = "patches",
    layer: int | str = "last",
    metric: Metric = "cosine",
    selection: Selection | None = None,
) -> NearestRows:
    """Find the k stored tokens nearest to each query, exactly, in memory bounded by the blocks and the queries.

    Args:
        among: a feature set, or some of its rows (`FeatureSet.where`); rows without tokens are never found.
        queries: vectors of the feature set's width, one or several; see `stored_query` for one that is stored.
        k: how many, at most the tokens there are.
        on: what is found: `patches`, or images by their `cls` token or their `mean` patch.
        layer: a block number or `last`.
        metric: `cosine`, `dot` or `l2`.
        selection: compare these features alone; None for all.

    Returns:
        Best first; equal scores go to the lower row, then to the lower patch.

    Raises:
        QueryError: no such token, more neighbours than tokens, or queries of another width or that are not finite.
        SelectionError: the selection was made for other weights, or on other tokens.
        IncompleteError: shards are missing.
    """
    features = among.features
    features.require_complete()
    if on not in get_args(TokensOn):
        raise QueryError(f"nearest on {on!r}: choose {', '.join(get_args(TokensOn))}.")
    if selection is not None:
        selection.check_fits(features.spec, layer=features.layer_number(layer), kind=KIND_READ[on])
    vectors = _checked(features, queries)
    rows: Int64[np.ndarray, " rows"] = among.rows[features.valid[among.rows]]
    per_row = features.spec.n_patches if on == "patches" else 1
    if not 1 <= k <= len(rows) * per_row <= MAX_BANK_ROWS:
        raise QueryError(
            f"{k} neighbours were asked for among {len(rows) * per_row} tokens of {len(rows)} rows; ask for 1 or more, "
            f"no more than there are, among at most {MAX_BANK_ROWS} tokens."
        )
    mapping = FeatureMap(columns=None if selection is None else np.asarray(selection.features, dtype=np.int64))
    found = search(
        lambda: joined_blocks(
            stored_tokens(features, rows, on=on, layer=layer, block_bytes=_READ_BYTES), mapping, BANK_BLOCK_TOKENS
        ),
        [mapping.apply(vectors)],
        k=k,
        metric=metric,
    )
    return _named(features, rows, per_row if on == "patches" else None, next(iter(found)))


def stored_query(
    features: FeatureSet, row: int, patch: int | None = None, *, on: TokensOn = "patches", layer: int | str = "last"
) -> Float32[np.ndarray, "1 features"]:
    """The stored token of one row, as a query for `nearest`.

    Args:
        features: the feature set.
        row: its number.
        patch: of the row, row-major over the grid; needed on `patches`, and only there.
        on, layer: as for `nearest`.

    Raises:
        QueryError: no such row or patch, a row without tokens, or a patch that is missing or out of place.
    """
    if not 0 <= row < features.spec.n_rows:
        raise QueryError(f"row {row} does not exist; {features.name} has 0..{features.spec.n_rows - 1}.")
    if (on == "patches") != (patch is not None):
        raise QueryError(
            f"row {row} with patch {patch} on {on!r}: a patch is named by row and patch, an image by its row alone."
        )
    if not features.valid[row]:
        raise QueryError(f"row {row} of {features.name} has no tokens; name another row.")
    if on == "patches":
        tokens = features.read(layer, "patches", [row], [patch if patch is not None else 0])[:, 0]
    else:
        tokens = features.read(layer, "cls" if on == "cls" else "patches", [row])
        tokens = mean_over_patches(tokens) if on == "mean" else tokens
    return tokens.astype(np.float32)


def _checked(features: FeatureSet, queries: np.ndarray[Any, Any]) -> Float32[np.ndarray, "queries features"]:
    vectors = np.atleast_2d(queries)
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != features.spec.n_features:
        raise QueryError(
            f"queries of shape {np.shape(queries)} do not fit {features.name}; give [queries, "
            f"{features.spec.n_features}], all features of the model, with or without a selection."
        )
    if not np.isfinite(vectors).all():
        raise QueryError("a query holds values that are not finite; no distance to it can be ranked.")
    return vectors.astype(np.float32)


def _named(
    features: FeatureSet, rows: Int64[np.ndarray, " rows"], patches_per_row: int | None, found: Neighbors
) -> NearestRows:
    numbers = rows[found.rows // (patches_per_row or 1)]
    once = np.unique(numbers)
    table = FeatureRows(features, once).columns(["row", "uri", "tile"]).to_pydict()
    return NearestRows(
        rows=numbers,
        patches=None if patches_per_row is None else found.rows % patches_per_row,
        scores=found.scores,
        uris=dict(zip(table["row"], table["uri"], strict=True)),
        tiles=dict(zip(table["row"], table["tile"], strict=True)),
    )
