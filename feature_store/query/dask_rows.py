"""Tokens as a lazy dask array whose chunks are shards."""

from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from feature_store.compression import DecodingReader
from feature_store.identity import TokenKind
from feature_store.query.patches import PatchChoice, PatchNumbers, n_chosen, patch_numbers
from feature_store.query.rows import RowQueries
from feature_store.token_reader import RowNumbers, Rows, TokenReader


def dask_rows(query: RowQueries, *, layer: int | str, kind: TokenKind, patches: PatchChoice | None) -> da.Array:
    """See `RowQueries.to_dask`."""
    features, rows = query.features, query.rows
    reader = features.portable_reader(layer, kind, rows)
    spec = features.spec
    chosen = patch_numbers(spec, kind, patches)
    shape = spec.row_shape(kind) if chosen is None else (n_chosen(spec, chosen), spec.n_features)
    dtype = np.dtype(spec.identity.value_dtype)
    if not rows.size:
        empty: da.Array = da.zeros((0, *shape), dtype=dtype)
        return empty
    token = tokenize(features.root.url, features.name, features.layer_number(layer), kind, rows, chosen)
    name = f"vitrine-{kind}-{token}"
    # The reader is a node of the graph, so it travels to each worker once and not with every shard.
    graph: dict[Any, Any] = {f"reader-{name}": reader}
    parts = np.split(rows, np.flatnonzero(np.diff(rows // spec.rows_per_shard)) + 1)
    for index, part in enumerate(parts):
        wanted = slice(int(part[0]), int(part[-1]) + 1) if part[-1] - part[0] == len(part) - 1 else part
        graph[name, index, *(0 for _ in shape)] = (_read_part, f"reader-{name}", wanted, chosen)
    chunks = (tuple(map(len, parts)), *((length,) for length in shape))
    return da.Array(graph, name, chunks, dtype=dtype)


def _read_part(reader: TokenReader | DecodingReader, rows: slice | RowNumbers, patches: PatchNumbers | None) -> Rows:
    numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return reader.gather(numbers, patches)
