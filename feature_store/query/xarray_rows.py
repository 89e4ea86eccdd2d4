"""Tokens as a lazy xarray array, labelled with columns of the manifest; the only module that imports xarray."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_store.arrays import token_layout
from feature_store.errors import QueryError, StoreError
from feature_store.identity import TokenKind
from feature_store.query.columns import dense_column
from feature_store.query.dask_rows import dask_rows
from feature_store.query.patches import PatchChoice, patch_numbers
from feature_store.query.rows import RowQueries

try:
    import xarray as xr
except ModuleNotFoundError as error:
    raise StoreError(
        "to_xarray() needs the package xarray, which is not installed; `pip install 'vitrine[xarray]'` brings it. "
        "to_dask() gives the same array without labels."
    ) from error


def xarray_rows(
    query: RowQueries,
    *,
    layer: int | str,
    kind: TokenKind,
    patches: PatchChoice | None,
    columns: Sequence[str],
) -> xr.DataArray:
    """See `RowQueries.to_xarray`."""
    features = query.features
    tokens = dask_rows(query, layer=layer, kind=kind, patches=patches)
    axes = token_layout(features.spec, kind).axes
    taken = {"row", "patch", "register", "head", "feature"} & set(columns) - {"row"}
    if taken:
        raise QueryError(f"columns {sorted(taken)} have the names of dimensions; leave them out.")
    table = query.columns([name for name in columns if name != "row"])
    coordinates: dict[str, Any] = {name: ("row", dense_column(table[name])) for name in table.column_names}
    if "patch" in axes:
        chosen = patch_numbers(features.spec, kind, patches)
        every = np.arange(features.spec.n_patches)
        coordinates["patch"] = every if chosen is None else every[chosen]
    attributes = {
        "features": features.name,
        "digest": features.digest,
        "layer": features.layer_number(layer),
        "grid": features.spec.grid,
    }
    return xr.DataArray(tokens, dims=axes, coords={"row": query.rows, **coordinates}, name=kind, attrs=attributes)
