"""`parquet:FILE`: a table with a list of numbers in each row, and the manifest's columns beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError
from pipelines.datasets.assemble import Row
from pipelines.imports.rows_file import open_parquet, parquet_batches, read_rows, row_types
from pipelines.imports.source_arrays import ImportRefusedError, Spool, Values
from pipelines.imports.vectors import ImportOptions, Vectors, kinds_of, stated_text

_USUAL_NAMES = ("vector", "embedding", "features", "vectors", "embeddings")
_RECORD_KEY = b"vitrine"
# Small, since a row may be the tokens of a whole view.
_ROWS_PER_BATCH = 64


def open_parquet_vectors(path: Path, options: ImportOptions) -> Vectors:
    """Vectors in a list column of a Parquet file.

    Args:
        path: the file.
        options: `vectors` names the column; by default the only column of lists of numbers, or the one that is called
            vector, embedding, features, vectors or embeddings. `rows` names another table for the manifest's columns.

    Raises:
        ImportRefusedError: no such column, lists of different lengths, or nulls.
    """
    if not path.is_file():
        raise ImportRefusedError(f"{path} does not exist; give a Parquet file.")
    spool, rows = Spool(str(path)), list[Row]()
    try:
        with open_parquet(path) as file:
            column = _vector_column(path, file.schema_arrow, options.vectors)
            record = _export_record(path, file.schema_arrow)
            types = {} if options.rows else row_types()
            batches = parquet_batches(
                file, path, types=types, renamed=options.columns, extra=[column], rows_per_batch=_ROWS_PER_BATCH
            )
            for batch in batches:
                start = spool.n_rows
                spool.append(
                    _values(path, batch[column], start), name=f"{path}, rows {start} to {start + len(batch) - 1}"
                )
                rows += batch.drop_columns([column]).to_pylist()
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except (pa.ArrowException, OSError) as error:
        raise ImportRefusedError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:160]}).") from error
    if not spool.n_rows:
        raise ImportRefusedError(f"{path} has no rows; give a Parquet file with at least one vector.")
    if options.rows:
        rows = read_rows(options.rows, renamed=options.columns)
    arrays = kinds_of(spool, prefix_tokens=options.prefix_tokens)
    classes = record.get("classes")
    return Vectors(
        layout="parquet",
        arrays=arrays,
        rows=rows,
        classes=tuple(map(str, classes)) if isinstance(classes, list) and classes else None,
        name=path.stem,
        dataset=stated_text(record, "dataset"),
    )


def _export_record(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """What `vitrine export` leaves in the file."""
    record = (schema.metadata or {}).get(_RECORD_KEY)
    try:
        return {} if record is None else parse_json(record, name=f"{path}: its record")
    except CorruptError:
        return {}  # somebody else's, who uses the same key


def _vector_column(path: Path, schema: pa.Schema, stated: str | None) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    if stated is not None:
        if stated not in lists:
            raise ImportRefusedError(f"{path} has no column {stated!r} of lists of numbers; it has {_listed(lists)}.")
        return stated
    usual = [name for name in _USUAL_NAMES if name in lists] or lists
    if not usual or (len(usual) > 1 and usual == lists):
        raise ImportRefusedError(f"{path} has {_listed(lists)} of lists of numbers; name the vectors' with --vectors.")
    return usual[0]


def _listed(names: Sequence[str]) -> str:
    return f"columns {', '.join(map(repr, names[:10]))}" if names else "no column"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_vector(kind: pa.DataType) -> bool:
    while _is_list(kind):
        kind = kind.value_type
        if pa.types.is_floating(kind):
            return True
    return False


def _values(path: Path, column: pa.Array, start: int) -> Values:
    """[rows, ...] of a column of lists, all of one length at each depth."""
    shape = [len(column)]
    values = column
    while _is_list(values.type):
        if values.null_count:
            raise ImportRefusedError(f"{path} has no vector in a row of rows {start} to {start + len(column) - 1}.")
        lengths = pc.list_value_length(values)
        shortest, longest = pc.min(lengths).as_py(), pc.max(lengths).as_py()
        if shortest != longest or not longest:
            raise ImportRefusedError(
                f"{path} has lists of {shortest} and of {longest} numbers in rows {start} to "
                f"{start + len(column) - 1}; all vectors of one model have one length."
            )
        shape.append(longest)
        values = pc.list_flatten(values)
    if values.null_count:
        raise ImportRefusedError(f"{path} has nulls inside vectors of rows {start} to {start + len(column) - 1}.")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
