"""`atlas`: the Parquet file that Embedding Atlas opens, with two coordinates and what is known of each point.

embedding-atlas FILE --x projection_x --y projection_y --text description --disable-projection
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.arrow_lists import fixed_lists
from feature_store.canonical import canonical_json
from feature_store.exports.atomic import appearing_file
from feature_store.exports.parquet import METADATA_KEY
from feature_store.exports.patch_rows import PATCH_FIELDS, patch_columns
from feature_store.exports.places import ExportRefusedError
from feature_store.exports.projection import project
from feature_store.exports.subject import Block, ExportSubject, Values

_FIELDS = (
    pa.field("row", pa.int64()),
    pa.field("view_id", pa.string()),
    pa.field("uri", pa.string()),
    pa.field("split", pa.string()),
    pa.field("class", pa.string()),
    pa.field("description", pa.string()),
    pa.field("tile_x", pa.int32()),
    pa.field("tile_y", pa.int32()),
)
_POINT_FIELDS = (pa.field("projection_x", pa.float32()), pa.field("projection_y", pa.float32()))


def write_atlas(
    subject: ExportSubject,
    place: Path,
    *,
    overwrite: bool,
    patches: bool = False,
    projection: str = "pca",
    seed: int = 0,
) -> None:
    """Write the file `place`.

    Args:
        subject: what to write.
        place: the file.
        overwrite: whether a file there gives way.
        patches: a point a patch instead of a point a view.
        projection: `pca`, `tsne`, or `none`, which puts the vectors there instead, for Embedding Atlas's own UMAP.
        seed: of t-SNE.

    Raises:
        ExportRefusedError: something stands at `place`, several vectors a view without `patches`, or no projection.
    """
    if patches != (subject.kind == "patches") or subject.kind == "registers":
        raise ExportRefusedError(
            f"a point is one vector: --kind cls or mean, or --kind patches with --rows patches; not {subject.kind!r}."
        )
    fields = [*_FIELDS, *(PATCH_FIELDS if patches else ())]
    width = subject.n_features
    fields += [pa.field("vector", pa.list_(pa.float32(), width))] if projection == "none" else _POINT_FIELDS
    schema = pa.schema(fields, metadata={METADATA_KEY: canonical_json(subject.record("atlas")).encode()})
    per_row = subject.row_shape[0] if patches else 1
    with appearing_file(place, overwrite=overwrite) as partial:
        points = None
        if projection != "none":
            points = project(lambda: _vectors(subject), len(subject.rows) * per_row, method=projection, seed=seed)
        done = 0
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for block in subject.blocks():
                columns = _columns(subject, block, per_row=per_row, patches=patches)
                stop = done + per_row * len(block.rows)
                if points is None:
                    columns["vector"] = fixed_lists(block.values.reshape(-1, width).astype(np.float32, copy=False))
                else:
                    columns |= {f"projection_{axis}": pa.array(points[done:stop, i]) for i, axis in enumerate("xy")}
                writer.write_table(pa.table(columns, schema=schema))
                done = stop


def _vectors(subject: ExportSubject) -> Iterator[Values]:
    for block in subject.blocks():
        yield block.values.reshape(-1, subject.n_features)


def _columns(subject: ExportSubject, block: Block, *, per_row: int, patches: bool) -> dict[str, pa.Array]:
    rows = block.manifest.select(["view_id", "uri", "split", "label", "tile"]).to_pylist()
    tiles = [row["tile"] or {"x": None, "y": None} for row in rows]
    names = [subject.class_name(row["label"]) for row in rows]
    columns = {
        "row": pa.array(block.rows),
        "view_id": pa.array([row["view_id"] for row in rows], pa.string()),
        "uri": pa.array([row["uri"] for row in rows], pa.string()),
        "split": pa.array([row["split"] for row in rows], pa.string()),
        "class": pa.array(names, pa.string()),
        "description": pa.array([_say(row["uri"], name) for row, name in zip(rows, names, strict=True)], pa.string()),
        "tile_x": pa.array([tile["x"] for tile in tiles], pa.int32()),
        "tile_y": pa.array([tile["y"] for tile in tiles], pa.int32()),
    }
    if patches:
        repeated = pa.array(np.repeat(np.arange(len(rows)), per_row))
        columns = {name: column.take(repeated) for name, column in columns.items()}
        columns |= patch_columns(subject, block)
    return columns


def _say(uri: str, name: str | None) -> str:
    """What the search of Embedding Atlas finds a point by."""
    return uri if name is None else f"{name} {uri}"
