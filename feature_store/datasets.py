"""The datasets inside a store: manifest, classes, and the masks that evaluators read instead of the image folder.

Masks are kept a view each, one after another in a flat compressed array, since views may differ in size; labels, boxes
and splits are columns of the manifest beside it.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.storage import MemoryStore

from feature_store import layout
from feature_store.canonical import parse_json, pretty_json
from feature_store.errors import CorruptError, ManifestError, StoreNotFoundError
from feature_store.manifest import (
    MANIFEST_SCHEMA,
    DatasetSpec,
    annotations_digest,
    check_manifest,
    mask_digest,
    views_digest,
)
from feature_store.objects import ObjectRoot

_MASK_CHUNK_VALUES = 1 << 22
_ALLOWED_MASK_CODECS = {"bytes", "zstd", "blosc", "gzip", "crc32c"}
Mask = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class StoredDataset:
    """One dataset with one set of annotations, as it stands in a store.

    Attributes:
        folder: its place.
        spec: name, classes, void.
        views_digest, annotations_digest: of its manifest and masks.
        n_rows: views.
    """

    folder: str
    spec: DatasetSpec
    views_digest: str
    annotations_digest: str
    n_rows: int


def register_dataset(
    root: ObjectRoot, spec: DatasetSpec, table: pa.Table, masks: Iterable[Mask | None]
) -> StoredDataset:
    """Copy a manifest and its masks into the store, and make its annotations those in force for these views.

    `dataset.json` is written last: a folder without it is no dataset, and is written again.

    Args:
        root: the store.
        spec: what the dataset says of itself.
        table: its manifest, see `manifest_table`.
        masks: one a row, raw values [height, width], or None.
    """
    check_manifest(table)
    packed = _PackedMasks()
    digests: list[str | None] = []
    for mask in masks:
        digests.append(None if mask is None else mask_digest(mask))
        packed.append(mask)
    if len(digests) != table.num_rows:
        raise ManifestError(
            f"{len(digests)} masks for {table.num_rows} rows; give one a row, None where there is none."
        )
    views, annotations = views_digest(table), annotations_digest(table, digests, spec)
    folder = layout.dataset_folder(spec.name, views, annotations)
    if not root.exists(f"{folder}/dataset.json"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        root.put(f"{folder}/manifest.parquet", [buffer.getvalue()])
        for name, content in packed.finish().items():
            root.put(f"{folder}/annotations.zarr/{name}", [content])
        record = {
            **asdict(spec),
            "views_digest": views,
            "annotations_digest": annotations,
            "n_rows": table.num_rows,
        }
        root.put(f"{folder}/dataset.json", [pretty_json(record)])
    root.put(layout.dataset_pointer(spec.name, views), [pretty_json({"annotations_in_force": folder})])
    return read_dataset(root, folder)


def read_dataset(root: ObjectRoot, folder: str) -> StoredDataset:
    """The dataset at `folder`.

    Raises:
        StoreNotFoundError: none there.
        CorruptError: its record cannot be read.
    """
    path = f"{folder}/dataset.json"
    record = parse_json(root.read(path), name=path)
    try:
        spec = DatasetSpec(
            name=record["name"],
            classes=tuple(record["classes"]),
            void=record["void"],
            colours=tuple((int(r), int(g), int(b)) for r, g, b in record["colours"]),
            license=record["license"],
            source=record["source"],
        )
        return StoredDataset(
            folder=folder,
            spec=spec,
            views_digest=str(record["views_digest"]),
            annotations_digest=str(record["annotations_digest"]),
            n_rows=int(record["n_rows"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path} is not a dataset's record ({error!r}). Run `vitrine extract` again.") from error


def dataset_in_force(root: ObjectRoot, name: str, views: str) -> StoredDataset:
    """The dataset whose annotations were registered last for these views.

    Raises:
        StoreNotFoundError: no dataset of these views is in the store.
    """
    path = layout.dataset_pointer(name, views)
    try:
        folder = str(parse_json(root.read(path), name=path).get("annotations_in_force"))
    except StoreNotFoundError as error:
        raise StoreNotFoundError(
            f"the store has no dataset {name!r} with views {views[:8]}; run `vitrine extract` again."
        ) from error
    if not folder.startswith(f"{layout.DATASETS}/") or ".." in folder.split("/"):
        raise CorruptError(f"{path} points to {folder!r}, outside the datasets. Run `vitrine extract` again.")
    return read_dataset(root, folder)


def read_manifest(root: ObjectRoot, dataset: StoredDataset, columns: list[str] | None = None) -> pa.Table:
    """Columns of a dataset's manifest, all of them by default.

    Raises:
        CorruptError: not Parquet, or not of the manifest's schema.
    """
    path = f"{dataset.folder}/manifest.parquet"
    local = root.local_path(path)
    source: Any = str(local) if local is not None else io.BytesIO(root.read(path))
    try:
        table = pq.read_table(source, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} cannot be read ({error}). Run `vitrine extract` again.") from error
    expected = MANIFEST_SCHEMA if columns is None else pa.schema([MANIFEST_SCHEMA.field(name) for name in columns])
    if not table.schema.equals(expected) or table.num_rows != dataset.n_rows:
        raise CorruptError(f"{path} is not this dataset's manifest. Run `vitrine extract` again.")
    return table


class MaskReader:
    """The masks of a dataset, from the store."""

    def __init__(self, root: ObjectRoot, dataset: StoredDataset) -> None:
        folder = f"{dataset.folder}/annotations.zarr"
        self._values = _open_checked(root, f"{folder}/mask_values")
        self._offsets = np.asarray(_open_checked(root, f"{folder}/mask_offsets")[:])
        self._sizes = np.asarray(_open_checked(root, f"{folder}/mask_sizes")[:])
        if len(self._sizes) != dataset.n_rows or len(self._offsets) != dataset.n_rows + 1:
            raise CorruptError(f"{folder} has masks for {len(self._sizes)} rows, not {dataset.n_rows}; extract again.")

    def has_mask(self, row: int) -> bool:
        """Whether the view has a mask."""
        return bool(self._offsets[row + 1] > self._offsets[row])

    @property
    def any_mask(self) -> bool:
        """Whether any view has a mask."""
        return bool(self._offsets[-1] > 0)

    @property
    def all_square(self) -> bool:
        """Whether every mask is as high as wide."""
        return bool((self._sizes[:, 0] == self._sizes[:, 1]).all())

    def read(self, row: int) -> Mask:
        """The mask of one view, raw values [height, width]."""
        values = np.asarray(self._values[int(self._offsets[row]) : int(self._offsets[row + 1])])
        return values.reshape(self._sizes[row])

    def iter_masks(self, rows: Iterable[int]) -> Iterator[Mask]:
        """The masks of ascending rows; each compressed chunk is opened once, memory is one chunk and one mask."""
        held: Mask = np.empty(0, dtype=np.uint16)
        held_start = 0
        for row in rows:
            start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
            if not held_start <= start <= stop <= held_start + len(held):
                held_start = start
                held = np.asarray(
                    self._values[start : max(stop, min(start + _MASK_CHUNK_VALUES, int(self._offsets[-1])))]
                )
            yield held[start - held_start : stop - held_start].reshape(self._sizes[row])


def _open_checked(root: ObjectRoot, array: str) -> Any:
    path = f"{array}/zarr.json"
    metadata = parse_json(root.read(path), name=path)
    codecs = {str(codec.get("name")) for codec in metadata.get("codecs", [])}
    if metadata.get("zarr_format") != 3 or not codecs <= _ALLOWED_MASK_CODECS:
        raise CorruptError(f"{path} asks for codecs {sorted(codecs)}; only {sorted(_ALLOWED_MASK_CODECS)} are opened.")
    return zarr.open_array(root.zarr_store(array), mode="r", zarr_format=3)


class _PackedMasks:
    """Masks one after another in a growing compressed array in memory (they compress about fifty-fold)."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self._values = zarr.create_array(
            self._store, name="mask_values", shape=(0,), chunks=(_MASK_CHUNK_VALUES,), dtype="uint16", zarr_format=3
        )
        self._pending: list[Mask] = []
        self._n_pending = 0
        self._offsets = [0]
        self._sizes: list[tuple[int, int]] = []

    def append(self, mask: Mask | None) -> None:
        """Add the next row's mask."""
        content = np.empty((0, 0), dtype=np.uint16) if mask is None else np.asarray(mask, dtype=np.uint16)
        self._sizes.append((content.shape[0], content.shape[1]))
        self._offsets.append(self._offsets[-1] + content.size)
        self._pending.append(content.reshape(-1))
        self._n_pending += content.size
        if self._n_pending >= _MASK_CHUNK_VALUES:
            self._flush(whole_chunks=True)

    def _flush(self, *, whole_chunks: bool) -> None:
        values = np.concatenate([np.empty(0, dtype=np.uint16), *self._pending])
        written = len(values) // _MASK_CHUNK_VALUES * _MASK_CHUNK_VALUES if whole_chunks else len(values)
        start = self._values.shape[0]
        self._values.resize((start + written,))
        self._values[start:] = values[:written]
        self._pending, self._n_pending = [values[written:]], len(values) - written

    def finish(self) -> dict[str, bytes]:
        """The objects of `annotations.zarr`, by name."""
        self._flush(whole_chunks=False)
        zarr.create_array(
            self._store, name="mask_offsets", data=np.asarray(self._offsets, dtype=np.int64), zarr_format=3
        )
        sizes = np.asarray(self._sizes, dtype=np.int64).reshape(-1, 2)
        zarr.create_array(self._store, name="mask_sizes", data=sizes, zarr_format=3)
        zarr.open_group(self._store, mode="a", zarr_format=3)
        return {name: value.to_bytes() for name, value in self._store._store_dict.items()}
