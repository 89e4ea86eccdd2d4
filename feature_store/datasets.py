"""The datasets inside a store: manifest, classes, and the masks that evaluators read instead of the image folder.

Labels, boxes and splits are columns of the manifest; masks stand beside it, see `masks`.
"""

import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import layout
from feature_store.durable_files import Buffer
from feature_store.errors import CorruptError, ManifestError, StoreNotFoundError
from feature_store.manifest import (
    MANIFEST_SCHEMA,
    DatasetSpec,
    annotations_digest,
    check_manifest,
    mask_digest,
    views_digest,
)
from feature_store.masks import Mask, MaskPacker, MaskReader
from feature_store.objects import ObjectRoot, crc32c
from feature_store.receipts import StoredObject
from feature_store.records import Fields, read_record, write_record

RECORD_FILE = "dataset.json"
MANIFEST_FILE = "manifest.parquet"
ANNOTATIONS = "annotations.zarr"
_ROWS_PER_BATCH = 1 << 17
_POINTER_REMEDY = "Run the same `vitrine extract` again."
_REMEDY = "Move its folder away and run the same `vitrine extract` again, which writes it anew."


@dataclass(frozen=True, kw_only=True)
class StoredDataset:
    """One dataset with one set of annotations, as it stands in a store.

    Attributes:
        folder: its place.
        spec: name, classes, void.
        views_digest, annotations_digest: of its manifest and masks.
        n_rows: views.
        objects: its manifest and every object of its annotations, with size and checksum.
    """

    folder: str
    spec: DatasetSpec
    views_digest: str
    annotations_digest: str
    n_rows: int
    objects: tuple[StoredObject, ...] = ()


class StagedDataset:
    """A dataset that was read and checked whole, and is not in any store yet.

    Its masks wait in a temporary file, which goes when this does.

    Args:
        described: what will be registered, but for the objects.
        table: its manifest.
        packer: its masks.
    """

    def __init__(self, described: StoredDataset, table: pa.Table, packer: MaskPacker) -> None:
        self.described, self._table, self._packer = described, table, packer

    def register(self, root: ObjectRoot) -> StoredDataset:
        """Copy the dataset into a store, and make its annotations those in force for its views; may be repeated.

        `dataset.json` is written last: a folder without it is no dataset, and is written again.
        """
        dataset = _standing(root, self.described) or _write(root, self.described, self._table, self._packer)
        put_in_force(root, dataset)
        return dataset


def stage_dataset(spec: DatasetSpec, table: pa.Table, masks: Iterable[Mask | None]) -> StagedDataset:
    """Read a dataset whole, so that it can be registered later; no store is touched.

    Args:
        spec: what the dataset says of itself.
        table: its manifest, see `manifest_table`.
        masks: one a row, raw values, or None.

    Raises:
        ManifestError: a manifest or a mask that breaks a rule, or not one mask a row.
    """
    packer = MaskPacker()
    return StagedDataset(describe_dataset(spec, table, _packed(packer, masks)), table, packer)


def register_dataset(
    root: ObjectRoot, spec: DatasetSpec, table: pa.Table, masks: Iterable[Mask | None]
) -> StoredDataset:
    """Stage a dataset and register it at once.

    Args:
        root: the store.
        spec, table, masks: see `stage_dataset`.

    Raises:
        ManifestError: a manifest or a mask that breaks a rule, or not one mask a row.
    """
    return stage_dataset(spec, table, masks).register(root)


def describe_dataset(spec: DatasetSpec, table: pa.Table, masks: Iterable[Mask | None]) -> StoredDataset:
    """What `register_dataset` would register but for the objects; nothing is written.

    Raises:
        ManifestError: as for `register_dataset`.
    """
    check_manifest(table)
    digests = [None if mask is None else mask_digest(mask) for mask in masks]
    if len(digests) != table.num_rows:
        raise ManifestError(
            f"{len(digests)} masks for {table.num_rows} rows; give one a row, None where there is none."
        )
    views, annotations = views_digest(table), annotations_digest(table, digests, spec)
    return StoredDataset(
        folder=layout.dataset_folder(spec.name, views, annotations),
        spec=spec,
        views_digest=views,
        annotations_digest=annotations,
        n_rows=table.num_rows,
    )


def _packed(packer: MaskPacker, masks: Iterable[Mask | None]) -> Iterator[Mask | None]:
    for mask in masks:
        yield mask
        packer.append(mask)


def put_in_force(root: ObjectRoot, dataset: StoredDataset) -> None:
    """Make a dataset's annotations those that these views have."""
    pointer = layout.dataset_pointer(dataset.spec.name, dataset.views_digest)
    write_record(root, pointer, {"annotations_in_force": dataset.folder})


def _standing(root: ObjectRoot, wanted: StoredDataset) -> StoredDataset | None:
    """The dataset that stands in the place of `wanted` and is the same; None where one must be written."""
    try:
        found = read_dataset(root, wanted.folder)
    except (StoreNotFoundError, CorruptError):
        return None  # never finished, or damaged: written again
    return found if replace(found, objects=()) == wanted and is_whole(root, found) else None


def is_whole(root: ObjectRoot, dataset: StoredDataset) -> bool:
    """Whether every object of a dataset stands there in the size that its record states."""
    sizes = root.sizes([dataset.folder])
    return all(sizes.get(f"{dataset.folder}/{part.path}") == part.size_bytes for part in dataset.objects)


def _write(root: ObjectRoot, dataset: StoredDataset, table: pa.Table, packer: MaskPacker) -> StoredDataset:
    # By way of a file: the content of a manifest of millions of rows need not stand in memory beside its table.
    with tempfile.TemporaryFile() as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        file.flush()
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as mapped, memoryview(mapped) as content:
            objects = [_put_part(root, dataset, MANIFEST_FILE, content)]
    objects += [_put_part(root, dataset, f"{ANNOTATIONS}/{name}", content) for name, content in packer.objects()]
    written = replace(dataset, objects=tuple(objects))
    root.remove(f"{dataset.folder}/{layout.REMOVED_FILE}")  # whoever began a removal is overruled
    write_record(root, f"{dataset.folder}/{RECORD_FILE}", _record(written))
    return written


def _put_part(root: ObjectRoot, dataset: StoredDataset, path: str, content: Buffer) -> StoredObject:
    root.put(f"{dataset.folder}/{path}", [content])
    return StoredObject(path=path, size_bytes=len(content), crc32c=crc32c([content]))


def _record(dataset: StoredDataset) -> dict[str, Any]:
    return {
        **asdict(dataset.spec),
        "classes": list(dataset.spec.classes),
        "colours": [list(colour) for colour in dataset.spec.colours],
        "views_digest": dataset.views_digest,
        "annotations_digest": dataset.annotations_digest,
        "n_rows": dataset.n_rows,
        "objects": [asdict(part) for part in dataset.objects],
    }


def _annotations(dataset: StoredDataset) -> str:
    return f"{dataset.folder}/{ANNOTATIONS}"


def read_dataset(root: ObjectRoot, folder: str) -> StoredDataset:
    """The dataset at `folder`.

    Raises:
        StoreNotFoundError: none there.
        CorruptError: its record cannot be read, or was changed after it was written.
    """
    path = f"{folder}/{RECORD_FILE}"
    record = read_record(root, path)
    fields = Fields(record, name=path, remedy=_REMEDY)
    colours = record.get("colours")
    try:
        spec = DatasetSpec(
            name=fields.text("name"),
            classes=fields.texts("classes"),
            void=None if record.get("void") is None else fields.integer("void"),
            colours=tuple((int(red), int(green), int(blue)) for red, green, blue in colours or ()),
            license=fields.text("license"),
            source=fields.text("source"),
        )
    except (ManifestError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CorruptError):
            raise
        raise fields.corrupt(f"it describes no dataset ({error})") from error
    return StoredDataset(
        folder=folder,
        spec=spec,
        views_digest=fields.text("views_digest"),
        annotations_digest=fields.text("annotations_digest"),
        n_rows=fields.integer("n_rows", least=1),
        objects=tuple(StoredObject.from_fields(part) for part in fields.members("objects")),
    )


def dataset_in_force(root: ObjectRoot, name: str, views: str) -> StoredDataset:
    """The dataset whose annotations were registered last for these views.

    Raises:
        StoreNotFoundError: no dataset of these views is in the store.
        CorruptError: the pointer leads elsewhere, or to a dataset of other views.
    """
    path = layout.dataset_pointer(name, views)
    try:
        folder = read_pointer(root, path)
    except StoreNotFoundError as error:
        raise StoreNotFoundError(
            f"the store has no dataset {name!r} with views {views[:8]}; run the same `vitrine extract` again."
        ) from error
    dataset = read_dataset(root, folder)
    if dataset.views_digest != views:
        raise CorruptError(
            f"{path}: it points to {folder}, whose views are {dataset.views_digest[:80]!r}, not {views!r}. "
            f"{_POINTER_REMEDY}"
        )
    return dataset


def read_pointer(root: ObjectRoot, path: str) -> str:
    """The folder of the dataset whose annotations are in force, by the file that says so.

    Raises:
        StoreNotFoundError: no such file.
        CorruptError: it cannot be read, or leads elsewhere than to annotations of the same views.
    """
    fields = Fields(read_record(root, path), name=path, remedy=_POINTER_REMEDY)
    folder = fields.text("annotations_in_force")
    if not layout.is_annotations_of(folder, path):
        raise fields.corrupt(f"it points to {folder[:200]!r}, which is no dataset of these views")
    return folder


def read_manifest(root: ObjectRoot, dataset: StoredDataset, columns: list[str] | None = None) -> pa.Table:
    """Columns of a dataset's manifest, all of them by default.

    Raises:
        ManifestError: no manifest has such a column.
        CorruptError: missing, not Parquet, changed after it was written, or not of the manifest's schema.
    """
    names = _known(MANIFEST_SCHEMA.names if columns is None else columns)
    with _manifest_file(root, dataset) as file:
        table = file.read(columns=names).select(names)
        table.validate(full=True)
    return table


def manifest_batches(root: ObjectRoot, dataset: StoredDataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a dataset's manifest in row order, batch by batch; other columns are not read.

    Raises:
        ManifestError, CorruptError: as for `read_manifest`.
    """
    names = _known(columns)
    with _manifest_file(root, dataset) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=names):
            batch.validate(full=True)
            yield batch.select(names)


def _known(columns: list[str]) -> list[str]:
    unknown = sorted(set(columns) - set(MANIFEST_SCHEMA.names))
    if unknown:
        raise ManifestError(f"a manifest has no columns {unknown}; it has {', '.join(MANIFEST_SCHEMA.names)}.")
    return columns


@contextmanager
def _manifest_file(root: ObjectRoot, dataset: StoredDataset) -> Iterator[pq.ParquetFile]:
    """The manifest's file, held to the dataset's record; whatever goes wrong while it is read is a CorruptError."""
    path = f"{dataset.folder}/{MANIFEST_FILE}"
    source = _source(root, path)
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            # Before any page is opened: a small file can claim any number of rows.
            if file.metadata.num_rows != dataset.n_rows:
                raise CorruptError(f"{path} has {file.metadata.num_rows} rows, not {dataset.n_rows}. {_REMEDY}")
            if not file.schema_arrow.equals(MANIFEST_SCHEMA):
                raise CorruptError(f"{path} has not the columns of a manifest. {_REMEDY}")
            yield file
    except MemoryError:
        raise  # Arrow's too: the machine failed, not the data
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, CorruptError):
            raise
        # Some of Arrow's messages end in a line break.
        raise CorruptError(f"{path} cannot be read ({' '.join(str(error).split())}). {_REMEDY}") from error


def _source(root: ObjectRoot, path: str) -> Any:
    """What Arrow opens to read the file at `path`: its name on this disk, or its content."""
    local = root.local_path(path)
    if local is not None:
        return str(local)
    try:
        # Not io.BytesIO: a thread of Arrow's that lets go of a Python file while the interpreter exits aborts the
        # process (apache/arrow#33975).
        return pa.BufferReader(root.read(path))
    except StoreNotFoundError as error:
        raise CorruptError(f"{path} is missing. {_REMEDY}") from error


def open_masks(root: ObjectRoot, dataset: StoredDataset) -> MaskReader:
    """The masks of a dataset.

    Raises:
        CorruptError: they are missing, or not those of so many rows.
    """
    return MaskReader(root, _annotations(dataset), dataset.n_rows)
