"""`manifest:FILE`: a user's own Parquet, CSV or JSON lines, which need no more than a column `uri`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_store.errors import ManifestError
from feature_store.manifest import MANIFEST_SCHEMA, DatasetSpec, check_ground_sample_distance, check_relative_uri
from pipelines.datasets.assemble import Row, assemble_dataset, check_tile
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.description import MAX_CLASSES, dataset_spec
from pipelines.datasets.scan import Progress, existing_folder
from pipelines.datasets.text_table import MAX_FILE_BYTES, MAX_ROWS, MAX_TEXT, TEXT_SUFFIXES, read_text_table

MAX_TABLE_BYTES = 8 << 30
_ROWS_PER_BATCH = 8192
_VALUE_BYTES = 8
CONTENT_KEY = re.compile(r"[0-9a-f]{64}|stat:[0-9]{1,20}-[0-9]{1,20}|uri:[0-9a-f]{64}")


def open_manifest_file(path: Path, options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """A dataset from a table of the user's making.

    Columns are those of `MANIFEST_SCHEMA`, all optional but `uri`. Content keys that are missing are computed; those
    that are given are taken as they stand. A `view_id` is checked against what it must be.

    Args:
        path: the file: CSV (`.csv`), JSON lines (`.jsonl`, `.ndjson`), or Parquet under any other name; a
            `dataset.json` beside it is read.
        options: the user's; `root` is the folder that paths are relative to, by default the file's own.
        progress: called with (images done, images in all).

    Raises:
        ManifestError: not of its format, over the bounds, a column that is not known, a value of the wrong type, or a
            view that stands there twice.
    """
    if not path.is_file():
        raise ManifestError(f"dataset 'manifest:{path}': there is no such file. Give a Parquet, .csv or .jsonl file.")
    root = existing_folder(options.root or path.parent, source=f"manifest:{path}")
    table, lines = _read(path)
    rows: list[Row] = table.to_pylist()
    check_rows(rows, lambda index: f"{path}, {_place(lines, index)}")
    spec = _with_class_names(dataset_spec(path.parent, options), table)
    if options.tile is not None and any(row.get("tile") is not None for row in rows):
        raise ManifestError(f"{path} has tiles of its own; leave out --tile {options.tile}, or the column 'tile'.")
    dataset = assemble_dataset(root, rows, spec, options, progress)
    check_views(dataset.table, {row["view_id"] for row in rows if row.get("view_id")})
    return dataset


def _read(path: Path) -> tuple[pa.Table, Sequence[int] | None]:
    """The table, and the line of each row where the file has lines."""
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return read_manifest_table(path), None
    types = {field.name: field.type for field in MANIFEST_SCHEMA}
    read = read_text_table(path, types)
    if "uri" not in read.table.column_names:
        raise ManifestError(f"{path}: a column 'uri' is needed; docs/datasets.md lists the columns.")
    return read.table, read.lines


def _place(lines: Sequence[int] | None, index: int) -> str:
    return f"row {index}" if lines is None else f"line {lines[index]}"


def read_manifest_table(path: Path) -> pa.Table:
    """Read a stranger's Parquet in bounded memory, each column cast to the schema's type.

    Raises:
        ManifestError: see `open_manifest_file`.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read. Split it.")
    try:
        texts = _check_declared(path)
        # In a dictionary, a text of a million rows is held once and can be measured before it is spelled out.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            batches = [_checked(path, batch) for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH)]
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path} cannot be read as Parquet: {error}. Write it with pyarrow, pandas or DuckDB."
        ) from error
    if not batches:
        raise ManifestError(f"{path} has no rows; a dataset needs at least one image.")
    return pa.Table.from_batches(batches)


def _check_declared(path: Path) -> list[str]:
    """Hold what the file's footer declares to the bounds; returns the paths of its columns of text."""
    metadata = pq.read_metadata(path)
    names = metadata.schema.to_arrow_schema().names
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    # Both, since repeated values take next to nothing in the file and their full width in memory.
    n_values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    size_bytes = max(sum(group.total_byte_size for group in groups), n_values * _VALUE_BYTES)
    if metadata.num_rows > MAX_ROWS or size_bytes > MAX_TABLE_BYTES:
        raise ManifestError(
            f"{path} declares {metadata.num_rows} rows and {size_bytes} bytes; at most {MAX_ROWS} rows and "
            f"{MAX_TABLE_BYTES} bytes are read. Split it."
        )
    unknown = [name for name in names if name not in MANIFEST_SCHEMA.names]
    if unknown or "uri" not in names or len(set(names)) != len(names):
        what = f"columns {unknown[:10]} are not known" if unknown else "a column 'uri' is needed, and no name twice"
        raise ManifestError(f"{path}: {what}; docs/datasets.md lists the columns: {', '.join(MANIFEST_SCHEMA.names)}.")
    leaves = [metadata.schema.column(index) for index in range(len(metadata.schema))]
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]


def _checked(path: Path, batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for name in batch.schema.names:
        column, wanted = batch[name], MANIFEST_SCHEMA.field(name).type
        _check_texts(path, name, column)
        try:
            columns.append(_without_dictionaries(column).cast(wanted))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise ManifestError(
                f"{path}: column {name!r} has type {column.type}, which does not become {wanted} ({error}). Cast it."
            ) from error
    checked = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    checked.validate(full=True)  # text that is not UTF-8, which Parquet readers let pass
    return checked


def _check_texts(path: Path, name: str, column: pa.Array) -> None:
    for part in column.flatten() if pa.types.is_struct(column.type) else [column]:
        longest = pc.max(pc.binary_length(part.dictionary)).as_py() if pa.types.is_dictionary(part.type) else None
        if longest is not None and longest > MAX_TEXT:
            raise ManifestError(f"{path}: a text in column {name!r} has {longest} bytes; at most {MAX_TEXT} are read.")


def _without_dictionaries(column: pa.Array) -> pa.Array:
    if not pa.types.is_struct(column.type):
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    names = [column.type.field(index).name for index in range(column.type.num_fields)]
    parts = [_without_dictionaries(part) for part in column.flatten()]
    return pa.StructArray.from_arrays(parts, names, mask=column.is_null())


def check_rows(rows: Sequence[Row], place: Callable[[int], str]) -> None:
    """Hold a user's rows to the rules that their types do not say.

    Args:
        rows: of the user.
        place: what to call a row by its index.

    Raises:
        ManifestError: no uri, a path that leaves the root, a content key, label, ground sample distance, tile or
            transform that cannot be, or a view that stands there twice, as far as the rows tell; names the place.
    """
    for index, row in enumerate(rows):
        try:
            _check_row(row)
        except ManifestError as error:
            raise ManifestError(f"{place(index)}: {error}") from error
    _check_once(rows, place)


def _check_row(row: Row) -> None:
    if row.get("uri") is None:
        raise ManifestError("a row has no uri; every view needs its image's path.")
    for column in ("uri", "mask_uri"):
        if row.get(column) is not None:
            check_relative_uri(row[column])
    key = row.get("image_sha256")
    if key is not None and not CONTENT_KEY.fullmatch(key):
        raise ManifestError(
            f"image_sha256 {key!r} of {row['uri']!r}: write 64 lower-case hexadecimal digits, or "
            "'stat:<bytes>-<mtime in ns>', or leave it empty to have it computed."
        )
    if row.get("label") is not None and not 0 <= row["label"] < MAX_CLASSES:
        raise ManifestError(
            f"label {row['label']} of {row['uri']!r}: labels go from 0 to {MAX_CLASSES - 1}. Renumber them."
        )
    if row.get("ground_sample_distance_m") is not None:
        check_ground_sample_distance(row["ground_sample_distance_m"])
    check_tile(row, None)


def _check_once(rows: Sequence[Row], place: Callable[[int], str]) -> None:
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        view = {name: row.get(name) for name in ("uri", "image_sha256", "tile", "transform")}
        before = first.setdefault(repr(view), index)
        if before != index:
            raise ManifestError(
                f"{place(index)}: a view of {row['uri']!r} stands in the manifest twice, first in "
                f"{place(before).rpartition(', ')[2]}; remove one of the rows."
            )


def _with_class_names(spec: DatasetSpec, table: pa.Table) -> DatasetSpec:
    """Number the classes where nobody named them; refuse labels and masks that stated names cannot explain."""
    highest: Any = pc.max(table["label"]).as_py() if "label" in table.column_names else None
    has_masks = "mask_uri" in table.column_names and table["mask_uri"].null_count < table.num_rows
    if has_masks and not spec.classes:
        raise ManifestError(
            'masks need class names; write a dataset.json beside the manifest with {"classes": ["sky", ...], '
            '"void": 11}, or give --classes and --void.'
        )
    if highest is not None and not spec.classes:
        names = tuple(str(number) for number in range(highest + 1))
        return replace(spec, classes=names)
    if highest is not None and highest >= spec.n_classes:
        raise ManifestError(
            f"label {highest} has no name: {spec.n_classes} classes are stated. Add its name to --classes or "
            "dataset.json."
        )
    return spec


def check_views(table: pa.Table, given: set[str]) -> None:
    """Refuse view ids that are not those of their views, and a view that stands there twice.

    Raises:
        ManifestError: names the first.
    """
    made = table["view_id"].to_pylist()
    wrong = given - set(made)
    if wrong:
        raise ManifestError(
            f"view_id {min(wrong)!r} is not that of its image, tile and transform; leave the column out, it is "
            "computed."
        )
    keys = list(zip(table["uri"].to_pylist(), made, strict=True))
    if len(set(keys)) != len(keys):
        uri = next(key[0] for index, key in enumerate(keys) if index and keys[index - 1] == key)
        raise ManifestError(f"a view of {uri!r} stands in the manifest twice; remove one of the rows.")
