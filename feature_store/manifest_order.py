"""A manifest made of whole columns: ten million rows never become objects of Python's, beyond a few thousand at a time.

What is computed is what `manifest_table` computes of dictionaries: the same view ids, in the same order.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from feature_store.manifest import MANIFEST_SCHEMA, TILE_AXES, check_manifest, view_id

# Of Python's objects so many are held at a time.
ROWS_AT_ONCE = 1 << 16
# A key of these characters has one spelling in JSON: itself.
_PLAIN_KEY = r"^[0-9a-z:-]*$"
_NO_TRANSFORM = {"name": "", "parameters": ""}
RowNumbers = Int64[np.ndarray, " rows"]
Columns = dict[str, pa.ChunkedArray]


def ordered_manifest(columns: Columns) -> pa.Table:
    """A manifest of columns whose rows are in order, see `row_order`: fills `view_id`, and checks every rule.

    Args:
        columns: by name, at least `uri` and `image_sha256`; they are taken out one by one, so that memory holds each
            column once.

    Raises:
        ManifestError: no row, or a row breaks a rule.
    """
    n_rows = len(columns["uri"])
    columns["view_id"] = view_ids(columns)
    made = []
    for field in MANIFEST_SCHEMA:
        column = columns.pop(field.name, None)
        made.append(nulls(n_rows, field.type) if column is None else column.cast(field.type))
    table = pa.Table.from_arrays(made, schema=MANIFEST_SCHEMA)
    check_manifest(table)
    return table


def nulls(n_rows: int, kind: pa.DataType) -> pa.ChunkedArray:
    """A column without a value, in chunks that share one piece of memory."""
    piece = pa.nulls(min(n_rows, ROWS_AT_ONCE), kind)
    chunks = [piece] * (n_rows // ROWS_AT_ONCE) if n_rows >= ROWS_AT_ONCE else []
    return pa.chunked_array([*chunks, piece.slice(0, n_rows - len(chunks) * len(piece))], kind)


def view_ids(columns: Mapping[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """The name of every view, see `manifest.view_id`."""
    n_rows = len(columns["image_sha256"])
    parts = [_view_ids_of(columns, start) for start in range(0, n_rows, ROWS_AT_ONCE)]
    return pa.chunked_array(parts, pa.string())


def _view_ids_of(columns: Mapping[str, pa.ChunkedArray], start: int) -> pa.Array:
    keys, tiles, transforms = (
        columns[name].slice(start, ROWS_AT_ONCE) if name in columns else None
        for name in ("image_sha256", "tile", "transform")
    )
    assert keys is not None
    cut = any(part is not None and part.null_count < len(part) for part in (tiles, transforms))
    if not cut and pc.all(pc.match_substring_regex(keys, _PLAIN_KEY)).as_py():
        sha256 = hashlib.sha256
        return pa.array([sha256(f'["{key}",null,null]'.encode()).hexdigest()[:32] for key in keys.to_pylist()])
    empty = [None] * len(keys)
    of_tiles = empty if tiles is None else tiles.to_pylist()
    of_transforms = empty if transforms is None else transforms.to_pylist()
    return pa.array(
        view_id(
            key,
            [tile[axis] for axis in TILE_AXES] if tile else None,
            (transform["name"], transform["parameters"]) if transform else None,
        )
        for key, tile, transform in zip(keys.to_pylist(), of_tiles, of_transforms, strict=True)
    )


def row_order(columns: Mapping[str, pa.ChunkedArray]) -> RowNumbers | None:
    """The numbers of the rows in their order: uri by bytes, then tile, then transform, then as they stand.

    Returns:
        The numbers, or None where the rows are in order already.
    """
    uris = columns["uri"]
    nested = [name for name in ("tile", "transform") if name in columns and columns[name].null_count < len(uris)]
    ascending = len(uris) < 2 or pc.all(pc.less(uris.slice(0, len(uris) - 1), uris.slice(1))).as_py()
    if ascending:
        return None
    keys = {"uri": uris}
    for name in nested:
        # False sorts first: a whole image stands before its tiles.
        keys[f"{name} given"] = columns[name].is_valid()
        for part, nothing in (dict.fromkeys(TILE_AXES, 0) if name == "tile" else _NO_TRANSFORM).items():
            keys[f"{name}.{part}"] = pc.fill_null(pc.struct_field(columns[name], part), nothing)
    order = pc.sort_indices(pa.table(keys), sort_keys=[(key, "ascending") for key in keys])
    numbers: RowNumbers = order.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return numbers


def take_rows(columns: Columns, rows: RowNumbers) -> None:
    """Replace each column by some of its rows, one column after another, so that memory holds one of them twice."""
    for name in list(columns):
        # In one piece first: Arrow would put it together again for every slice.
        whole = pa.chunked_array(columns.pop(name).chunks).combine_chunks()
        parts = [whole] if isinstance(whole, pa.Array) else whole.chunks
        source = parts[0] if len(parts) == 1 else pa.chunked_array(parts)
        taken = [
            source.take(pa.array(rows[start : start + ROWS_AT_ONCE])) for start in range(0, len(rows), ROWS_AT_ONCE)
        ]
        chunks = [chunk for part in taken for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
        columns[name] = pa.chunked_array(chunks, source.type)


def image_numbers(uris: pa.ChunkedArray) -> RowNumbers:
    """A number for each image of rows in order: how many others come before it."""
    if len(uris) < 2:
        return np.zeros(len(uris), dtype=np.int64)
    changes = pc.not_equal(uris.slice(1), uris.slice(0, len(uris) - 1)).to_numpy().astype(np.int64)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(changes)])
