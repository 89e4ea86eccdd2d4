"""`manifest:FILE`: a user's own Parquet, CSV, TSV or JSON lines, which need no more than a column `uri`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_store.errors import ManifestError
from feature_store.manifest import MANIFEST_SCHEMA, DatasetSpec, check_ground_sample_distance, check_relative_uri
from feature_store.manifest_order import Columns, ordered_manifest, row_order, take_rows
from pipelines.datasets.assemble import Row, assemble_dataset, check_tile, with_findings
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.description import MAX_CLASSES, Description, describe
from pipelines.datasets.findings import Finding, finding
from pipelines.datasets.labels import number_labels, plain_splits
from pipelines.datasets.manifest_columns import (
    keys_under,
    needs_images,
    repeated_view,
    require_given_ids,
    rows_of_first_images,
    rows_to_look_at,
    wrong_view_id,
)
from pipelines.datasets.scan import Progress, existing_folder
from pipelines.datasets.text_table import (
    MAX_FILE_BYTES,
    MAX_ROWS,
    MAX_TEXT,
    TEXT_SUFFIXES,
    read_text_table,
    separator_in_header,
)
from pipelines.datasets.user_paths import plain_paths

MAX_TABLE_BYTES = 8 << 30
MAX_PARQUET_ROWS = 20_000_000
_PARQUET_SUFFIXES = (".parquet", ".pq")
_PARQUET_MAGIC = b"PAR1"
_SHOWN_CHARACTERS = 60
_ROWS_PER_BATCH = 8192
_VALUE_BYTES = 8
CONTENT_KEY = re.compile(r"[0-9a-f]{64}|stat:[0-9]{1,20}-[0-9]{1,20}(@[0-9a-f]{16})?|uri:[0-9a-f]{64}")


def open_manifest_file(path: Path, options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """A dataset from a table of the user's making.

    Columns are those of `MANIFEST_SCHEMA`, all optional but `uri`; others are passed over. A label is a class number or
    a class name, and a path is relative to the root or an absolute one inside it. Content keys that are missing are
    computed; those that are given are taken as they stand. A `view_id` is checked against what it must be.

    Args:
        path: the file: CSV (`.csv`), TSV (`.tsv`), JSON lines (`.jsonl`, `.ndjson`), or Parquet under any other name;
            a `dataset.json` beside it is read.
        options: the user's; `root` is the folder that paths are relative to, by default the file's own.
        progress: called with (images done, images in all).

    Raises:
        ManifestError: not of its format, over the bounds, without a column `uri`, a value of the wrong type, an
            absolute path outside the root, a label that the classes do not explain, or a view that stands there twice.
    """
    if not path.is_file():
        raise ManifestError(
            f"dataset 'manifest:{path}': there is no such file. Give a Parquet, .csv, .tsv or .jsonl file."
        )
    given_root = options.root or path.parent
    root = existing_folder(given_root, source=f"manifest:{path}")
    table, place, others = _read(path)
    for column in ("uri", "mask_uri"):
        if column in table.column_names:
            # With links resolved and as the user wrote it: absolute paths may be spelled in either way.
            paths = plain_paths(table[column], (given_root.absolute(), root), place)
            table = table.set_column(table.column_names.index(column), column, paths)
    if "split" in table.column_names:
        splits = plain_splits(table["split"])
        table = table.set_column(table.column_names.index("split"), "split", splits)
    described = describe(path.parent, options)
    table, spec, of_labels = _with_class_numbers(table, described.spec, place)
    described = replace(described, spec=spec)
    for index, row in rows_to_look_at(table, CONTENT_KEY.pattern):
        _check_at(row, place(index))
    if options.tile is not None and "tile" in table.column_names and table["tile"].null_count < table.num_rows:
        raise ManifestError(f"{path} has tiles of its own; leave out --tile {options.tile}, or the column 'tile'.")
    columns = {name: table[name] for name in table.column_names}
    del table  # the columns are taken apart from here on, so that memory holds each once
    _arrange(columns, place, options)
    keys = columns.get("image_sha256")
    keys_stated = keys is not None and keys.null_count < len(keys)
    if options.tile is None and not needs_images(columns):
        dataset = with_findings(Dataset(spec=spec, table=_made_of(columns, root), root=root, rules=options.rules))
    else:
        dataset = _with_facts_of_images(root, columns, described, options, progress)
    passed_over = finding("passed_over", "columns that no manifest has", others)
    return replace(dataset, keys_stated=keys_stated, findings=(*passed_over, *of_labels, *dataset.findings))


def _arrange(columns: Columns, place: Callable[[int], str], options: DatasetOptions) -> None:
    """Put a user's rows into their order, refuse a view that stands there twice, and keep those that are asked for."""
    order = row_order(columns)
    if order is not None:
        take_rows(columns, order)
    twice = repeated_view(columns)
    if twice is not None:
        before, index = (number if order is None else int(order[number]) for number in twice)
        raise _stands_twice(columns["uri"][twice[0]].as_py(), place, index, before)
    if options.limit_per_split is not None:
        take_rows(columns, rows_of_first_images(columns, options.limit_per_split))


def _made_of(columns: Columns, root: Path) -> pa.Table:
    """The manifest, where every content key is given."""
    columns["image_sha256"] = keys_under(root, columns["image_sha256"])
    given = columns.pop("view_id", None)
    table = ordered_manifest(columns)
    if given is not None:
        require_given_ids(given, table["view_id"])
    return table


def _with_facts_of_images(
    root: Path, columns: Columns, described: Description, options: DatasetOptions, progress: Progress | None
) -> Dataset:
    """The dataset where images must be looked at, which costs far more than the dictionaries that rows become here."""
    n_rows = len(columns["uri"])
    if n_rows > MAX_ROWS:
        raise ManifestError(
            f"{n_rows} rows need their images looked at; at most {MAX_ROWS} may. State every image_sha256 and leave "
            "out masks and --tile, or split the manifest."
        )
    rows: list[Row] = pa.table(columns).to_pylist()
    dataset = assemble_dataset(
        root,
        rows,
        described.spec,
        replace(options, limit_per_split=None),
        progress,
        mask_values=described.mask_values,
    )
    check_views(dataset.table, {row["view_id"] for row in rows if row.get("view_id")})
    return dataset


def _stands_twice(uri: str, place: Callable[[int], str], index: int, before: int) -> ManifestError:
    return ManifestError(
        f"{place(index)}: a view of {uri!r} stands in the manifest twice, first in "
        f"{place(before).rpartition(', ')[2]}; remove one of the rows."
    )


def _read(path: Path) -> tuple[pa.Table, Callable[[int], str], list[str]]:
    """The table, what to call each of its rows, and the columns of the file that no manifest has."""
    if path.suffix.lower() not in TEXT_SUFFIXES:
        _require_parquet(path)
        table, others = read_manifest_table(path)
        return table, lambda index: f"{path}, row {index}", others
    types = {field.name: field.type for field in MANIFEST_SCHEMA} | {"label": pa.string()}
    read = read_text_table(path, types)
    _require_uri(path, read.names)
    return read.table, lambda index: f"{path}, line {read.lines[index]}", [n for n in read.names if n not in types]


def _require_parquet(path: Path) -> None:
    """Refuse a table of text under a name that does not say how it is to be read."""
    if path.suffix.lower() in _PARQUET_SUFFIXES:
        return
    with path.open("rb") as file:
        if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
            return
    ending = f"its name ends in {path.suffix!r}" if path.suffix else "its name has no ending"
    raise ManifestError(
        f"{path} is no Parquet, and {ending}, which does not say how to read it. Read as text are .csv (separated by "
        "commas), .tsv (by tabs), .jsonl and .ndjson (one JSON object a line): rename the file to what it is."
    )


def _require_uri(path: Path, names: Sequence[str]) -> None:
    in_cells = path.suffix.lower() in (".csv", ".tsv")
    separator = separator_in_header(names, "uri") if in_cells and "uri" not in names else None
    if separator is not None:
        raise ManifestError(
            f"{path}: its header {names[0][:_SHOWN_CHARACTERS]!r} is separated by {separator!r}, and {path.suffix} is "
            f"read with {'tabs' if path.suffix.lower() == '.tsv' else 'commas'}. Separate by commas in a .csv, or by "
            "tabs in a .tsv."
        )
    if "uri" not in names:
        raise ManifestError(
            f"{path}: a column 'uri' is needed, the path of each image; it has {list(names)[:10]}. Rename the column "
            "of paths; docs/datasets.md lists all columns."
        )


def read_manifest_table(path: Path) -> tuple[pa.Table, list[str]]:
    """Read a stranger's Parquet in bounded memory, each column cast to the schema's type, a label to text.

    Returns:
        The columns of a manifest that are there, and the names of the others.

    Raises:
        ManifestError: see `open_manifest_file`.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read. Split it.")
    try:
        texts, names = _check_declared(path)
        known = [name for name in names if name in MANIFEST_SCHEMA.names]
        # In a dictionary, a text of a million rows is held once and can be measured before it is spelled out.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            batches = [_checked(path, batch) for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH, columns=known)]
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(
            f"{path} cannot be read as Parquet: {error}. Write it with pyarrow, pandas or DuckDB."
        ) from error
    if not batches:
        raise ManifestError(f"{path} has no rows; a dataset needs at least one image.")
    return pa.Table.from_batches(batches), [name for name in names if name not in known]


def _check_declared(path: Path) -> tuple[list[str], list[str]]:
    """Hold what the file's footer declares to the bounds; the paths of its columns of text, and its columns' names."""
    metadata = pq.read_metadata(path)
    names = metadata.schema.to_arrow_schema().names
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    # Both, since repeated values take next to nothing in the file and their full width in memory.
    n_values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    size_bytes = max(sum(group.total_byte_size for group in groups), n_values * _VALUE_BYTES)
    if metadata.num_rows > MAX_PARQUET_ROWS or size_bytes > MAX_TABLE_BYTES:
        raise ManifestError(
            f"{path} declares {metadata.num_rows} rows and {size_bytes} bytes; at most {MAX_PARQUET_ROWS} rows and "
            f"{MAX_TABLE_BYTES} bytes are read. Split it."
        )
    if len(set(names)) != len(names):
        raise ManifestError(f"{path} has a column twice among {names[:20]}; name each once.")
    _require_uri(path, names)
    leaves = [metadata.schema.column(index) for index in range(len(metadata.schema))]
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"], names


def _checked(path: Path, batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for name in batch.schema.names:
        column, wanted = batch[name], MANIFEST_SCHEMA.field(name).type
        if name == "label":
            columns.append(_label_texts(path, column))
            continue
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


def _label_texts(path: Path, column: pa.Array) -> pa.Array:
    """Class numbers or names, as text; see `number_labels`."""
    _check_texts(path, "label", column)
    plain = _without_dictionaries(column)
    try:
        if pa.types.is_floating(plain.type):  # pandas makes floats of whole numbers with gaps
            plain = plain.cast(pa.int64())
        if not (pa.types.is_integer(plain.type) or pa.types.is_string(plain.type) or pa.types.is_null(plain.type)):
            plain = plain.cast(pa.int64())
        return plain.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ManifestError(
            f"{path}: column 'label' has type {column.type}, which is neither whole numbers nor names ({error}). "
            "Cast it."
        ) from error


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
        _check_at(row, place(index))
    _check_once(rows, place)


def _check_at(row: Row, place: str) -> None:
    try:
        _check_row(row)
    except ManifestError as error:
        raise ManifestError(f"{place}: {error}") from error


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
            raise _stands_twice(row["uri"], place, index, before)


def _with_class_numbers(
    table: pa.Table, spec: DatasetSpec, place: Callable[[int], str]
) -> tuple[pa.Table, DatasetSpec, tuple[Finding, ...]]:
    """Number the labels, and take class names from them where nobody stated any; masks need stated names."""
    has_masks = "mask_uri" in table.column_names and table["mask_uri"].null_count < table.num_rows
    if has_masks and not spec.classes:
        raise ManifestError(
            'masks need class names; write a dataset.json beside the manifest with {"classes": ["sky", ...], '
            '"void": 11}, or give --classes and --void.'
        )
    if "label" not in table.column_names:
        return table, spec, ()
    labels = number_labels(table["label"], spec.classes, place)
    table = table.set_column(table.column_names.index("label"), "label", labels.numbers)
    return table, replace(spec, classes=labels.classes), labels.findings


def check_views(table: pa.Table, given: set[str]) -> None:
    """Refuse view ids that are not those of their views, and a view that stands there twice.

    Raises:
        ManifestError: names the first.
    """
    made = table["view_id"].to_pylist()
    wrong = given - set(made)
    if wrong:
        raise wrong_view_id(min(wrong))
    keys = list(zip(table["uri"].to_pylist(), made, strict=True))
    if len(set(keys)) != len(keys):
        uri = next(key[0] for index, key in enumerate(keys) if index and keys[index - 1] == key)
        raise ManifestError(f"a view of {uri!r} stands in the manifest twice; remove one of the rows.")
