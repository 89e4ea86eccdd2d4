"""Whether a store holds what its records state."""

from collections.abc import Iterable, Sequence

from feature_store import layout
from feature_store.datasets import StoredDataset
from feature_store.errors import StoreError
from feature_store.objects import ObjectRoot
from feature_store.store import FeatureStore
from feature_store.upkeep.coverage import choose_sample, keep_seen, read_seen
from feature_store.upkeep.dataset_checks import check_dataset_content, check_datasets
from feature_store.upkeep.feature_set_checks import InspectedFeatureSet, check_feature_set, check_valid_rows
from feature_store.upkeep.findings import ReadProgress, VerifyReport
from feature_store.upkeep.inspection import Inspection, StatedData
from feature_store.upkeep.record_checks import (
    check_aside,
    check_results,
    check_runs,
    check_selections,
    check_store_record,
)


def verify_store(
    root: ObjectRoot,
    *,
    deep: bool = False,
    sample: float | None = None,
    features: Sequence[str] | None = None,
    progress: ReadProgress | None = None,
) -> VerifyReport:
    """Inspect a store, and name all that is not as it must be; nothing is changed.

    Always: every record is read and held to its own digest and to the very bytes that Vitrine writes; every object that
    a record states stands there in its size; `zarr.json` says what the feature set declares; no file is there that
    nothing accounts for. A writer at work beside it is no problem, nor is what an interrupted one left.

    Args:
        root: the store.
        deep: also read every byte of data, hold it to its checksum, and take the digests of datasets again. Then any
            flipped bit in any file is found.
        sample: read this share of the data, a different random part each time; what the samples of a round have read is
            kept under `runs/verify`.
        features: only these feature sets, as `FeatureStore.features` takes them, with their datasets; everything by
            default.
        progress: called after each object that was read.

    Raises:
        StoreError: a name in `features` fits none or several; or a share outside (0, 1].
    """
    if sample is not None and not 0 < sample <= 1:
        raise StoreError(f"a sample of {sample} was asked for; give a share above 0 and up to 1, such as 0.01 or 1%.")
    inspection = Inspection(root, _folders(root, features))
    found, datasets = _check_all(inspection, whole=features is None)
    data = inspection.data
    bytes_in_all = sum(each.stated.size_bytes for each in data)
    seen = read_seen(root, data) if sample is not None else set()
    chosen = data if deep else [] if sample is None else choose_sample(data, seen, sample)
    bytes_read = sum(each.stated.size_bytes for each in chosen)
    sound = inspection.read_data(chosen, bytes_read, progress)
    if deep:
        _check_contents(inspection, found, datasets, sound)
    share = None if sample is None else _keep(inspection, seen | sound)
    return VerifyReport(
        url=root.url,
        problems=tuple(sorted(inspection.problems, key=lambda each: each.path)),
        notes=tuple(sorted(inspection.notes, key=lambda each: each.path)),
        objects_checked=inspection.objects_checked,
        objects_read=len(chosen),
        bytes_read=bytes_read,
        bytes_in_all=bytes_in_all,
        share_over_time=share,
    )


def _folders(root: ObjectRoot, features: Sequence[str] | None) -> tuple[str, ...]:
    if features is None:
        return ("",)
    store = FeatureStore(root)
    opened = [store.features(name, partial=True) for name in features]
    datasets = {f"{layout.DATASETS}/{each.dataset_name}" for each in opened}
    return (*{each.folder for each in opened}, *datasets)


def _check_all(inspection: Inspection, *, whole: bool) -> tuple[list[InspectedFeatureSet], list[StoredDataset]]:
    places = {tuple(path.split("/")[:3]) for path in inspection.under(layout.FEATURES) if path.count("/") > 2}
    found = [check_feature_set(inspection, "/".join(place)) for place in sorted(places)]
    datasets = sorted({path.split("/")[1] for path in inspection.under(layout.DATASETS) if path.count("/") > 1})
    stored = check_datasets(inspection, datasets)
    if whole:
        check_store_record(inspection)
        check_selections(inspection)
        check_results(inspection)
        check_runs(inspection)
        check_aside(inspection)
    inspection.report_strangers()
    return [each for each in found if each is not None], stored


def _check_contents(
    inspection: Inspection, found: Iterable[InspectedFeatureSet], datasets: Iterable[StoredDataset], sound: set[str]
) -> None:
    """What only sound bytes can be asked."""
    wrong = {each.owner for each in inspection.data if each.path not in sound}
    for features in found:
        if features.folder not in wrong:
            check_valid_rows(inspection, features)
    for dataset in datasets:
        if dataset.folder not in wrong:
            check_dataset_content(inspection, dataset)


def _keep(inspection: Inspection, seen: set[str]) -> float:
    """The share of the data's bytes that this round has read, kept for the next sample."""
    data: list[StatedData] = inspection.data
    if not keep_seen(inspection.root, data, seen):
        text = "what was read could not be kept, since the store cannot be written; the next sample begins anew."
        inspection.note(layout.RUNS, "coverage", text)
    in_all = sum(each.stated.size_bytes for each in data)
    return sum(each.stated.size_bytes for each in data if each.path in seen) / in_all if in_all else 1.0
