"""What a store holds and nobody needs: found, and removed when asked for.

Why it is safe beside other processes. What is collected falls into two groups.

Always safe, since no living writer's work can be among it: partial files, which the kernel says are no living process's
(each is locked while it is written); objects of a feature set under names that no writer of it has; results of feature
sets that are gone, which at worst are computed once more; and, when asked for, what `repair` moved aside.

Only while no writer of this machine is at work, which the lock on `vitrine.json` says (`ObjectRoot.alone`):
annotations that no pointer names, registrations that were cut off, removals that were begun, and, when asked for,
feature sets that a newer one holds, with their datasets. A registration writes the pointer last, so that its folder
looks unneeded until then; and a running extraction goes on reading the annotations that it began with when others come
into force, and feature sets that it copies from. Every writer holds the lock from before its first look to its end, and
waits for it while a collection is at work; what is needed is looked up only after the lock was given. Where nobody can
tell, behind a URL, these are left unless the caller says that nobody writes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from feature_store import layout
from feature_store.arrays import shard_objects
from feature_store.datasets import RECORD_FILE, read_dataset
from feature_store.errors import StoreError
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.results import all_results
from feature_store.store import FeatureStore
from feature_store.twins import room_of, sizes_under
from feature_store.upkeep.inspection import is_partial
from feature_store.upkeep.removal import pointed_to, remove_folder, users_of_views
from feature_store.upkeep.superseded import Superseded, find_superseded

_DATASET_FOLDER = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that nobody needs.

    Attributes:
        path: a file, or a folder with all in it.
        reason: why nobody needs it.
        n_objects, n_bytes: what stands there.
        is_folder: whether all under the path goes.
    """

    path: str
    reason: str
    n_objects: int
    n_bytes: int
    is_folder: bool = False


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """What a collection found, and did.

    Attributes:
        url: of the store, without secrets.
        garbage: what nobody needs, and may go now.
        removed: whether it was removed.
        partials_swept: partial files of dead writers that were removed; without removal, all partial files there are.
        held_back: why some things were not looked for, or empty.
        n_bytes: of all garbage, each file counted once, however many names it has there.
        freed_bytes: what all garbage gives back; a file that has a name elsewhere too gives nothing.
    """

    url: str
    garbage: tuple[Garbage, ...]
    removed: bool
    partials_swept: int
    n_bytes: int
    freed_bytes: int
    held_back: str = ""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def collect_garbage(
    root: ObjectRoot,
    *,
    remove: bool = False,
    aside: bool = False,
    superseded: bool = False,
    nobody_writes: bool = False,
) -> CollectReport:
    """Find what nobody needs, and remove it when asked to; see the module for why that is safe.

    Args:
        root: the store.
        remove: remove it; without, nothing is changed.
        aside: what `repair` moved aside is garbage too.
        superseded: so is a feature set that a newer one of the same dataset and recipe holds, see `find_superseded`.
        nobody_writes: the caller knows that no process writes to the store, wherever it runs.
    """
    with root.alone(layout.STORE_FILE, command="vitrine gc") as alone:
        quiet = bool(alone or (alone is None and nobody_writes))
        # A thing may be unneeded for two reasons; the first is told.
        by_path = {each.path: each for each in reversed(list(_find(root, aside, superseded=superseded, quiet=quiet)))}
        found = list(reversed(by_path.values()))
        room = room_of(root, sizes_under(root, by_path))
        if remove:
            for garbage in found:
                _remove(root, garbage)
        partials = root.sweep_partials("") if remove else sum(is_partial(path) for path, _ in root.walk(""))
    return CollectReport(
        url=root.url,
        garbage=tuple(found),
        removed=remove,
        partials_swept=partials,
        n_bytes=room.n_bytes,
        freed_bytes=room.freed_bytes,
        held_back="" if quiet else _why_held_back(alone),
    )


def _why_held_back(alone: bool | None) -> str:
    left = "annotations, cut-off registrations and begun removals were left alone"
    if alone is False:
        return f"a process of this machine is writing, so {left}; collect again when it is done."
    return f"nobody can tell whether a process is writing, so {left}; say --nobody-writes when you know that none does."


def _find(root: ObjectRoot, aside: bool, *, superseded: bool, quiet: bool) -> Iterator[Garbage]:
    store = FeatureStore(root)
    digests = set()
    old = {each.features.name: each for each in find_superseded(store)} if superseded and quiet else {}
    yield from _superseded(root, old)
    unreadable = False
    for name in store.names():
        try:
            features = FeatureSet(root, name, partial=True)
        except StoreError:
            unreadable = True  # its results and annotations may be needed when it is repaired
            continue
        if name in old:
            continue
        digests.add(features.digest)
        yield from _orphans(root, features)
    old_results = [] if unreadable else list(_old_results(root, digests))
    yield from old_results
    if quiet:
        gone = {garbage.path for garbage in old_results}
        yield from _begun_removals(root)
        yield from _unneeded_datasets(root, gone)
    if aside:
        yield from _garbage(root, root.list(layout.ASIDE), layout.ASIDE, "moved aside by an earlier repair")


def _garbage(root: ObjectRoot, entries: Iterable[str], folder: str, reason: str) -> Iterator[Garbage]:
    for entry in entries:
        path = f"{folder}/{entry}"
        sizes = [size for _, size in root.walk(path)]
        yield Garbage(path=path, reason=reason, n_objects=len(sizes), n_bytes=sum(sizes), is_folder=True)


def _superseded(root: ObjectRoot, old: Mapping[str, Superseded]) -> Iterator[Garbage]:
    """Feature sets that a newer one holds, then the datasets that no other feature set needs: first what names them."""
    for name, each in old.items():
        yield from _garbage(root, [name], layout.FEATURES, each.reason)
    for name, each in old.items():
        features = each.features
        pointer = layout.dataset_pointer(features.dataset_name, features.spec.identity.views_digest)
        folder = pointed_to(root, pointer)
        if folder is None or set(users_of_views(root, folder)) - set(old):
            continue
        reason = f"the dataset of {name}, which goes"
        yield Garbage(path=pointer, reason=reason, n_objects=1, n_bytes=root.size_bytes(pointer) or 0)
        parent, _, start = pointer.removesuffix(".json").rpartition("/")
        yield from _garbage(root, [e for e in root.list(parent) if e.startswith(f"{start}-")], parent, reason)


def _orphans(root: ObjectRoot, features: FeatureSet) -> Iterator[Garbage]:
    """Objects of arrays or shards that the feature set does not have; only of one that is complete."""
    if not features.complete:
        return
    declared = {path for shard in features.shards for path in shard_objects(features.folder, features.spec, shard)}
    for path, size in root.walk(layout.tokens_group(features.folder)):
        if "/c/" in path and path not in declared and not is_partial(path):
            reason = f"no shard of {features.name}, which is complete"
            yield Garbage(path=path, reason=reason, n_objects=1, n_bytes=size)


def _old_results(root: ObjectRoot, digests: set[str]) -> Iterator[Garbage]:
    for evaluator, record in all_results(root):
        feature_set = record["key"].get("feature_set")
        if isinstance(feature_set, str) and feature_set not in digests:
            path = layout.result(evaluator, record["digest"])
            reason = f"a result of a feature set {feature_set[:8]} that is gone"
            yield Garbage(path=path, reason=reason, n_objects=1, n_bytes=root.size_bytes(path) or 0)


def _begun_removals(root: ObjectRoot) -> Iterator[Garbage]:
    for kind, record in ((layout.FEATURES, layout.FEATURE_SET_FILE), (layout.DATASETS, RECORD_FILE)):
        for name in root.list(kind):
            folder = f"{kind}/{name}"
            begun = [
                entry
                for entry in root.list(folder)
                if root.exists(f"{folder}/{entry}/{layout.REMOVED_FILE}")
                and not root.exists(f"{folder}/{entry}/{record}")
            ]
            yield from _garbage(root, begun, folder, "its removal was begun")


def _unneeded_datasets(root: ObjectRoot, gone_results: set[str]) -> Iterator[Garbage]:
    used = {
        record["key"].get("annotations")
        for evaluator, record in all_results(root)
        if layout.result(evaluator, record["digest"]) not in gone_results
    }
    for name in root.list(layout.DATASETS):
        parent = f"{layout.DATASETS}/{name}"
        entries = [entry for entry in root.list(parent) if _DATASET_FOLDER.fullmatch(entry)]
        reasons = {entry: _why_unneeded(root, f"{parent}/{entry}", used) for entry in entries}
        for entry, reason in reasons.items():
            if reason is not None:
                yield from _garbage(root, [entry], parent, reason)


def _why_unneeded(root: ObjectRoot, folder: str, used: set[Any]) -> str | None:
    pointer = f"{folder.rpartition('-')[0]}.json"
    if root.exists(f"{folder}/{layout.REMOVED_FILE}"):
        return None  # found as a begun removal
    if pointed_to(root, pointer) in {folder, None} and root.exists(pointer):
        return None  # in force, or nobody can tell what is
    if not root.exists(f"{folder}/{RECORD_FILE}"):
        return "a registration that was cut off"
    try:
        annotations = read_dataset(root, folder).annotations_digest
    except StoreError:
        return None  # damaged: for `repair`
    if not root.exists(pointer):
        return None  # the pointer is lost, and these annotations may be those in force
    return None if annotations in used else "annotations that others replaced, and no result used"


def _remove(root: ObjectRoot, garbage: Garbage) -> None:
    if not garbage.is_folder:
        root.remove(garbage.path)
    elif garbage.path.startswith(f"{layout.ASIDE}/"):
        for path, _ in (*root.walk(garbage.path), *root.strays(garbage.path)):
            root.remove(path)
        root.tidy(layout.ASIDE)
    else:
        remove_folder(root, garbage.path)
