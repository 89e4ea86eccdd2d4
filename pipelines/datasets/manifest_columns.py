"""A user's table of views, checked and sampled by whole columns: ten million rows never become dictionaries.

Arrow finds the rows that may break a rule; only those are looked at one by one, so that an error can say what is wrong.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from feature_store.errors import ManifestError
from feature_store.manifest import MAX_GROUND_SAMPLE_DISTANCE_M, suspicious_uris
from feature_store.manifest_order import ROWS_AT_ONCE, Columns, RowNumbers, image_numbers
from pipelines.datasets.assemble import Row
from pipelines.datasets.description import MAX_CLASSES
from pipelines.stat_key import STAT, key_under

_VIEW_COLUMNS = ("uri", "image_sha256", "tile", "transform")
_PLACE_COLUMNS = ("uri", "tile", "transform")


def rows_to_look_at(table: pa.Table, content_key: str) -> Iterator[tuple[int, Row]]:
    """Number and content of the rows that may break a rule which their types do not say, and of all others none.

    Args:
        table: of the user.
        content_key: the regular expression that every content key matches.
    """
    start = 0
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        found = np.zeros(batch.num_rows, dtype=bool)
        for name in batch.schema.names:
            found |= _suspicious(name, batch[name], content_key)
        places = np.flatnonzero(found)
        for place, row in zip(places.tolist(), batch.take(pa.array(places)).to_pylist(), strict=True):
            yield start + place, row
        start += batch.num_rows


def _suspicious(name: str, column: pa.Array, content_key: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows of a column that may break a rule; where there is no value, only a uri is missed."""
    if name == "uri":
        wrong = pc.or_(pc.is_null(column), suspicious_uris(column))
    elif name == "mask_uri":
        wrong = suspicious_uris(column)
    elif name == "image_sha256":
        wrong = pc.invert(pc.match_substring_regex(column, f"^({content_key})$"))
    elif name == "label":
        wrong = pc.or_(pc.less(column, 0), pc.greater_equal(column, MAX_CLASSES))
    elif name == "ground_sample_distance_m":
        inside = pc.and_(pc.greater(column, 0), pc.less_equal(column, MAX_GROUND_SAMPLE_DISTANCE_M))
        wrong = pc.invert(inside)
    elif name in ("tile", "transform"):
        wrong = column.is_valid()
    else:
        return np.zeros(len(column), dtype=bool)
    dense: np.ndarray[Any, np.dtype[np.bool_]] = pc.fill_null(wrong, name == "uri").to_numpy(zero_copy_only=False)
    return dense


def repeated_view(columns: Mapping[str, pa.ChunkedArray]) -> tuple[int, int] | None:
    """The numbers of the first two rows that are one view; None where no view stands there twice.

    Args:
        columns: rows in order, see `manifest_order.row_order`.
    """
    n_rows = len(columns["uri"])
    same = np.ones(max(0, n_rows - 1), dtype=bool)
    for name in _PLACE_COLUMNS:
        if name in columns:
            same &= _equals_next(columns[name])
    # Rows of one place may still have different keys. There are few of them: nobody lists an image twice on purpose.
    rows = np.flatnonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))
    seen: dict[str, int] = {}
    names = [name for name in _VIEW_COLUMNS if name in columns]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        views = pa.table({name: columns[name].take(pa.array(some)) for name in names}).to_pylist()
        for number, view in zip(some.tolist(), views, strict=True):
            before = seen.setdefault(repr(view), number)
            if before != number:
                return before, number
    return None


def _equals_next(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each value but the last equals the next one; nulls equal nulls."""
    if pa.types.is_struct(column.type):
        names = [field.name for field in column.type]
        parts = [_equals_next(pc.struct_field(column, name)) for name in names]
        return np.asarray(np.logical_and.reduce(parts), dtype=bool)
    before, after = column.slice(0, len(column) - 1), column.slice(1)
    equal = pc.fill_null(pc.equal(before, after), False).to_numpy().astype(bool)
    none = pc.and_(pc.is_null(before), pc.is_null(after)).to_numpy().astype(bool)
    return np.asarray(equal | none, dtype=bool)


def rows_of_first_images(columns: Columns, images_per_split: int) -> RowNumbers:
    """The rows of the first images of each split, taking labels in turn so that none is lost to the alphabet.

    Args:
        columns: rows in order, see `manifest_order.row_order`.
        images_per_split: how many images of each split to keep; all rows of an image stay or go together.

    Returns:
        The numbers of the rows that are kept, ascending.
    """
    images = image_numbers(columns["uri"])
    n_images = images[-1] + 1
    splits = _codes(columns.get("split"), len(images))
    labels = _codes(columns.get("label"), len(images))
    n_labels = int(labels.max()) + 1
    # Each image once for every split and label that it has, in the order of images. One array at a time: each has
    # as many numbers as there are rows.
    keys = (splits.astype(np.int64) * n_labels + labels) * n_images + images
    del labels
    first = np.sort(np.unique(keys, return_index=True)[1])
    group = keys[first] // n_images
    del keys
    split = splits[first]
    # Labels of a split take turns in the order in which each is met first.
    _, met_first, group_of = np.unique(group, return_index=True, return_inverse=True)
    order = np.lexsort((met_first[group_of], _place_in_group(group), split))
    kept = first[order[_place_in_group(split[order]) < images_per_split]]
    pairs = splits * n_images + images
    return np.flatnonzero(np.isin(pairs, pairs[kept]))


def _place_in_group(groups: RowNumbers) -> RowNumbers:
    """How many earlier entries have the same number."""
    order = np.argsort(groups, kind="stable")
    begins = np.flatnonzero(np.diff(groups[order], prepend=-1))
    counted = np.arange(len(groups)) - np.repeat(begins, np.diff(begins, append=len(groups)))
    places = np.empty(len(groups), dtype=np.int64)
    places[order] = counted
    return places


def _codes(column: pa.ChunkedArray | None, n_rows: int) -> Int32[np.ndarray, " rows"]:
    """A number for each distinct value of a column, 0 where there is none."""
    if column is None:
        return np.zeros(n_rows, dtype=np.int32)
    encoded = pc.dictionary_encode(column).combine_chunks()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.asarray(codes + 1, dtype=np.int32)


def keys_under(root: Path, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Content keys that a user's table states, those of size and time with their root; see `stat_key.key_under`."""
    chunks = []
    for start in range(0, len(keys), ROWS_AT_ONCE):
        some = keys.slice(start, ROWS_AT_ONCE)
        if pc.any(pc.starts_with(some, STAT)).as_py():
            chunks.append(pa.array([key_under(root, key) for key in some.to_pylist()], pa.string()))
        else:
            chunks += some.chunks
    return pa.chunked_array(chunks, pa.string())


def require_given_ids(given: pa.ChunkedArray, made: pa.ChunkedArray) -> None:
    """Refuse view ids of a user that are not those of their views.

    Raises:
        ManifestError: names the first.
    """
    wrong = pc.fill_null(pc.not_equal(given, made), False)
    if pc.any(wrong).as_py():
        raise wrong_view_id(given.filter(wrong)[0].as_py())


def wrong_view_id(name: str) -> ManifestError:
    """The error that says that a view id is not the one of its view."""
    return ManifestError(
        f"view_id {name!r} is not that of its image, tile and transform; leave the column out, it is computed."
    )


def needs_images(columns: Mapping[str, pa.ChunkedArray]) -> bool:
    """Whether an image must be looked at before the manifest can be made: for its key, or for the size of its mask."""
    keys, masks = columns.get("image_sha256"), columns.get("mask_uri")
    return keys is None or keys.null_count > 0 or (masks is not None and masks.null_count < len(masks))
