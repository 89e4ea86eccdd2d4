"""The columns that a condition, a table or a coordinate may name: the manifest's, and three that come with the rows.

| column | meaning |
| --- | --- |
| `row` | the row's number, its address in every array |
| `valid` | whether the row has tokens |
| `class_name` | the name of the label's class; null without a label, and for void |
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from feature_store.datasets import manifest_batches
from feature_store.errors import QueryError
from feature_store.manifest import MANIFEST_SCHEMA
from feature_store.token_reader import RowNumbers

if TYPE_CHECKING:
    import feature_store.reader

ADDED_FIELDS = (pa.field("row", pa.int64()), pa.field("valid", pa.bool_()), pa.field("class_name", pa.string()))
_ROWS_PER_BATCH = 1 << 17
_SHOWN_NAMES = 5
_SHOWN_CHARACTERS = 60
COLUMNS = pa.schema([*ADDED_FIELDS, *MANIFEST_SCHEMA])


def shortened(name: str) -> str:
    """A name that a user gave, short enough for one line."""
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."


def column_schema(names: Sequence[str]) -> pa.Schema:
    """The Arrow schema of some columns, in the order given.

    Raises:
        QueryError: there is no such column, or one is named twice.
    """
    unknown = sorted(set(names) - set(COLUMNS.names))
    if unknown:
        shown = f"{[shortened(name) for name in unknown[:_SHOWN_NAMES]]}"
        shown += f" and {len(unknown) - _SHOWN_NAMES} more" if len(unknown) > _SHOWN_NAMES else ""
        raise QueryError(f"there are no columns {shown}, only {', '.join(COLUMNS.names)}.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise QueryError(f"columns name one twice, {twice!r}; name each once.")
    return pa.schema([COLUMNS.field(name) for name in names])


def column_batches(
    features: "feature_store.reader.FeatureSet", names: Sequence[str], rows: RowNumbers | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns of some rows, batch by batch; no other column is read.

    Args:
        features: the feature set.
        names: of the columns.
        rows: ascending; None for all.

    Yields:
        Batches in the order of rows; their row counts add up to the rows asked for.

    Raises:
        QueryError: there is no such column.
        CorruptError: the manifest cannot be read, or was changed.
    """
    schema = column_schema(names)
    first = 0
    for n_rows, batch in _stored(features, names):
        stop = first + n_rows
        numbers = np.arange(first, stop)
        if rows is not None:
            numbers = rows[slice(*np.searchsorted(rows, [first, stop]))]
        places = None if len(numbers) == n_rows else pa.array(numbers - first)
        first = stop
        if len(numbers):
            chosen = batch if places is None else {name: column.take(places) for name, column in batch.items()}
            arrays = [_column(features, chosen, numbers, name) for name in names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _stored(
    features: "feature_store.reader.FeatureSet", names: Sequence[str]
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """The manifest's columns behind `names`, as row counts with arrays; where there are none, no file is opened."""
    behind = ["label" if name == "class_name" else name for name in names]
    stored = list(dict.fromkeys(name for name in behind if name in MANIFEST_SCHEMA.names))
    if stored:
        for batch in manifest_batches(features.root, features.dataset, stored):
            yield batch.num_rows, dict(zip(stored, batch.columns, strict=True))
    else:
        for start in range(0, features.spec.n_rows, _ROWS_PER_BATCH):
            yield min(_ROWS_PER_BATCH, features.spec.n_rows - start), {}


def _column(
    features: "feature_store.reader.FeatureSet", stored: dict[str, pa.Array], rows: RowNumbers, name: str
) -> pa.Array:
    if name == "row":
        return pa.array(rows)
    if name == "valid":
        return pa.array(features.valid[rows])
    if name == "class_name":
        return _class_names(stored["label"], features.dataset.spec.classes)
    return stored[name]


def _class_names(labels: pa.Array, classes: Sequence[str]) -> pa.Array:
    named = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(classes)))
    return pa.array(classes, pa.string()).take(pc.if_else(named, labels, pa.scalar(None, labels.type)))


def numbered_texts(column: pa.ChunkedArray) -> Int64[np.ndarray, " rows"]:
    """A number for each text, without nulls: how many smaller ones there are that differ from each other.

    Millions of texts cost eight bytes each here, where a dictionary of them costs more than the texts.
    """
    whole = column.combine_chunks()
    order = pc.sort_indices(whole).to_numpy(zero_copy_only=False)
    numbers = np.zeros(len(order), dtype=np.int64)
    for start in range(1, len(order), _ROWS_PER_BATCH):
        places = order[start - 1 : start + _ROWS_PER_BATCH]
        texts = whole.take(pa.array(places))
        changes = pc.not_equal(texts.slice(1), texts.slice(0, len(texts) - 1)).to_numpy(zero_copy_only=False)
        numbers[places[1:]] = numbers[places[0]] + np.cumsum(changes)
    return numbers


def dense_column(column: Any) -> np.ndarray[Any, Any]:
    """A column as a NumPy array without nulls, for libraries whose arrays have none.

    Returns:
        Integers with -1, floats with NaN, booleans with False, and text (as objects) with "" where there is no value.

    Raises:
        QueryError: a column of lists or structures, which no flat array holds.
    """
    kind = column.type
    if pa.types.is_nested(kind):
        raise QueryError(f"a column of type {kind} does not fit a flat array; name flat columns, or use to_arrow().")
    if pa.types.is_string(kind):
        return np.asarray(pc.fill_null(column, "").to_pylist(), dtype=object)
    missing = False if pa.types.is_boolean(kind) else -1 if pa.types.is_integer(kind) else float("nan")
    dense: np.ndarray[Any, Any] = pc.fill_null(column, pa.scalar(missing, kind)).to_numpy(zero_copy_only=False)
    return dense
