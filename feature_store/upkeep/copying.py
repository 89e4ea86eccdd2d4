"""Copying feature sets between stores: what is read is held to its checksum, and so is what then stands there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from feature_store import layout
from feature_store.compression import parameter_objects, read_codecs
from feature_store.datasets import RECORD_FILE, StoredDataset, is_whole, put_in_force, read_dataset
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.intact import object_crc32c
from feature_store.objects import ObjectRoot, crc32c
from feature_store.reader import FeatureSet
from feature_store.receipts import Receipt, StoredObject
from feature_store.receipts_index import drop_index
from feature_store.selections import read_selection, selection_names
from feature_store.store import FeatureStore
from feature_store.writer import committed_receipts, create_feature_set, finish_feature_set

_REMEDY = "Run `vitrine verify --deep` and `vitrine repair` on the source, then copy again."


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What a copy did.

    Attributes:
        source, target: the stores, without secrets.
        feature_sets: the names.
        shards_copied, shards_standing, shards_failed: of all of them; `standing` were there already.
        shards_missing: not committed in the source, so the copy is as unfinished as the source is.
        objects_copied, bytes_copied: data and metadata that was written.
        selections: the names of those that were copied or stood there.
        failures: what could not be copied, each with its way out.
        notes: what the target keeps as it was.
    """

    source: str
    target: str
    feature_sets: tuple[str, ...]
    shards_copied: int
    shards_standing: int
    shards_failed: int
    shards_missing: int
    objects_copied: int
    bytes_copied: int
    selections: tuple[str, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


class _Copy:
    """One copy in progress; memory is bounded by the largest object."""

    def __init__(self, source: ObjectRoot, target: ObjectRoot, progress: Callable[[int, int], None] | None) -> None:
        self.source, self.target, self._progress = source, target, progress
        self.bytes_in_all = self.objects = self.bytes = 0
        self.copied = self.standing = self.missing = self.failed = 0
        self.failures: list[str] = []
        self.notes: list[str] = []

    def stated(self, folder: str, stated: StoredObject) -> None:
        """Copy an object whose checksum is stated.

        Raises:
            CorruptError: what was read, or what stands in the target then, has another checksum.
        """
        path = f"{folder}/{stated.path}"
        content = self.source.read(path)
        if (len(content), crc32c([content])) != (stated.size_bytes, stated.crc32c):
            raise CorruptError(f"{path} of {self.source.url} is not what its record says (checksum). {_REMEDY}")
        self.target.put(path, [content])
        if object_crc32c(self.target, path) != stated.crc32c:
            raise CorruptError(
                f"{path} was written to {self.target.url}, and other bytes stand there. Run the same `vitrine cp` "
                "again; when it happens twice, do not trust that storage."
            )
        self._count(len(content))

    def record(self, path: str) -> None:
        """Copy a record, or what a record answers for, byte for byte."""
        content = self.source.read(path)
        self.target.put(path, [content])
        self._count(len(content))

    def advance(self, n_bytes: int) -> None:
        """Say that bytes need no copying, or are copied."""
        if self._progress is not None:
            self._progress(n_bytes, self.bytes_in_all)

    def _count(self, n_bytes: int) -> None:
        self.objects += 1
        self.bytes += n_bytes
        self.advance(n_bytes)


def copy_store(
    source: ObjectRoot,
    target: ObjectRoot,
    *,
    features: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy feature sets with their datasets and the selections of their weights; may be killed and called again.

    Every object is held to the checksum that its receipt or dataset states, when it is read and again as it stands in
    the target; the receipt comes last. A shard that fails is reported, and the others are copied. Shards whose receipt
    stands in the target are not copied again. Results are not copied: the target answers anew.

    Args:
        source: a store.
        target: a store made by `create_store`.
        features: which, as `FeatureStore.resolve` takes them; all by default.
        progress: called with the bytes just done, and how many there will be.

    Raises:
        StoreError: one store is both, no such feature set, a damaged dataset, or another feature set in its place in
            the target.
        OSError: the target cannot be written.
    """
    if source.url.rstrip("/") == target.url.rstrip("/"):
        raise StoreError(f"{source.url} is both the store to copy from and the one to copy to; name another target.")
    store = FeatureStore(source)
    names = store.names() if features is None else [store.resolve(name) for name in features]
    found = [FeatureSet(source, name, partial=True) for name in names]
    copy = _Copy(source, target, progress)
    copy.bytes_in_all = sum(
        stated.size_bytes for each in found for receipt in each.receipts.values() for stated in receipt.objects
    )
    for each in found:
        _copy_dataset(copy, each.dataset)
        _copy_feature_set(copy, each)
    selections = tuple(_copy_selections(copy, {each.spec.identity.weights_sha256 for each in found}))
    return CopyReport(
        source=source.url,
        target=target.url,
        feature_sets=tuple(names),
        shards_copied=copy.copied,
        shards_standing=copy.standing,
        shards_failed=copy.failed,
        shards_missing=copy.missing,
        objects_copied=copy.objects,
        bytes_copied=copy.bytes,
        selections=selections,
        failures=tuple(copy.failures),
        notes=tuple(copy.notes),
    )


def _copy_dataset(copy: _Copy, dataset: StoredDataset) -> None:
    if not _stands(copy.target, dataset):
        for stated in dataset.objects:
            copy.stated(dataset.folder, stated)
        copy.record(f"{dataset.folder}/{RECORD_FILE}")
    pointer = layout.dataset_pointer(dataset.spec.name, dataset.views_digest)
    if not copy.target.exists(pointer):
        put_in_force(copy.target, dataset)
    elif copy.target.read(pointer) != copy.source.read(pointer):
        copy.notes.append(
            f"{pointer} of {copy.target.url} names other annotations, which stay in force there; those of "
            f"{copy.source.url} stand beside them in {dataset.folder}."
        )


def _stands(target: ObjectRoot, dataset: StoredDataset) -> bool:
    try:
        found = read_dataset(target, dataset.folder)
    except (StoreNotFoundError, CorruptError):
        return False
    same = (found.views_digest, found.annotations_digest) == (dataset.views_digest, dataset.annotations_digest)
    return same and is_whole(target, found)


def _copy_feature_set(copy: _Copy, features: FeatureSet) -> None:
    place = layout.feature_set_folder(features.dataset_name, features.spec)
    if place != features.folder:
        raise CorruptError(f"{features.folder} of {copy.source.url} is the place of {place}. {_REMEDY}")
    # What a compressed feature set was fitted with; the identity states its digest.
    read_codecs(copy.source, place, features.spec)
    for path in parameter_objects(place, features.spec):
        copy.record(path)
    folder = create_feature_set(copy.target, features.dataset_name, features.spec)
    read_codecs(copy.target, folder, features.spec)
    copy.target.sweep_partials(folder)
    standing = committed_receipts(copy.target, folder, features.spec)
    copy.missing += len(features.missing)
    if any(standing.get(index) != receipt for index, receipt in features.receipts.items()):
        drop_index(copy.target, folder)
    for index, receipt in sorted(features.receipts.items()):
        if standing.get(index) == receipt:
            copy.standing += 1
            copy.advance(sum(stated.size_bytes for stated in receipt.objects))
        else:
            _copy_shard(copy, features, receipt)
    finish_feature_set(copy.target, folder, features.spec)


def _copy_shard(copy: _Copy, features: FeatureSet, receipt: Receipt) -> None:
    drop_index(copy.target, features.folder)
    try:
        for stated in receipt.objects:
            copy.stated(features.folder, stated)
    except (CorruptError, StoreNotFoundError) as error:
        copy.failed += 1
        copy.failures.append(str(error))
        return
    copy.record(layout.receipt(features.folder, features.shards[receipt.shard]))
    copy.copied += 1


def _copy_selections(copy: _Copy, weights: set[str]) -> Iterator[str]:
    for name in selection_names(copy.source):
        try:
            selection = read_selection(copy.source, name)
        except StoreError as error:
            copy.failures.append(str(error))
            continue
        if selection.weights_sha256 not in weights:
            continue
        path = layout.selection(name)
        content = copy.source.read(path)
        if copy.target.put_new(path, content) or read_selection(copy.target, name).does_the_same_as(selection):
            yield name
        else:
            copy.notes.append(
                f"{copy.target.url} keeps its own selection {name!r}, which is of other features or tokens."
            )
