"""The rows of a feature set, and what can be asked of them.

Nothing heavy is loaded with this module: DuckDB, dask, xarray and torch come with the first question that needs them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feature_store.errors import QueryError
from feature_store.identity import TokenKind
from feature_store.query.columns import column_batches, column_schema
from feature_store.query.patches import PatchChoice
from feature_store.token_reader import RowNumbers, Rows

if TYPE_CHECKING:
    import dask.array
    import xarray

    import feature_store.query.torch_rows
    import feature_store.reader

BLOCK_BYTES = 32 << 20
# Of one condition, in seconds.
TIME_LIMIT_S = 30.0


class RowQueries:
    """What can be asked of the rows of one feature set: of all of them, or of those that conditions leave."""

    @property
    def features(self) -> "feature_store.reader.FeatureSet":
        """The feature set that the rows belong to."""
        raise NotImplementedError

    @property
    def rows(self) -> RowNumbers:
        """The row numbers, ascending, those without tokens among them; see the column `valid`."""
        raise NotImplementedError

    def where(
        self,
        condition: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        time_limit_s: float = TIME_LIMIT_S,
        removed: bool = False,
    ) -> "FeatureRows":
        """Those of the rows for which a condition is true.

        Args:
            condition: an SQL expression (DuckDB's) over the columns of the manifest and `row`, `valid` and
                `class_name`, e.g. `split = 'train' AND label IN (3, 5)`, `class_name = 'car'`, `tile.x < 120`. Only
                the columns it names are read. It may be a stranger's: it reaches no file and no host, and calls only
                the functions of `feature_store.query.expressions`.
            parameters: values for `?` or `$name` in the condition.
            time_limit_s: seconds after which it is given up.
            removed: ask also the rows that are only the places of views that the dataset has no more.

        Raises:
            QueryError: it is no such expression, or takes longer.
            CorruptError: the manifest cannot be read.
        """
        from feature_store.query.conditions import matching_rows

        found = matching_rows(self.features, condition, parameters, time_limit_s=time_limit_s)
        rows = self.rows
        if len(rows) < self.features.spec.n_rows:
            found = np.intersect1d(rows, found, assume_unique=True)
        if not removed:
            found = found[~self.features.removed[found]]
        return FeatureRows(self.features, found)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Columns of the manifest, and `row`, `valid`, `class_name`, for these rows; no other column is read.

        Raises:
            QueryError: there is no such column.
            CorruptError: the manifest cannot be read.
        """
        schema = column_schema(names)
        return pa.Table.from_batches(column_batches(self.features, names, self.rows), schema=schema)

    def column(self, name: str) -> list[Any]:
        """One column, a value a row.

        Raises:
            QueryError: there is no such column.
        """
        values: list[Any] = self.columns([name])[name].to_pylist()
        return values

    def to_arrow(
        self,
        layer: int | str = "last",
        kind: TokenKind | None = "patches",
        *,
        patches: PatchChoice | None = None,
        columns: Sequence[str] = ("row", "uri"),
        block_bytes: int = BLOCK_BYTES,
    ) -> pa.RecordBatchReader:
        """The rows as a stream of Arrow record batches, in bounded memory.

        Args:
            layer, kind, patches: as for `read`; kind None for the columns alone.
            columns: of the manifest, and `row`, `valid`, `class_name`.
            block_bytes: of tokens in a batch, about.

        Returns:
            Batches in the order of rows: the columns, then the tokens under the name of their kind, as fixed-size
            lists of the stored dtype: [feature] for cls, [patch][feature] for patches. Where tokens are asked for, rows
            that have none are left out.

        Raises:
            QueryError, StoreError, IncompleteError: as for `read` and `columns`.
        """
        from feature_store.query.arrow_rows import arrow_rows

        return arrow_rows(self, layer=layer, kind=kind, patches=patches, columns=columns, block_bytes=block_bytes)

    def to_dask(
        self, layer: int | str = "last", kind: TokenKind = "patches", *, patches: PatchChoice | None = None
    ) -> "dask.array.Array":
        """The tokens as a lazy dask array, one chunk a shard.

        Args:
            layer, kind, patches: as for `read`.

        Returns:
            An array of shape [rows, patches, features], [rows, features] or [rows, registers, features]; computing a
            part reads that part. It may be computed by other processes if they reach the store under the same URL.

        Raises:
            QueryError, StoreError, IncompleteError: as for `read`.
        """
        from feature_store.query.dask_rows import dask_rows

        return dask_rows(self, layer=layer, kind=kind, patches=patches)

    def to_xarray(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        *,
        patches: PatchChoice | None = None,
        columns: Sequence[str] = ("view_id", "split", "label", "uri", "valid"),
    ) -> "xarray.DataArray":
        """The tokens as a lazy, labelled xarray array, backed by `to_dask`.

        Args:
            layer, kind, patches: as for `read`.
            columns: of the manifest, as coordinates along `row`; missing integers are -1 and missing text is "".

        Returns:
            An array with dimensions row, patch (or register) and feature, and coordinates row, patch and `columns`.

        Raises:
            QueryError, StoreError, IncompleteError: as for `read`; StoreError too where xarray is not installed.
        """
        from feature_store.query.xarray_rows import xarray_rows

        return xarray_rows(self, layer=layer, kind=kind, patches=patches, columns=columns)

    def to_torch(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        *,
        patches: PatchChoice | None = None,
        columns: Sequence[str] = ("label",),
        seed: int | None = 0,
        buffer_bytes: int = 256 << 20,
        rank: tuple[int, int] | None = None,
    ) -> "feature_store.query.torch_rows.TokenStream":
        """The rows with tokens as an iterable dataset for a torch DataLoader, shuffled anew in every epoch.

        Args:
            layer, kind, patches: as for `read`.
            columns: of the manifest, beside the tokens; missing integers are -1 and missing text is "".
            seed: of the order, together with the epoch (see `set_epoch`) and the number of readers; None for the order
                of rows.
            buffer_bytes: of tokens in each worker that wait for their turn. More mixes shards better.
            rank: (rank, number of ranks) where several processes share the rows; ranks count from 0. None asks
                torch.distributed, or else the environment that torchrun sets. (0, 1) reads every row in every process.

        Raises:
            QueryError: no such rank; or as for `read`.
            StoreError, IncompleteError: as for `read`.
        """
        from feature_store.query.torch_rows import QueriedTokens, Share, TokenStream

        tokens = QueriedTokens(self, layer=layer, kind=kind, patches=patches, columns=columns)
        share = None if rank is None else Share(number=rank[0], count=rank[1])
        return TokenStream(tokens, seed=seed, buffer_bytes=buffer_bytes, rank=share)

    def to_torch_map(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        *,
        patches: PatchChoice | None = None,
        columns: Sequence[str] = ("label",),
    ) -> "feature_store.query.torch_rows.TokenMap":
        """The rows with tokens as a map-style dataset: any sampler of torch, at the price of reads all over the store.

        Args:
            layer, kind, patches, columns: as for `to_torch`.
        """
        from feature_store.query.torch_rows import QueriedTokens, TokenMap

        return TokenMap(QueriedTokens(self, layer=layer, kind=kind, patches=patches, columns=columns))


class FeatureRows(RowQueries):
    """Some rows of a feature set; `FeatureSet.where` makes them."""

    def __init__(self, features: "feature_store.reader.FeatureSet", rows: RowNumbers) -> None:
        self._features = features
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<FeatureRows: {len(self)} of {self._features.spec.n_rows} rows of {self._features.name}>"

    @property
    def features(self) -> "feature_store.reader.FeatureSet":
        """The feature set that the rows belong to."""
        return self._features

    @property
    def rows(self) -> RowNumbers:
        """The row numbers, ascending, those without tokens among them; see the column `valid`."""
        return self._rows

    def read(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        rows: Sequence[int] | np.ndarray[Any, Any] | None = None,
        patches: PatchChoice | None = None,
    ) -> Rows:
        """Tokens of these rows, or of some of them; see `FeatureSet.read`.

        Raises:
            QueryError: a row that is not one of these.
        """
        wanted = self._rows if rows is None else np.asarray(rows, dtype=np.int64)
        outside = np.setdiff1d(wanted, self._rows)
        if outside.size:
            raise QueryError(
                f"row {outside[0]} is not among these {len(self)} rows; `rows` holds row numbers of the feature set. "
                "Read it from the feature set itself."
            )
        return self._features.read(layer, kind, wanted, patches)

    def iter_blocks(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        *,
        patches: PatchChoice | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> Iterator[tuple[RowNumbers, Rows]]:
        """Those of the rows that have tokens, block by block in bounded memory; see `FeatureSet.iter_blocks`."""
        return self._features.iter_blocks(layer, kind, rows=self._rows, patches=patches, block_bytes=block_bytes)
