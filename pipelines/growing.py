"""A dataset that grew out of one in the store: rows that stand there keep their numbers, new ones follow.

Each night of a nightly job would otherwise be a whole new feature set, since one new file moves every row behind it.
So the rows of the newest complete feature set of the same dataset and recipe stay where they are, wherever their files
moved; new views follow in uri order; a view that is gone leaves a row that is invalid (`removed`), and gets it back
when it returns. Whole shards then hold the same bytes as before, and need not be written again (see `linking`).

The order is a function of the predecessor's manifest and of the dataset, and the identity names the predecessor, so a
feature set's name still means one content.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from feature_store import (
    FeatureSet,
    StoredDataset,
    StoreError,
    StoreNotFoundError,
    read_manifest,
    suggest_rows_per_shard,
)
from feature_store.arrays import row_bytes
from feature_store.errors import CorruptError
from feature_store.growth import Growth
from feature_store.identity import FeatureSetSpec
from feature_store.layout import slug
from feature_store.manifest import MANIFEST_SCHEMA, REMOVED, VIEW_FIELDS, removed_rows, views_digest
from feature_store.newest import chain_position, newest_first
from feature_store.objects import ObjectRoot
from feature_store.runs import RunHistory
from feature_store.store import FeatureStore
from pipelines.backbones.description import BackboneDescription
from pipelines.datasets import Dataset
from pipelines.plan import ExtractionSettings, feature_set_spec
from pipelines.reuse import view_keys

# A fresh dataset of as many rows would be cut so many times larger: from there on it is cut anew.
_MOST_TOO_SMALL = 8
Numbers: TypeAlias = Int64[np.ndarray, " rows"]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A dataset in the order in which its rows are stored.

    Attributes:
        dataset: its rows in that order, removed ones among them.
        grown_from: for the identity; None for a fresh dataset.
        rows_per_shard: the predecessor's; None for a fresh dataset.
        predecessor: the name of the feature set whose rows come first, or None.
        kept, new, removed: how many rows the predecessor has too, how many follow, and how many are gone; the removed
            ones of earlier nights among them.
    """

    dataset: Dataset
    grown_from: Growth | None = None
    rows_per_shard: int | None = None
    predecessor: str | None = None
    kept: int = 0
    new: int = 0
    removed: int = 0


def fresh_spec(
    dataset: Dataset, backbone: BackboneDescription, settings: ExtractionSettings, attention_kernel: str
) -> FeatureSetSpec:
    """The record of the feature set that the dataset would have in uri order; its annotations do not matter."""
    described = StoredDataset(
        folder="",
        spec=dataset.spec,
        views_digest=views_digest(dataset.table),
        annotations_digest="",
        n_rows=dataset.table.num_rows,
    )
    max_pixels = dataset.rules.max_pixels
    return feature_set_spec(described, backbone, settings, attention_kernel=attention_kernel, max_pixels=max_pixels)


def grow_dataset(root: ObjectRoot, dataset: Dataset, fresh: FeatureSetSpec, settings: ExtractionSettings) -> Grown:
    """The dataset as it grew out of the newest feature set of the same dataset and recipe, if it did.

    Reads one small record of each feature set of this dataset name, and one manifest of each chain until one fits.

    Args:
        root: the store.
        dataset: in uri order.
        fresh: the record of the feature set that the dataset would have in that order.
        settings: what the user chose: the order, and perhaps the rows of a shard.

    Raises:
        CorruptError: the manifest that decides the order cannot be read.
    """
    if settings.order == "uri":
        return Grown(dataset=dataset)
    for head in _heads(root, dataset.spec.name, fresh, settings.rows_per_shard):
        if _is_fresh_state(head.spec, fresh):
            break
        old = _rows_of(head)
        places = _match(old, dataset.table)
        if 2 * int((places >= 0).sum()) < old.num_rows:
            continue  # another folder or other tiles may have the same name, and tonight's may have grown before those
        if _cut_too_small(head.spec, fresh):
            break
        return _grown_out_of(head, old, places, dataset, fresh)
    return Grown(dataset=dataset)


def _grown_out_of(head: FeatureSet, old: pa.Table, places: Numbers, dataset: Dataset, fresh: FeatureSetSpec) -> Grown:
    kept = int((places >= 0).sum())
    return Grown(
        dataset=replace(dataset, table=_in_order(old, dataset.table, places)),
        grown_from=_growth(head.spec, fresh),
        rows_per_shard=head.spec.rows_per_shard,
        predecessor=head.name,
        kept=kept,
        new=len(places) - kept,
        removed=old.num_rows - kept,
    )


def with_growth(spec: FeatureSetSpec, grown: Grown) -> FeatureSetSpec:
    """The record of a feature set of a dataset that grew, or of a fresh one."""
    if grown.rows_per_shard is None:
        return spec
    identity = replace(spec.identity, grown_from=grown.grown_from)
    return replace(spec, identity=identity, rows_per_shard=grown.rows_per_shard)


def _heads(root: ObjectRoot, dataset: str, fresh: FeatureSetSpec, rows_per_shard: int | None) -> Iterator[FeatureSet]:
    """The newest feature set of each chain, newest first: a complete one, or one of this very content to go on with."""
    sets = {
        each.name: each
        for each in FeatureStore(root).readable(dataset=slug(dataset))[0]
        if _same_recipe(each.spec, fresh) and rows_per_shard in {None, each.spec.rows_per_shard}
    }
    specs = {name: each.spec for name, each in sets.items()}
    chains: set[str] = set()
    for name in newest_first(specs, lambda: RunHistory(root).latest(list(specs))):
        origin, _ = chain_position(specs[name].identity)
        if origin not in chains and (_content(specs[name]) == _content(fresh) or _is_complete(sets[name])):
            chains.add(origin)
            yield sets[name]


def _is_complete(features: FeatureSet) -> bool:
    try:
        return features.complete
    except StoreError:
        return False


def _rows_of(head: FeatureSet) -> pa.Table:
    """What a predecessor's manifest says of its views; without it nobody knows which rows it has.

    A fresh dataset instead would give every row another number, and the user would not learn of it.
    """
    try:
        return read_manifest(head.root, head.dataset, [field.name for field in VIEW_FIELDS])
    except (CorruptError, StoreNotFoundError) as error:
        raise CorruptError(
            f"{head.name} decides the order of the rows, and its manifest cannot be read: {error} Restore it from a "
            f"copy, or remove the feature set with `vitrine rm {head.name}`, so that the state before it decides. "
            "`vitrine repair` moves aside what is damaged, and `--order uri` makes a fresh dataset."
        ) from error


def _same_recipe(theirs: FeatureSetSpec, ours: FeatureSetSpec) -> bool:
    """Whether shards of theirs may stand, as they are, in a feature set like ours."""
    return (
        theirs.identity.recipe == ours.identity.recipe
        and theirs.identity.storage_dtype == ours.identity.storage_dtype
        and (theirs.batch_size, theirs.attention_kernel) == (ours.batch_size, ours.attention_kernel)
        and set(theirs.identity.layers) >= set(ours.identity.layers)
        and set(theirs.identity.token_kinds) >= set(ours.identity.token_kinds)
    )


def _content(spec: FeatureSetSpec) -> str:
    """The views digest that the dataset would have in uri order, without removed rows."""
    grown = spec.identity.grown_from
    return spec.identity.views_digest if grown is None else grown.in_uri_order


def _is_fresh_state(spec: FeatureSetSpec, fresh: FeatureSetSpec) -> bool:
    """Whether a feature set is of the fresh dataset itself.

    The same views may stand in the same order in a dataset that grew, when a removed one came back: then its own
    growth belongs to its identity, and tonight's is that one again.
    """
    return spec.identity.grown_from is None and spec.identity.views_digest == fresh.identity.views_digest


def _growth(predecessor: FeatureSetSpec, fresh: FeatureSetSpec) -> Growth | None:
    """How the new dataset came to its order; of the very same dataset, how that one did."""
    theirs = predecessor.identity
    if _content(predecessor) == _content(fresh):
        return theirs.grown_from
    return Growth(
        predecessor=theirs.views_digest,
        origin=theirs.views_digest if theirs.grown_from is None else theirs.grown_from.origin,
        generation=1 if theirs.grown_from is None else theirs.grown_from.generation + 1,
        in_uri_order=fresh.identity.views_digest,
    )


def _cut_too_small(predecessor: FeatureSetSpec, fresh: FeatureSetSpec) -> bool:
    """Whether shards that fitted a small dataset would cut this one into far too many."""
    suggested = suggest_rows_per_shard(fresh.n_rows, row_bytes(fresh), multiple_of=fresh.batch_size)
    return fresh.rows_per_shard != predecessor.rows_per_shard and (
        suggested >= _MOST_TOO_SMALL * predecessor.rows_per_shard
    )


def _match(old: pa.Table, new: pa.Table) -> Numbers:
    """The row of the predecessor that each new row keeps; -1 for one that it does not have.

    The same content may stand at several places: first each keeps the row of its own place, then rows are given in
    order. A removed row is given back when nothing else is left.
    """
    places = np.full(new.num_rows, -1, dtype=np.int64)
    gone = removed_rows(old)
    old_keys, new_keys = view_keys(old), view_keys(new)
    old_pairs, new_pairs = (
        pc.binary_join_element_wise(keys, table["uri"].combine_chunks(), "\n")
        for keys, table in ((old_keys, old), (new_keys, new))
    )
    open_rows = np.flatnonzero(~gone)
    for theirs, ours, rows in (
        (old_pairs, new_pairs, open_rows),
        (old_keys, new_keys, open_rows),
        (old_keys, new_keys, np.flatnonzero(gone)),
    ):
        free = rows[~np.isin(rows, places)]
        wanted = np.flatnonzero(places < 0)
        first, second = _pairs(theirs.take(pa.array(free)), ours.take(pa.array(wanted)))
        places[wanted[second]] = free[first]
    return places


def _pairs(old: pa.Array, new: pa.Array) -> tuple[Numbers, Numbers]:
    """Positions of equal values: the first of a value in `old` with the first in `new`, and so on."""
    both = pa.concat_arrays([old, new]).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    longest = max(len(old), len(new), 1)
    left, right = (codes * longest + _occurrence(codes) for codes in (both[: len(old)], both[len(old) :]))
    _, first, second = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return first.astype(np.int64), second.astype(np.int64)


def _occurrence(codes: Numbers) -> Numbers:
    """How many equal values stand before each value."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.diff(np.append(starts, len(codes)))
    found = np.empty(len(codes), dtype=np.int64)
    found[order] = np.arange(len(codes)) - np.repeat(starts, counts)
    return found


def _in_order(old: pa.Table, new: pa.Table, places: Numbers) -> pa.Table:
    """The manifest: the predecessor's rows as they are now, then the others of `new` in their order."""
    added = np.flatnonzero(places < 0)
    final = places.copy()
    final[added] = old.num_rows + np.arange(len(added))
    gone = np.setdiff1d(np.arange(old.num_rows), places)
    source = np.empty(old.num_rows + len(added), dtype=np.int64)
    source[final] = np.arange(new.num_rows)
    source[gone] = new.num_rows + np.arange(len(gone))
    return pa.concat_tables([new, _removed(old.take(pa.array(gone)))]).take(pa.array(source)).combine_chunks()


def _removed(rows: pa.Table) -> pa.Table:
    """Rows of views that are gone: known by what they were, without anything that an evaluator could count."""
    keys = rows["image_sha256"]
    marked = pc.if_else(pc.starts_with(keys, REMOVED), keys, pc.binary_join_element_wise(REMOVED, keys, ""))
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names} | {"image_sha256": marked}
    arrays = [columns.get(field.name, pa.nulls(len(rows), field.type)) for field in MANIFEST_SCHEMA]
    return pa.table(arrays, schema=MANIFEST_SCHEMA)
