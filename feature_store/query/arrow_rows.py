"""Rows as a stream of Arrow record batches: columns of the manifest beside fixed-size lists of tokens."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from feature_store.arrow_lists import fixed_lists, fixed_lists_type
from feature_store.errors import QueryError
from feature_store.identity import TokenKind
from feature_store.query.columns import column_batches, column_schema
from feature_store.query.patches import PatchChoice, n_chosen, patch_numbers
from feature_store.query.rows import RowQueries
from feature_store.reader import FeatureSet
from feature_store.token_reader import RowNumbers


def arrow_rows(
    query: RowQueries,
    *,
    layer: int | str,
    kind: TokenKind | None,
    patches: PatchChoice | None,
    columns: Sequence[str],
    block_bytes: int,
) -> pa.RecordBatchReader:
    """See `RowQueries.to_arrow`."""
    features, rows = query.features, query.rows
    schema = column_schema(columns)
    if kind is None:
        if not columns:
            raise QueryError("neither columns nor tokens were asked for; name at least one column, or a token kind.")
        return pa.RecordBatchReader.from_batches(schema, column_batches(features, columns, rows))
    features.require_readable(layer, kind, rows)
    # Left out and not null: Parquet has no fixed-size lists that can be null, and pyarrow writes what it cannot read.
    rows = rows[features.valid[rows]]
    item_shape = _item_shape(features, kind, patches)
    dtype = np.dtype(features.spec.identity.value_dtype)
    schema = schema.append(pa.field(kind, fixed_lists_type(item_shape, dtype)))
    rows_per_batch = max(1, block_bytes // (int(np.prod(item_shape)) * dtype.itemsize))

    def batches() -> Iterator[pa.RecordBatch]:
        for numbers, chosen in _columns_by_shard(features, columns, rows, rows_per_batch):
            tokens = _tokens(features, numbers, layer=layer, kind=kind, patches=patches)
            yield pa.RecordBatch.from_arrays([*chosen, tokens], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _columns_by_shard(
    features: FeatureSet, columns: Sequence[str], rows: RowNumbers, rows_per_batch: int
) -> Iterator[tuple[RowNumbers, list[pa.Array]]]:
    """Runs of rows that cross no shard, each with its columns."""
    for batch in column_batches(features, ["row", *(name for name in columns if name != "row")], rows):
        numbers = batch["row"].to_numpy()
        shard_of_row = numbers // features.spec.rows_per_shard
        ends = [*np.flatnonzero(np.diff(shard_of_row)) + 1, len(numbers)]
        first = 0
        for end in ends:
            for start in range(first, end, rows_per_batch):
                part = batch.slice(start, min(rows_per_batch, end - start))
                yield part["row"].to_numpy(), [part[name] for name in columns]
            first = end


def _item_shape(features: FeatureSet, kind: TokenKind, patches: PatchChoice | None) -> tuple[int, ...]:
    shape = features.spec.row_shape(kind)
    numbers = patch_numbers(features.spec, kind, patches)
    return shape if numbers is None else (n_chosen(features.spec, numbers), *shape[1:])


def _tokens(
    features: FeatureSet, rows: RowNumbers, *, layer: int | str, kind: TokenKind, patches: PatchChoice | None
) -> pa.Array:
    """The tokens of valid rows of one shard; they share the block's memory."""
    ((_, tokens),) = features.iter_blocks(layer, kind, rows=rows, patches=patches, block_bytes=1 << 62)
    return fixed_lists(tokens)
