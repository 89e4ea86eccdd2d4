"""Making a damaged store usable again: what fails moves aside, what can be made again is, and nothing is deleted."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from feature_store import layout
from feature_store.datasets import RECORD_FILE, put_in_force, read_dataset
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.records import record_bytes
from feature_store.runs import RunHistory, new_run_id, planned_spec
from feature_store.shards import missing_shards
from feature_store.store import FeatureStore
from feature_store.upkeep.findings import Finding, ReadProgress
from feature_store.upkeep.removal import without_writers
from feature_store.upkeep.verify import verify_store
from feature_store.writer import STORE_RECORD, committed_receipts, finish_feature_set, zarr_metadata_files


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A feature set that lacks shards.

    Attributes:
        feature_set: its name.
        shards: the indices that it lacks.
    """

    feature_set: str
    shards: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair found, and did.

    Attributes:
        url: of the store, without secrets.
        found: the problems.
        aside: the folder in the store that failing files were moved to, or None.
        moved: their paths.
        remade: files that were written anew.
        left: problems that still stand, each with its way out.
        unfinished: feature sets that lack shards, for the same `vitrine extract`.
    """

    url: str
    found: tuple[Finding, ...]
    aside: str | None
    moved: tuple[str, ...]
    remade: tuple[str, ...]
    left: tuple[Finding, ...]
    unfinished: tuple[Unfinished, ...]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left and not self.unfinished

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def repair_store(root: ObjectRoot, *, deep: bool = True, progress: ReadProgress | None = None) -> RepairReport:
    """Verify, move what fails to `aside/<time>-<random>/`, and write anew what follows from the rest.

    A shard that fails loses its receipt with it, so that the same extraction computes it again. May be killed at any
    instant and called again.

    Args:
        root: the store.
        deep: read every byte, as `verify_store` does.
        progress: as for `verify_store`.

    Raises:
        StoreError: a process of this machine is writing to the store.
        OSError: the store cannot be written.
    """
    with without_writers(root, "repair"):
        folder = f"{layout.ASIDE}/{new_run_id()}"
        found: list[Finding] = []
        moved: list[str] = []
        remade: list[str] = []
        # A record that is made again says what to expect beside it, so there may be more to find.
        while left := verify_store(root, deep=deep, progress=progress).problems:
            found += [each for each in left if each not in found]
            now_moved, now_remade = list(_move_aside(root, left, folder)), list(_remake(root))
            if not now_moved and not now_remade:
                break
            moved, remade = moved + now_moved, remade + now_remade
            deep = deep and any(path.endswith(layout.FEATURE_SET_FILE) for path in now_remade)
    return RepairReport(
        url=root.url,
        found=tuple(found),
        aside=folder if moved else None,
        moved=tuple(moved),
        remade=tuple(dict.fromkeys(remade)),
        left=left,
        unfinished=tuple(_unfinished(root)),
    )


def _move_aside(root: ObjectRoot, problems: tuple[Finding, ...], folder: str) -> Iterator[str]:
    suspects = {path for problem in problems for path in problem.suspects}
    # An index speaks of whole feature sets alone.
    suspects |= {layout.receipts_index("/".join(path.split("/")[:3])) for path in suspects if "/receipts/" in path}
    # The index goes first, then receipts, then objects: at no instant does one speak of what is gone. Before all what
    # stands where they go.
    for path in sorted(
        suspects,
        key=lambda path: (path != layout.ASIDE, not path.endswith("/receipts.json"), "/receipts/" not in path, path),
    ):
        # Corrupt: the path leads over a link out of the store, and the link itself is a suspect.
        with contextlib.suppress(StoreNotFoundError, CorruptError):
            root.move(_out_of_the_way(root, path), f"{folder}/{path}")
            yield path


def _out_of_the_way(root: ObjectRoot, path: str) -> str:
    """`path`, or where it is now: `aside` itself, where it is no folder, cannot move into itself."""
    if path != layout.ASIDE:
        return path
    beside = f"{layout.ASIDE}-{secrets.token_hex(3)}"
    root.move(path, beside)
    return beside


def _remake(root: ObjectRoot) -> Iterator[str]:
    if root.put_new(layout.STORE_FILE, record_bytes(STORE_RECORD)):
        yield layout.STORE_FILE
    history = RunHistory(root)
    for folder in _feature_folders(root):
        with contextlib.suppress(CorruptError):  # a link in the way, which the next round moves aside
            yield from _remake_feature_set(root, folder, history)
    for name in root.list(layout.DATASETS):
        with contextlib.suppress(CorruptError):
            yield from _remake_pointers(root, f"{layout.DATASETS}/{name}")


def _feature_folders(root: ObjectRoot) -> list[str]:
    return [
        f"{layout.FEATURES}/{dataset}/{model}"
        for dataset in root.list(layout.FEATURES)
        for model in root.list(f"{layout.FEATURES}/{dataset}")
        if not root.exists(f"{layout.FEATURES}/{dataset}/{model}/{layout.REMOVED_FILE}")
    ]


def _remake_feature_set(root: ObjectRoot, folder: str, history: RunHistory) -> Iterator[str]:
    """The `zarr.json` files, and the record where the plan of a run tells it."""
    try:
        spec = FeatureSet(root, layout.feature_set_name(folder)).spec
    except StoreNotFoundError:
        planned = planned_spec(history, folder) if any(root.walk(folder)) else None
        if planned is None:
            return
        spec = planned
    except CorruptError:
        return
    dataset = layout.dataset_of(layout.feature_set_name(folder))
    if layout.feature_set_folder(dataset, spec) != folder:
        return
    record = {f"{folder}/{layout.FEATURE_SET_FILE}": record_bytes(spec.to_json())}
    for path, content in (record | zarr_metadata_files(folder, spec)).items():
        # What stands there and is wrong moves aside first.
        if root.put_new(path, content):
            yield path
    index = layout.receipts_index(folder)
    if not root.exists(index) and finish_feature_set(root, folder, spec) and root.exists(index):
        yield index


def _remake_pointers(root: ObjectRoot, folder: str) -> Iterator[str]:
    """Where only one set of annotations of some views stands, it is the one in force."""
    by_pointer: dict[str, list[str]] = {}
    for entry in root.list(folder):
        if root.exists(f"{folder}/{entry}/{RECORD_FILE}"):
            by_pointer.setdefault(f"{folder}/{entry.partition('-')[0]}.json", []).append(f"{folder}/{entry}")
    for pointer, datasets in by_pointer.items():
        if len(datasets) == 1 and not root.exists(pointer):
            with contextlib.suppress(StoreError):
                put_in_force(root, read_dataset(root, datasets[0]))
                yield pointer


def _unfinished(root: ObjectRoot) -> Iterator[Unfinished]:
    for name in FeatureStore(root).names():
        with contextlib.suppress(StoreError):
            features = FeatureSet(root, name, partial=True)
            missing = missing_shards(features.shards, committed_receipts(root, features.folder, features.spec))
            if missing:
                yield Unfinished(feature_set=name, shards=tuple(shard.index for shard in missing))
