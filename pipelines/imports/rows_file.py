"""The rows beside vectors: the manifest's columns in CSV, JSON lines or Parquet, and whatever else stands there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_store.manifest import MANIFEST_SCHEMA
from pipelines.datasets.assemble import Row
from pipelines.datasets.text_table import MAX_ROWS, MAX_TEXT, TEXT_SUFFIXES, read_text_table
from pipelines.imports.source_arrays import ImportRefusedError

_ROWS_PER_BATCH = 8192
_SHOWN_COLUMNS = 20


def row_types() -> dict[str, pa.DataType]:
    """The columns that are read; a label may be a class name, so it is taken as text and numbered later."""
    types = {field.name: field.type for field in MANIFEST_SCHEMA}
    types["label"] = pa.string()
    return types


def read_rows(path: Path, *, renamed: Mapping[str, str] | None = None, only: Sequence[str] | None = None) -> list[Row]:
    """The rows of a table; columns that no manifest has are passed over.

    Args:
        path: `.csv`, `.jsonl`, `.ndjson`, or Parquet under any other name.
        renamed: the file's column for a column of the manifest, e.g. {"uri": "image_path"}.
        only: the manifest's columns to take; None for all that are there.

    Raises:
        ImportRefusedError: no such file, over the bounds, a column of `renamed` that it lacks, or a value of the wrong
            type.
        ManifestError: a line that is not of its form, with its number.
    """
    if not path.is_file():
        raise ImportRefusedError(f"{path} does not exist; give the table that says what each vector is (--rows FILE).")
    renamed = renamed or {}
    types = {name: kind for name, kind in row_types().items() if only is None or name in only}
    if path.suffix.lower() in TEXT_SUFFIXES:
        wanted = {renamed.get(name, name): kind for name, kind in types.items()}
        read = read_text_table(path, wanted)
        _require_columns(path, read.names, renamed)
        table = read.table
        back = {source: name for name, source in renamed.items()}
        return table.rename_columns([back.get(name, name) for name in table.column_names]).to_pylist()  # type: ignore[no-any-return]
    rows: list[Row] = []
    try:
        with open_parquet(path) as file:
            for batch in parquet_batches(file, path, types=types, renamed=renamed):
                rows += batch.to_pylist()
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except (pa.ArrowException, OSError) as error:
        raise ImportRefusedError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())}).") from error
    return rows


def open_parquet(path: Path) -> pq.ParquetFile:
    """A stranger's Parquet file, its size and its rows bounded.

    Raises:
        ImportRefusedError: too many rows.
    """
    # Read ahead, every column chunk of the file would be held until the last batch.
    file = pq.ParquetFile(path, pre_buffer=False)
    if file.metadata.num_rows > MAX_ROWS:
        file.close()
        raise ImportRefusedError(f"{path} has {file.metadata.num_rows} rows; at most {MAX_ROWS} are read. Split it.")
    return file


def parquet_batches(
    file: pq.ParquetFile,
    path: Path,
    *,
    types: Mapping[str, pa.DataType],
    renamed: Mapping[str, str],
    extra: Sequence[str] = (),
    rows_per_batch: int = _ROWS_PER_BATCH,
) -> Iterator[pa.RecordBatch]:
    """Batches of the manifest's columns under their own names, and of the columns `extra`.

    Raises:
        ImportRefusedError: a column of `renamed` that the file lacks, one whose type does not become the manifest's, or
            a text beyond its bound.
    """
    names = file.schema_arrow.names
    if types:
        _require_columns(path, names, renamed)
    sources = {renamed.get(name, name): (name, kind) for name, kind in types.items()}
    wanted = {source: target for source, target in sources.items() if source in names}
    for batch in file.iter_batches(batch_size=rows_per_batch, columns=[*wanted, *extra]):
        columns, out = [], []
        for source, (name, kind) in wanted.items():
            columns.append(_cast(batch[source], kind, path, source))
            out.append(name)
        yield pa.RecordBatch.from_arrays([*columns, *(batch[name] for name in extra)], names=[*out, *extra])


def _require_columns(path: Path, names: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Refuse a file without a column that another is to be taken from."""
    for name, source in renamed.items():
        if source not in names:
            listed = ", ".join(map(repr, names[:_SHOWN_COLUMNS])) + (", ..." if len(names) > _SHOWN_COLUMNS else "")
            raise ImportRefusedError(
                f"{path} has no column {source[:60]!r} to take {name} from; it has {listed[:1000]}. Name one of them "
                f"with --column {name}=..."
            )


def _cast(column: pa.Array, kind: pa.DataType, path: Path, name: str) -> pa.Array:
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_floating(column.type) and pa.types.is_string(kind):
            column = column.cast(pa.int64())  # pandas makes floats of whole numbers with gaps
        cast = column.cast(kind)
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except pa.ArrowException as error:
        raise ImportRefusedError(
            f"{path}: column {name!r} has type {column.type}, which does not become {kind} "
            f"({' '.join(str(error).split())[:160]}). Cast it."
        ) from error
    if pa.types.is_string(kind):
        longest = pc.max(pc.binary_length(cast)).as_py()
        if longest is not None and longest > MAX_TEXT:
            raise ImportRefusedError(
                f"{path}: a text in column {name!r} has {longest} bytes; at most {MAX_TEXT} are read."
            )
    return cast
