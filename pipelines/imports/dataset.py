"""The dataset of imported vectors: their rows as a manifest, with or without the images at hand."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_store.manifest import TILE_AXES, DatasetSpec, manifest_table
from pipelines.datasets.assemble import Row, assemble_dataset
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.description import describe, read_description
from pipelines.datasets.labels import NumberedLabels, number_labels
from pipelines.datasets.manifest_file import CONTENT_KEY, check_rows, check_views
from pipelines.datasets.scan import Progress, existing_folder
from pipelines.datasets.user_paths import plain_paths
from pipelines.imports.source_arrays import ImportRefusedError, Positions
from pipelines.imports.vectors import Vectors

_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_Key = tuple[str, tuple[int, ...] | None, tuple[str, str] | None]


@dataclass(frozen=True, kw_only=True)
class ImportedDataset:
    """A manifest, and which vector belongs to each of its rows.

    Attributes:
        dataset: what is registered in the store.
        positions: of each row of the manifest, the place of its vector in the source.
    """

    dataset: Dataset
    positions: Positions


def imported_dataset(
    vectors: Vectors, options: DatasetOptions, *, root: Path | None, progress: Progress | None = None
) -> ImportedDataset:
    """Make the manifest of imported vectors.

    With a root, images are keyed by their content and masks are read, as for an extraction: the same images give the
    same views, so that imported and extracted features of them stand side by side. Without one, a view is known by its
    name.

    Args:
        vectors: what the layout gave.
        options: name, classes and void of the dataset.
        root: the folder of images and masks, or None.
        progress: called with (images done, images in all).

    Raises:
        ImportRefusedError: an image that cannot be read under the root, or masks without a root.
        ManifestError: a row breaks a rule, or a view stands there twice.
    """
    options = replace(options, name=options.name or (_as_name(vectors.dataset) if vectors.dataset else None))
    rows = _relative(vectors.rows, root)
    folder = None if root is None else existing_folder(root, source=str(root))
    stated = options.classes or vectors.classes or (read_description(folder).get("classes") if folder else None)
    rows, labels = _with_class_numbers(rows, stated)
    classes = labels.classes
    check_rows(rows, _place)
    given = {row["view_id"] for row in rows if row.get("view_id")}
    if folder is None:
        name = options.name or _as_name(vectors.name) or "imported"
        dataset = _without_images(
            rows, DatasetSpec(name=name, classes=classes, void=next(iter(options.void_values or ()), None))
        )
    else:
        described = describe(folder, replace(options, classes=classes or None))
        dataset = assemble_dataset(folder, rows, described.spec, options, progress, mask_values=described.mask_values)
        _require_readable(dataset, folder)
    dataset = replace(dataset, findings=(*labels.findings, *dataset.findings))
    check_views(dataset.table, given)
    places = {_key(row): index for index, row in enumerate(rows)}
    keys = dataset.table.select(["uri", "tile", "transform"]).to_pylist()
    return ImportedDataset(dataset=dataset, positions=np.array([places[_key(row)] for row in keys], dtype=np.int64))


def _place(index: int) -> str:
    return f"row {index} of the vectors"


def _with_class_numbers(rows: Sequence[Row], stated: tuple[str, ...] | None) -> tuple[list[Row], NumberedLabels]:
    texts = [None if row.get("label") is None else str(row["label"]) for row in rows]
    labels = number_labels(pa.array(texts, pa.string()), stated, _place)
    numbers = labels.numbers.to_pylist()
    return [{**row, "label": number} for row, number in zip(rows, numbers, strict=True)], labels


def _as_name(text: str) -> str | None:
    """A text of a stranger's as the name of a dataset; None where nothing of it can be one."""
    return _NO_NAME.sub("-", text).lstrip("._-")[:64] or None


def _key(row: Row) -> _Key:
    tile, transform = row.get("tile"), row.get("transform")
    return (
        row["uri"],
        None if tile is None else tuple(tile[axis] for axis in TILE_AXES),
        None if transform is None else (transform["name"], transform["parameters"]),
    )


def _relative(rows: Sequence[Row], root: Path | None) -> list[Row]:
    """Rows whose paths are relative: to the root, or without one to the deepest folder that all share."""
    absolute = [row["uri"] for row in rows if isinstance(row.get("uri"), str) and row["uri"].startswith("/")]
    if not absolute:
        # `./a.png` and `a.png` are one image.
        paths = pa.chunked_array([pa.array([row.get("uri") for row in rows], pa.string())])
        return [{**row, "uri": uri} for row, uri in zip(rows, plain_paths(paths, (), _place).to_pylist(), strict=True)]
    if len(absolute) != len(rows):
        raise ImportRefusedError(
            f"{len(absolute)} of {len(rows)} paths are absolute, such as {absolute[0]!r}; write all of them relative "
            "to one folder."
        )
    top = str(root.expanduser().absolute()) if root is not None else os.path.commonpath(map(os.path.dirname, absolute))
    outside = [uri for uri in absolute if not Path(uri).is_relative_to(top)]
    if outside:
        raise ImportRefusedError(
            f"path {outside[0]!r} is not under --root {top}; give the folder that holds all images."
        )
    return [{**row, "uri": os.path.relpath(row["uri"], top)} for row in rows]


def _without_images(rows: Sequence[Row], spec: DatasetSpec) -> Dataset:
    masked = [row for row in rows if row.get("mask_uri") is not None]
    if masked:
        raise ImportRefusedError(
            f"{len(masked)} rows name masks, such as {masked[0]['mask_uri']!r}, and nobody says where they are; give "
            "their folder with --root, or leave out the column mask_uri."
        )
    keyed = [{**row, "image_sha256": row.get("image_sha256") or _name_key(row["uri"])} for row in rows]
    return Dataset(spec=spec, table=manifest_table(keyed), root=Path())


def _name_key(uri: str) -> str:
    """A content key for an image that nobody has seen: its name, and a word that says so."""
    return f"uri:{hashlib.sha256(uri.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _require_readable(dataset: Dataset, root: Path) -> None:
    keys, uris = (dataset.table[name].to_pylist() for name in ("image_sha256", "uri"))
    lost = [(uri, key) for uri, key in zip(uris, keys, strict=True) if not CONTENT_KEY.fullmatch(key)]
    if lost:
        raise ImportRefusedError(
            f"{len(lost)} of {len(keys)} images cannot be read under {root} (the first is {lost[0][0]!r}: {lost[0][1]})"
            "; correct --root or the paths, or leave out --root to import without images."
        )
