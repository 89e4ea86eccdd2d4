"""What a feature set must be: its record, its `zarr.json` files, its receipts, and the objects that they state."""

from dataclasses import dataclass

from feature_store import layout
from feature_store.arrays import all_arrays
from feature_store.compression import parameter_objects, read_codecs
from feature_store.datasets import dataset_in_force
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec
from feature_store.reader import FeatureSet
from feature_store.receipts import Receipt
from feature_store.receipts_index import contradiction
from feature_store.shards import Shard
from feature_store.upkeep.inspection import Inspection, StatedData
from feature_store.writer import states_shard, zarr_metadata_files

_MOST_DIGITS = 12
_SHARD_REMEDY = "`vitrine repair` moves it aside with its receipt; the same `vitrine extract` computes the shard again."
_RECORD_REMEDY = "Restore it from a copy, or run `vitrine repair`, then the same `vitrine extract` again."


@dataclass(frozen=True, kw_only=True)
class InspectedFeatureSet:
    """A feature set whose record is sound.

    Attributes:
        name: as `FeatureStore.names` has it.
        folder: its place.
        spec: its record.
        receipts: the sound ones, by shard index.
    """

    name: str
    folder: str
    spec: FeatureSetSpec
    receipts: dict[int, Receipt]


def check_feature_set(inspection: Inspection, folder: str) -> InspectedFeatureSet | None:
    """Inspect everything of a feature set but the bytes of its data, which are queued; None where it has no record."""
    spec = _check_record(inspection, folder)
    if spec is None:
        return None
    receipts = _check_shards(inspection, folder, spec)
    _check_zarr_metadata(inspection, folder, spec, begun=bool(receipts))
    _check_parameters(inspection, folder, spec)
    name = layout.feature_set_name(folder)
    found = InspectedFeatureSet(name=name, folder=folder, spec=spec, receipts=receipts)
    _check_dataset(inspection, found)
    return found


def _check_record(inspection: Inspection, folder: str) -> FeatureSetSpec | None:
    path = f"{folder}/{layout.FEATURE_SET_FILE}"
    if inspection.size_of(path) is None:
        there = inspection.left_behind(folder)
        if there:
            text = f"{path} is missing, and {len(there)} files stand beside its place. {_RECORD_REMEDY}"
            inspection.problem(path, "missing", text)
        return None
    content = inspection.record(path, _RECORD_REMEDY)
    if content is None:
        inspection.know(*inspection.under(folder))  # nobody can tell what belongs to it
        return None
    try:
        spec = FeatureSetSpec.from_json(content, name=path)
    except CorruptError as error:
        inspection.problem(path, "record", str(error))
        inspection.know(*inspection.under(folder))
        return None
    dataset = layout.dataset_of(layout.feature_set_name(folder))
    if layout.feature_set_folder(dataset, spec) != folder:
        text = (
            f"{path} is the record of {layout.feature_set_folder(dataset, spec)}, not of this place. {_RECORD_REMEDY}"
        )
        inspection.problem(path, "record", text)
    return spec


def _check_zarr_metadata(inspection: Inspection, folder: str, spec: FeatureSetSpec, *, begun: bool) -> None:
    remedy = "`vitrine repair` writes it anew, as the same `vitrine extract` does."
    for path, content in zarr_metadata_files(folder, spec).items():
        inspection.know(path)
        try:
            stored = inspection.root.read(path, max_bytes=len(content) + 1)
        except StoreNotFoundError:
            # Without one receipt it may be a run that has just begun.
            if begun:
                inspection.problem(path, "missing", f"{path} is missing. {remedy}")
            continue
        except (OSError, CorruptError) as error:
            reason = getattr(error, "strerror", None) or error
            inspection.problem(path, "unreadable", f"{path} cannot be read ({reason}). {remedy}")
            continue
        if stored == content:
            inspection.objects_checked += 1
        else:
            inspection.problem(path, "metadata", f"{path} is not what feature_set.json asks for. {remedy}")


def _check_parameters(inspection: Inspection, folder: str, spec: FeatureSetSpec) -> None:
    """What a compressed feature set was fitted with is small, so it is read whole."""
    objects = parameter_objects(folder, spec)
    inspection.know(*objects)
    try:
        read_codecs(inspection.root, folder, spec)
    except (CorruptError, OSError) as error:
        path = layout.compression_group(folder)
        inspection.problem(path, "content", str(error), suspects=(f"{folder}/{layout.FEATURE_SET_FILE}", *objects))
    else:
        inspection.objects_checked += len(objects)


def _check_shards(inspection: Inspection, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt]:
    """From the files that are there, not from the shards that there should be: a record can claim a million."""
    for array, array_layout in all_arrays(folder, spec):
        for path in inspection.under(f"{array}/c"):
            shard = _shard(spec, path.removeprefix(f"{array}/c/").partition("/")[0])
            if shard is not None and path == layout.shard_object(array, shard, 1 + len(array_layout.row_shape)):
                inspection.know(path)
    begun = 0
    receipts: dict[int, Receipt] = {}
    for path in inspection.under(layout.receipts_folder(folder)):
        shard = _shard(spec, path.rpartition("/")[2].removesuffix(".json"))
        if shard is None or path != layout.receipt(folder, shard):
            continue
        begun += 1
        receipt = _check_receipt(inspection, folder, spec, shard)
        if receipt is not None:
            receipts[shard.index] = receipt
            _queue_shard(inspection, folder, path, receipt)
    n_shards = -(-spec.n_rows // spec.rows_per_shard)
    _check_index(inspection, folder, spec, receipts, n_shards)
    if begun < n_shards:
        text = (
            f"{n_shards - begun} of {n_shards} shards of {folder} have no receipt: the extraction is running or was "
            "interrupted; the same `vitrine extract` goes on."
        )
        inspection.note(folder, "unfinished", text)
    return receipts


def _check_index(
    inspection: Inspection, folder: str, spec: FeatureSetSpec, receipts: dict[int, Receipt], n_shards: int
) -> None:
    path = layout.receipts_index(folder)
    inspection.know(path)
    if inspection.size_of(path) is None:
        if len(receipts) == n_shards:
            text = f"{path} is missing, so opening {folder} is slow; the same `vitrine extract` writes it."
            inspection.note(folder, "index", text)
        return
    if inspection.record(path, "Remove it; the same `vitrine extract` writes it again from the receipts.") is None:
        return
    problem = contradiction(inspection.root, folder, spec, receipts)
    if problem is not None:
        inspection.problem(path, "record", str(problem))


def _shard(spec: FeatureSetSpec, digits: str) -> Shard | None:
    """The shard of this number; None where the feature set has none."""
    index = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < _MOST_DIGITS else -1
    start = index * spec.rows_per_shard
    if not 0 <= start < spec.n_rows:
        return None
    return Shard(index=index, start=start, stop=min(start + spec.rows_per_shard, spec.n_rows))


def _check_receipt(inspection: Inspection, folder: str, spec: FeatureSetSpec, shard: Shard) -> Receipt | None:
    path = layout.receipt(folder, shard)
    content = inspection.record(path, _SHARD_REMEDY)
    if content is None:
        return None
    try:
        receipt = Receipt.from_json(content, name=path)
    except CorruptError as error:
        inspection.problem(path, "record", str(error))
        return None
    if not states_shard(receipt, folder, spec, shard):
        text = f"{path} is the receipt of another shard or feature set, or does not name every object. {_SHARD_REMEDY}"
        inspection.problem(path, "record", text)
        return None
    return receipt


def _queue_shard(inspection: Inspection, folder: str, receipt_path: str, receipt: Receipt) -> None:
    """Hold the objects to their sizes; those that stand wait for their bytes to be read."""
    for number, stated in enumerate(receipt.objects):
        path = f"{folder}/{stated.path}"
        suspects = (path, receipt_path)
        if inspection.stands(path, stated.size_bytes, remedy=_SHARD_REMEDY, suspects=suspects):
            data = StatedData(
                path=path,
                stated=stated,
                owner=folder,
                place=receipt.shard * len(receipt.objects) + number,
                suspects=suspects,
                remedy=_SHARD_REMEDY,
            )
            inspection.data.append(data)


def _check_dataset(inspection: Inspection, found: InspectedFeatureSet) -> None:
    """A feature set means something only beside the manifest of its views."""
    name = layout.dataset_of(found.name)
    views = found.spec.identity.views_digest
    pointer = layout.dataset_pointer(name, views)
    try:
        dataset = dataset_in_force(inspection.root, name, views)
    except StoreError as error:
        # A pointer or record that is damaged is reported where it stands.
        if isinstance(error, StoreNotFoundError):
            text = f"{found.name} has no dataset in the store ({error})"
            inspection.problem(pointer, "missing", text, suspects=())
        return
    if dataset.n_rows != found.spec.n_rows:
        text = (
            f"{dataset.folder} has {dataset.n_rows} rows, and {found.name} has {found.spec.n_rows}. Move the wrong one "
            "away and run the same `vitrine extract` again."
        )
        inspection.problem(f"{found.folder}/{layout.FEATURE_SET_FILE}", "content", text, suspects=())


def check_valid_rows(inspection: Inspection, found: InspectedFeatureSet) -> None:
    """The array of valid rows must say what the receipts say; to be asked when its bytes are known to be sound."""
    features = FeatureSet(inspection.root, found.name, partial=True)
    try:
        valid = features.stored_valid()
    except (StoreError, OSError):
        return  # found before, where it stands
    for receipt in features.receipts.values():
        stated = {entry.row for entry in receipt.invalid}
        stored = {row for row in range(receipt.start, receipt.stop) if not valid[row]}
        if stored != stated:
            path = layout.receipt(found.folder, features.shards[receipt.shard])
            text = (
                f"{path} names {len(stated)} invalid rows, and the array of valid rows has {len(stored)}, or others. "
                f"{_SHARD_REMEDY}"
            )
            inspection.problem(path, "content", text)
