"""What a dataset must be: its pointer, its record, its manifest and its masks."""

import re

from feature_store import layout
from feature_store.datasets import RECORD_FILE, StoredDataset, open_masks, read_dataset, read_manifest, read_pointer
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.manifest import annotations_digest, check_manifest, mask_digest, views_digest
from feature_store.upkeep.inspection import Inspection, StatedData

_REMEDY = "`vitrine repair` moves it aside, and the same `vitrine extract` registers the dataset again."
_POINTER = re.compile(r"[0-9a-f]{8}\.json")


def check_datasets(inspection: Inspection, names: list[str]) -> list[StoredDataset]:
    """Inspect datasets and their pointers; those whose record is sound."""
    found = []
    for name in names:
        folder = f"{layout.DATASETS}/{name}"
        inside = sorted({path.split("/")[2] for path in inspection.under(folder)})
        for entry in inside:
            path = f"{folder}/{entry}"
            if path in inspection.sizes and _POINTER.fullmatch(entry):
                _check_pointer(inspection, path)
            elif path not in inspection.sizes:
                dataset = _check_dataset(inspection, path)
                found += [] if dataset is None else [dataset]
    return found


def _check_pointer(inspection: Inspection, path: str) -> None:
    content = inspection.record(path, "`vitrine repair` writes it anew where only one set of annotations stands.")
    if content is None:
        return
    try:
        folder = read_pointer(inspection.root, path)
    except StoreNotFoundError:
        return
    except CorruptError as error:
        inspection.problem(path, "record", str(error))
        return
    if inspection.size_of(f"{folder}/{RECORD_FILE}") is None:
        text = f"{path} says that {folder} is in force, which has no {RECORD_FILE}. {_REMEDY}"
        inspection.problem(f"{folder}/{RECORD_FILE}", "missing", text)


def _check_dataset(inspection: Inspection, folder: str) -> StoredDataset | None:
    path = f"{folder}/{RECORD_FILE}"
    if inspection.size_of(path) is None:
        if inspection.left_behind(folder):
            text = (
                f"{folder} has no {RECORD_FILE}: it is being registered, or that was cut off; `vitrine gc` removes it."
            )
            inspection.note(folder, "unfinished", text)
        return None
    if inspection.record(path, _REMEDY) is None:
        inspection.know(*inspection.under(folder))
        return None
    try:
        dataset = read_dataset(inspection.root, folder)
    except StoreError as error:
        inspection.problem(path, "record", str(error))
        inspection.know(*inspection.under(folder))
        return None
    place = layout.dataset_folder(dataset.spec.name, dataset.views_digest, dataset.annotations_digest)
    if place != folder:
        inspection.problem(path, "record", f"{path} is the record of {place}, not of this place. {_REMEDY}")
    _queue_parts(inspection, dataset)
    return dataset


def _queue_parts(inspection: Inspection, dataset: StoredDataset) -> None:
    for number, stated in enumerate(dataset.objects):
        path = f"{dataset.folder}/{stated.path}"
        suspects = (path, f"{dataset.folder}/{RECORD_FILE}")
        if inspection.stands(path, stated.size_bytes, remedy=_REMEDY, suspects=suspects):
            data = StatedData(
                path=path, stated=stated, owner=dataset.folder, place=number, suspects=suspects, remedy=_REMEDY
            )
            inspection.data.append(data)


def check_dataset_content(inspection: Inspection, dataset: StoredDataset) -> None:
    """Take both digests again; to be asked when the bytes are known to be sound."""
    path = f"{dataset.folder}/{RECORD_FILE}"
    try:
        table = read_manifest(inspection.root, dataset)
        check_manifest(table)
        masks = open_masks(inspection.root, dataset).iter_masks(range(dataset.n_rows))
        digests = [mask_digest(mask) if mask.size else None for mask in masks]
        views, annotations = views_digest(table), annotations_digest(table, digests, dataset.spec)
    except (StoreError, OSError) as error:
        inspection.problem(path, "content", f"{dataset.folder}: {error}")
        return
    for name, found, stated in (
        ("views digest", views, dataset.views_digest),
        ("annotations digest", annotations, dataset.annotations_digest),
    ):
        if found != stated:
            text = f"{dataset.folder} has the {name} {found[:16]}, and its record states {stated[:16]}. {_REMEDY}"
            inspection.problem(path, "content", text)
