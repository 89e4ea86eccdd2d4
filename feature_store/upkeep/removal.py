"""Removing on purpose: a feature set, a dataset, a selection, results.

The record that makes a thing exist goes first: it becomes `removed.json` in the same folder, in one step on a local
disk. From then on nobody finds the thing, and whoever finds the folder knows that it was to go, so that a removal that
was killed is told from a record that was lost. Receipts follow, then everything else, `removed.json` last.

Two processes: writers hold a shared lock on `vitrine.json` as long as they have the store open (`join_writers`), and a
removal wants that lock alone, so on one machine no removal begins beside a writer, and a writer that comes later waits
a moment. Behind a URL nobody can tell; there a writer that makes again what is being removed may lose objects of
shards, which their receipts then miss, so that its next run computes them anew: work is lost, never truth.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from feature_store import layout
from feature_store.datasets import RECORD_FILE, read_pointer
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError, UnknownNameError
from feature_store.objects import ObjectRoot
from feature_store.store import FeatureStore
from feature_store.twins import Room, room_of, sizes_under

# What a user calls it who is told to wait.
_COMMANDS = {"remove": "vitrine rm", "repair": "vitrine repair"}


@dataclass(frozen=True, kw_only=True)
class Removable:
    """Something that can be removed as a whole.

    Attributes:
        name: its place in the store.
        kind: `feature set`, `dataset`, `selection` or `results`.
        n_objects, n_bytes: what stands there.
        pointers: files that name it, which go before it.
    """

    name: str
    kind: str
    n_objects: int
    n_bytes: int
    pointers: tuple[str, ...] = ()


def find_removable(root: ObjectRoot, names: Sequence[str]) -> list[Removable]:
    """What users mean by these names.

    Args:
        root: the store.
        names: `selections/NAME`, `results/EVALUATOR[/DIGEST]`, `datasets/NAME[/DIGESTS]`, or a feature set as
            `FeatureStore.resolve` takes it.

    Raises:
        UnknownNameError: nothing of that name, or several feature sets.
        StoreError: a dataset that a feature set needs.
    """
    found: dict[str, Removable] = {}
    for name in names:
        kind, _, rest = name.strip("/").partition("/")
        if kind == layout.SELECTIONS:
            made = [_file(root, layout.selection(rest.removesuffix(".json")), "selection")]
        elif kind == layout.RESULTS:
            made = _results(root, rest)
        elif kind == layout.DATASETS:
            made = _datasets(root, rest)
        else:
            made = [_feature_set(root, rest if kind == layout.FEATURES else name)]
        found |= {each.name: each for each in made}
    return list(found.values())


def _file(root: ObjectRoot, path: str, kind: str) -> Removable:
    n_bytes = root.size_bytes(path)
    if n_bytes is None:
        raise UnknownNameError(f"{root.url} has no {path}, so there is nothing to remove; see `vitrine ls`.")
    return Removable(name=path, kind=kind, n_objects=1, n_bytes=n_bytes)


def _folder(root: ObjectRoot, folder: str, kind: str, pointers: Sequence[str] = ()) -> Removable:
    sizes = [size for _, size in root.walk(folder)]
    return Removable(name=folder, kind=kind, n_objects=len(sizes), n_bytes=sum(sizes), pointers=tuple(pointers))


def _results(root: ObjectRoot, rest: str) -> list[Removable]:
    evaluator, _, digest = rest.partition("/")
    folder = f"{layout.RESULTS}/{layout.check_segment(evaluator)}"
    paths = [path for path, _ in root.walk(folder) if path.removeprefix(f"{folder}/").startswith(digest)]
    if not paths:
        raise UnknownNameError(f"{root.url} has no results/{rest}; `vitrine results` lists what there is.")
    return [_file(root, path, "results") for path in paths]


def _feature_set(root: ObjectRoot, name: str) -> Removable:
    begun = f"{layout.FEATURES}/{name.strip('/')}"
    if name.count("/") == 1 and root.exists(f"{begun}/{layout.REMOVED_FILE}"):
        return _folder(root, begun, "feature set")
    full, _ = FeatureStore(root).choose(name, newest=False, way_out="write the full name")
    return _folder(root, f"{layout.FEATURES}/{full}", "feature set")


def _datasets(root: ObjectRoot, rest: str) -> list[Removable]:
    name, _, digests = rest.strip("/").partition("/")
    folder = f"{layout.DATASETS}/{layout.check_segment(name)}"
    entries = [entry for entry in root.list(folder) if not entry.endswith(".json") and entry.startswith(digests)]
    if not entries:
        raise UnknownNameError(f"{root.url} has no datasets/{rest}; `vitrine show` names datasets.")
    return [_dataset(root, f"{folder}/{entry}") for entry in entries]


def _dataset(root: ObjectRoot, folder: str) -> Removable:
    pointer = f"{folder.rpartition('-')[0]}.json"
    in_force = pointed_to(root, pointer) == folder
    needed_by = users_of_views(root, folder) if in_force else []
    if needed_by:
        raise StoreError(
            f"{folder} is in use: its labels and masks are those of {', '.join(needed_by)}. Remove these first, or "
            "keep it."
        )
    return _folder(root, folder, "dataset", [pointer] if in_force else [])


def pointed_to(root: ObjectRoot, pointer: str) -> str | None:
    """The dataset folder that a pointer names; None where it cannot be read."""
    try:
        return read_pointer(root, pointer)
    except (StoreNotFoundError, CorruptError):
        return None


def users_of_views(root: ObjectRoot, dataset_folder: str) -> list[str]:
    """The feature sets of the views of a dataset folder."""
    _, name, digests = dataset_folder.split("/")
    views = digests.partition("-")[0]
    return [each for each in FeatureStore(root).names() if each.split("/")[0] == f"{name}-{views}"]


@contextlib.contextmanager
def without_writers(root: ObjectRoot, what: str) -> Iterator[None]:
    """Do something while no writer of this machine is at work.

    Raises:
        StoreError: one is.
    """
    with root.alone(layout.STORE_FILE, command=_COMMANDS.get(what, what)) as alone:
        if alone is False:
            raise StoreError(
                f"another process of this machine is writing to {root.url}; wait until it is done, or stop it, and "
                f"{what} again."
            )
        yield


def room_taken(root: ObjectRoot, found: Sequence[Removable]) -> Room:
    """What all of these take of the disk, and what removing them gives back; grown feature sets share files.

    To be asked before they are removed.
    """
    return room_of(root, sizes_under(root, [each.name for each in found]))


def remove(root: ObjectRoot, removable: Removable) -> None:
    """Remove it; may be killed at any instant and called again.

    Raises:
        OSError: the store cannot be written.
    """
    for pointer in removable.pointers:
        root.remove(pointer)
    if removable.kind in {"selection", "results"}:
        root.remove(removable.name)
    else:
        remove_folder(root, removable.name)


def remove_folder(root: ObjectRoot, folder: str) -> None:
    """Remove the folder of a feature set or dataset, its record first."""
    tombstone = f"{folder}/{layout.REMOVED_FILE}"
    for record in (layout.FEATURE_SET_FILE, RECORD_FILE):
        if root.exists(f"{folder}/{record}"):
            root.move(f"{folder}/{record}", tombstone)
    paths = [path for path, _ in (*root.walk(folder), *root.strays(folder)) if path != tombstone]
    for path in sorted(paths, key=lambda path: not path.startswith(layout.receipts_folder(folder))):
        root.remove(path)
    root.remove(tombstone)
    root.tidy(folder.rpartition("/")[0])
