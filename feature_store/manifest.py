"""The Arrow table of a dataset: one row a view, in one stated order, and the two digests of its content.

The first group of columns decides pixels, and so features; the second is what only evaluators read. Correcting a label
changes the annotations digest and no feature; changing a pixel changes the views digest and with it every identity.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from feature_store.canonical import digest_of
from feature_store.errors import ManifestError
from feature_store.masks import Mask, checked_mask

TILE_AXES = ("x", "y", "width", "height")
TILE_TYPE = pa.struct([(name, pa.int32()) for name in TILE_AXES])
TRANSFORM_TYPE = pa.struct([("name", pa.string()), ("parameters", pa.string())])
OBJECT_TYPE = pa.struct(
    [
        ("box", pa.struct([(name, pa.float32()) for name in TILE_AXES])),
        ("instance_id", pa.int64()),
        ("category", pa.int32()),
        ("polygon", pa.list_(pa.float32())),
    ]
)
VIEW_FIELDS = (
    pa.field("view_id", pa.string(), nullable=False),
    pa.field("image_sha256", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("tile", TILE_TYPE),
    pa.field("transform", TRANSFORM_TYPE),
    pa.field("ground_sample_distance_m", pa.float64()),
)
ANNOTATION_FIELDS = (
    pa.field("split", pa.string()),
    pa.field("label", pa.int32()),
    pa.field("mask_uri", pa.string()),
    pa.field("sequence", pa.string()),
    pa.field("frame", pa.int32()),
    pa.field("objects", pa.list_(OBJECT_TYPE)),
    pa.field("source_view_id", pa.string()),
)
MANIFEST_SCHEMA = pa.schema([*VIEW_FIELDS, *ANNOTATION_FIELDS])
MAX_POLYGON_VALUES = 100_000
MAX_OBJECTS_PER_VIEW = 100_000
MAX_URI_BYTES = 4096
# The Earth's radius; larger ones would also leave the range of float32.
MAX_GROUND_SAMPLE_DISTANCE_M = 6.4e6
# What the content key of a view begins with that a grown dataset has no more: its row stays, and is invalid.
REMOVED = "removed:"
_ROWS_PER_UPDATE = 8192
_SHOWN_CHARACTERS = 200
# Begins with a slash, a dot or a scheme, holds two dots, or is empty.
_ODD_URI = r"^[/.]|\.\.|^[A-Za-z][A-Za-z0-9+.-]*://|^$"
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a dataset says of itself besides its rows.

    Attributes:
        name: how users call it; letters, digits, `.`, `_` and `-`.
        classes: names of the classes, no two alike; label and mask value `i` mean `classes[i]`.
        void: the mask value that carries no class, or None when every pixel has one.
        colours: one (red, green, blue) a class for pictures, or empty.
        license: as stated by the source.
        source: where the data comes from.
    """

    name: str
    classes: tuple[str, ...] = ()
    void: int | None = None
    colours: tuple[tuple[int, int, int], ...] = ()
    license: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ManifestError(
                f"dataset name {self.name!r}: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or "
                "digit."
            )
        _refuse_one_name_twice(self.classes)
        if self.void is not None and 0 <= self.void < len(self.classes):
            raise ManifestError(
                f"void label {self.void} is also class {self.classes[self.void]!r}; give void a value outside "
                f"0..{len(self.classes) - 1}."
            )
        if self.colours and len(self.colours) != len(self.classes):
            raise ManifestError(
                f"{len(self.colours)} colours for {len(self.classes)} classes; give one a class or none."
            )

    @property
    def n_classes(self) -> int:
        """How many classes there are, void apart."""
        return len(self.classes)


def _refuse_one_name_twice(classes: Sequence[str]) -> None:
    """Records keep their numbers by class name, so one of two classes of one name would be lost from every answer."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(classes):
        before = numbers.setdefault(name.strip(), number)
        if before != number:
            raise ManifestError(
                f"classes {before} and {number} are both called {name.strip()!r}, space around names apart; give each "
                "class a name of its own."
            )


def view_id(image_sha256: str, tile: Sequence[int] | None, transform: tuple[str, str] | None) -> str:
    """The name of a view: a digest of what decides its pixels.

    Args:
        image_sha256: the image's content key.
        tile: (x, y, width, height) in pixels, or None for the whole image.
        transform: (name, parameters as canonical JSON), or None when clean.

    Returns:
        32 hexadecimal digits.
    """
    return digest_of([image_sha256, list(tile) if tile else None, list(transform) if transform else None])[:32]


def manifest_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Build a manifest from dictionaries: fills `view_id`, sorts into row order, and checks every rule.

    Args:
        rows: one dictionary a view with at least `image_sha256` and `uri`; other columns may be missing.

    Returns:
        A table of `MANIFEST_SCHEMA` in row order: uri by bytes, then tile (x, y, width, height), then transform.

    Raises:
        ManifestError: no row, a column that manifests do not have, or a row breaks a rule.
    """
    complete = [_complete_row(row) for row in rows]
    complete.sort(key=_row_order)
    try:
        table = pa.Table.from_pylist(complete, schema=MANIFEST_SCHEMA)
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise ManifestError(f"a row does not fit the manifest's schema: {error}. See docs/datasets.md.") from error
    check_manifest(table)
    return table


def _complete_row(row: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(row) - set(MANIFEST_SCHEMA.names))
    if unknown:
        raise ManifestError(f"a row has columns {unknown}, and a manifest has {', '.join(MANIFEST_SCHEMA.names)}.")
    uri, key, tile, transform = (row.get(name) for name in ("uri", "image_sha256", "tile", "transform"))
    if not isinstance(uri, str) or not isinstance(key, str):
        raise ManifestError(f"a row has uri {uri!r} and image_sha256 {key!r}; every view needs both, as text.")
    check_relative_uri(uri)
    try:
        box = [tile[axis] for axis in TILE_AXES] if tile else None
        change = (transform["name"], transform["parameters"]) if transform else None
    except (KeyError, TypeError) as error:
        raise ManifestError(
            f"the view of {uri!r} has tile {tile!r} and transform {transform!r}; a tile has x, y, width and height, a "
            "transform name and parameters."
        ) from error
    return {**dict.fromkeys(MANIFEST_SCHEMA.names), **row, "view_id": view_id(key, box, change)}


def _row_order(row: dict[str, Any]) -> tuple[bytes, tuple[int, ...], tuple[str, ...]]:
    tile, transform = row["tile"], row["transform"]
    return (
        row["uri"].encode(),
        tuple(tile[axis] for axis in TILE_AXES) if tile else (),
        (transform["name"], transform["parameters"]) if transform else (),
    )


def check_manifest(table: pa.Table) -> None:
    """Hold a manifest, perhaps a stranger's, to its schema and rules.

    Raises:
        ManifestError: wrong schema, no rows, a nameless row, a path that leaves the root, a pixel of impossible size,
            half a tile, one image with two content keys, text that is not UTF-8, or lists beyond their bounds.
    """
    if not table.schema.equals(MANIFEST_SCHEMA):
        wrong = [f.name for f in MANIFEST_SCHEMA if f.name not in table.column_names or table.schema.field(f.name) != f]
        surplus = sorted(set(table.column_names) - set(MANIFEST_SCHEMA.names))
        raise ManifestError(
            f"the manifest's columns {wrong or surplus or table.column_names} differ from the schema; docs/datasets.md "
            "lists every column with its type, in order."
        )
    if table.num_rows == 0:
        raise ManifestError("the manifest has no rows; a dataset needs at least one image.")
    try:
        table.validate(full=True)
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except pa.ArrowException as error:
        raise ManifestError(f"the manifest is not a sound Arrow table ({error}); write it again.") from error
    for column in ("view_id", "image_sha256", "uri"):
        if table[column].null_count:
            raise ManifestError(f"column {column!r} has {table[column].null_count} nulls; every view needs it.")
    for column in ("uri", "mask_uri"):
        for chunk in table[column].chunks:
            for uri in chunk.filter(suspicious_uris(chunk)).to_pylist():
                check_relative_uri(uri)
    _check_one_key(table)
    distances = table["ground_sample_distance_m"]
    inside = pc.and_(pc.greater(distances, 0), pc.less_equal(distances, MAX_GROUND_SAMPLE_DISTANCE_M))
    for distance_m in distances.filter(pc.invert(inside)).slice(0, 1).to_pylist():
        check_ground_sample_distance(distance_m)
    for batch in table.select(["tile", "transform", "objects"]).to_batches():
        _check_nested(batch)


def _check_one_key(table: pa.Table) -> None:
    """Refuse a file of which two rows say different content: at most one of them can be true."""
    # The place of a view that is gone speaks of an earlier content of the file.
    removed = pc.starts_with(table["image_sha256"], REMOVED)
    present = table.select(["uri", "image_sha256"])
    present = present.filter(pc.invert(removed)) if pc.any(removed).as_py() else present
    if _rows_of_files_agree(present["uri"], present["image_sha256"]):
        return
    found = present.group_by("uri").aggregate([("image_sha256", "min"), ("image_sha256", "max")])
    differing = found.filter(pc.not_equal(found["image_sha256_min"], found["image_sha256_max"]))
    if differing.num_rows:
        first = differing.sort_by("uri").slice(0, 1).to_pylist()[0]
        keys = f"{first['image_sha256_min'][:24]!r} and {first['image_sha256_max'][:24]!r}"
        raise ManifestError(
            f"image {first['uri'][:_SHOWN_CHARACTERS]!r} has two content keys in the manifest, {keys}, and a file has "
            "one content; correct the rows, or leave image_sha256 out of all of them to have it computed."
        )


def _rows_of_files_agree(uris: pa.ChunkedArray, keys: pa.ChunkedArray) -> bool:
    """Whether the rows of each file stand together and have one key; told in less memory than a group a file takes."""
    if len(uris) < 2:
        return True
    n_pairs = len(uris) - 1
    before, after = uris.slice(0, n_pairs), uris.slice(1)
    alike = pc.or_(pc.less(before, after), pc.equal(keys.slice(0, n_pairs), keys.slice(1)))
    return bool(pc.all(pc.and_(alike, pc.less_equal(before, after))).as_py())


def _check_nested(batch: pa.RecordBatch) -> None:
    for name in ("tile", "transform"):
        for field, part in zip(batch[name].type, batch[name].flatten(), strict=True):
            missing = part.null_count - batch[name].null_count
            if missing:
                raise ManifestError(
                    f"{missing} rows have a {name} without {field.name!r}; fill it in, or leave all out."
                )
    objects = batch["objects"]
    _check_list_lengths(objects, "objects", MAX_OBJECTS_PER_VIEW)
    _check_list_lengths(pc.struct_field(pc.list_flatten(objects), "polygon"), "polygon", MAX_POLYGON_VALUES)


def _check_list_lengths(lists: pa.Array, name: str, limit: int) -> None:
    longest = pc.max(pc.list_value_length(lists)).as_py() if len(lists) else None
    if longest is not None and longest > limit:
        raise ManifestError(f"a row has {longest} values in {name!r}; at most {limit} are read. Thin them out.")


def check_relative_uri(uri: str) -> None:
    """Refuse a path that could lead out of the dataset's root.

    Raises:
        ManifestError: empty, too long, not Unicode, absolute, with `..`, a NUL or a URL scheme. A backslash and a
            colon are letters like any other: names unpacked from an archive of Windows hold them.
    """
    path = PurePosixPath(uri)
    if not path.parts or "\0" in uri or _SCHEME.match(uri) or path.is_absolute() or ".." in path.parts:
        raise ManifestError(
            f"path {uri[:_SHOWN_CHARACTERS]!r} is not inside the dataset's root; write it relative to the root, with "
            "'/', without '..'."
        )
    try:
        size_bytes = len(uri.encode())
    except UnicodeEncodeError as error:
        raise ManifestError(f"path {uri[:_SHOWN_CHARACTERS]!r} is not UTF-8; rename the file.") from error
    if size_bytes > MAX_URI_BYTES:
        raise ManifestError(
            f"path {uri[:_SHOWN_CHARACTERS]!r}... has {size_bytes} bytes; at most {MAX_URI_BYTES} are read. Shorten it."
        )


def suspicious_uris(uris: pa.Array) -> pa.Array:
    """Which of many paths `check_relative_uri` may refuse, by Arrow; it takes all others. Null where there is none."""
    odd = pc.match_substring_regex(uris, _ODD_URI)
    return pc.or_(pc.or_(odd, pc.match_substring(uris, "\0")), pc.greater(pc.binary_length(uris), MAX_URI_BYTES))


def check_ground_sample_distance(distance_m: float) -> None:
    """Refuse what cannot be the size of a pixel on the ground.

    Raises:
        ManifestError: not above 0, larger than the Earth's radius, or no number.
    """
    if not 0 < distance_m <= MAX_GROUND_SAMPLE_DISTANCE_M:
        raise ManifestError(
            f"ground_sample_distance_m {distance_m}: write the metres of ground a pixel, above 0 and at most "
            f"{MAX_GROUND_SAMPLE_DISTANCE_M:g}, or leave it empty where nobody knows."
        )


def removed_rows(table: pa.Table) -> Bool[np.ndarray, " rows"]:
    """Which rows are only the places of views that a grown dataset has no more."""
    found: np.ndarray[Any, Any] = pc.starts_with(table["image_sha256"], REMOVED).to_numpy()
    return found.astype(bool)


def views_digest(table: pa.Table) -> str:
    """Sha256 over what decides pixels, in row order; independent of files, chunking and the root path."""
    return _table_digest(table, [field.name for field in VIEW_FIELDS])


def annotations_digest(table: pa.Table, mask_digests: Iterable[str | None], spec: DatasetSpec) -> str:
    """Sha256 over what only evaluators read, in row order.

    Args:
        table: the manifest.
        mask_digests: one a row, see `mask_digest`; None for a row without a mask.
        spec: its classes and void label decide what mask values mean, so they are part of it.
    """
    columns = _table_digest(table, [field.name for field in ANNOTATION_FIELDS if field.name != "mask_uri"])
    masks = _table_digest(pa.table({"mask": pa.array(mask_digests, pa.string())}), ["mask"])
    return digest_of([columns, masks, list(spec.classes), spec.void])


def mask_digest(mask: Mask) -> str:
    """Sha256 of a mask's shape and values, whatever file format and width of integers it came in.

    Raises:
        ManifestError: not [height, width] of uint8 or uint16, empty, or too large.
    """
    content = np.ascontiguousarray(checked_mask(mask), dtype="<u2")
    return hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()


def _table_digest(table: pa.Table, columns: Sequence[str]) -> str:
    """In runs of rows that depend on their number alone, so that chunking does not count and memory is bounded."""
    digest = hashlib.sha256()
    for start in range(0, table.num_rows, _ROWS_PER_UPDATE):
        some = table.slice(start, _ROWS_PER_UPDATE)
        for name in columns:
            _feed(digest, name, pa.concat_arrays(some[name].chunks))
    return digest.hexdigest()


def _feed(digest: Any, path: str, array: pa.Array) -> None:
    """Add one column: its path, its nulls, then its values with nulls as zeros, so that no hidden bytes count."""
    # Parquet renames what is inside a list, so the type of a nested column is spelled by its leaves.
    kind = "list" if pa.types.is_list(array.type) else "struct" if pa.types.is_struct(array.type) else array.type
    digest.update(f"{path}\0{kind}\0{len(array)}\0".encode())
    digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_struct(array.type):
        for field, child in zip(array.type, array.flatten(), strict=True):
            _feed(digest, f"{path}.{field.name}", child)
    elif pa.types.is_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        digest.update(lengths.astype("<i8").tobytes())
        _feed(digest, f"{path}[]", pc.list_flatten(array))
    elif pa.types.is_string(array.type):
        texts = pc.fill_null(array, "")
        _, offsets, content = texts.buffers()
        ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
        digest.update(np.diff(ends).astype("<i8").tobytes())
        if content is not None:  # there is none where all texts are empty
            digest.update(memoryview(content)[ends[0] : ends[-1]])
    else:
        values = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
