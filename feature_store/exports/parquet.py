"""`parquet`: one table, a row a view or a row a patch, the vector in a list column of float32."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.arrow_lists import fixed_lists, fixed_lists_type
from feature_store.canonical import canonical_json
from feature_store.exports.atomic import appearing_file
from feature_store.exports.patch_rows import PATCH_FIELDS, patch_columns
from feature_store.exports.places import ExportRefusedError
from feature_store.exports.subject import Block, ExportSubject
from feature_store.manifest import MANIFEST_SCHEMA

_VIEW_COLUMNS = (
    "view_id",
    "image_sha256",
    "uri",
    "tile",
    "transform",
    "split",
    "label",
    "mask_uri",
    "sequence",
    "frame",
)
METADATA_KEY = b"vitrine"


def write_parquet(subject: ExportSubject, place: Path, *, overwrite: bool, patches: bool = False) -> None:
    """Write the file `place`.

    Args:
        subject: what to write.
        place: the file.
        overwrite: whether a file there gives way.
        patches: a row a patch, with its place in the grid and its class by the mask, instead of a row a view.

    Raises:
        ExportRefusedError: something stands at `place`, or `patches` of a subject that has none.
    """
    if patches and subject.kind != "patches":
        raise ExportRefusedError(f"--rows patches of kind {subject.kind!r}: only --kind patches has a row a patch.")
    schema = _schema(subject, patches=patches)
    with (
        appearing_file(place, overwrite=overwrite) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=["uri", "split", "class"]) as writer,
    ):
        for block in subject.blocks():
            columns = table_columns(subject, block, patches=patches)
            writer.write_table(pa.table(columns, schema=schema))


def _schema(subject: ExportSubject, *, patches: bool) -> pa.Schema:
    shape = subject.row_shape[1:] if patches else subject.row_shape
    vector = fixed_lists_type(shape, np.dtype(np.float32))
    fields = [pa.field("row", pa.int64()), *(MANIFEST_SCHEMA.field(name) for name in _VIEW_COLUMNS)]
    fields += [pa.field("class", pa.string()), *(PATCH_FIELDS if patches else ()), pa.field("vector", vector)]
    return pa.schema(fields, metadata={METADATA_KEY: canonical_json(subject.record("parquet")).encode()})


def table_columns(subject: ExportSubject, block: Block, *, patches: bool) -> dict[str, pa.Array]:
    """The columns of a block but for its vectors' nesting, which the shape of the values says."""
    manifest = block.manifest.select(list(_VIEW_COLUMNS)).combine_chunks()
    names = [subject.class_name(label) for label in manifest["label"].to_pylist()]
    columns: dict[str, pa.Array] = {"row": pa.array(block.rows), **{n: _one_chunk(manifest[n]) for n in _VIEW_COLUMNS}}
    columns["class"] = pa.array(names, pa.string())
    values = block.values
    if patches:
        n_patches = values.shape[1]
        repeated = pa.array(np.repeat(np.arange(len(block.rows)), n_patches))
        columns = {name: column.take(repeated) for name, column in columns.items()}
        columns |= patch_columns(subject, block)
        values = values.reshape(-1, values.shape[-1])
    columns["vector"] = fixed_lists(values.astype(np.float32, copy=False))
    return columns


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
