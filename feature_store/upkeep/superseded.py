"""Feature sets that a newer one of the same dataset and recipe holds: what a nightly job leaves behind."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from feature_store.arrays import token_names
from feature_store.datasets import read_manifest
from feature_store.errors import StoreError
from feature_store.layout import dataset_of
from feature_store.manifest import removed_rows
from feature_store.newest import chain_position, newest_first
from feature_store.reader import FeatureSet
from feature_store.runs import RunHistory
from feature_store.store import FeatureStore

_KEY_COLUMNS = ["view_id", "image_sha256", "uri", "ground_sample_distance_m"]


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """A feature set that is not needed beside a newer one.

    Attributes:
        features: the older one.
        by: the name of the newer one, which is complete.
        n_removed: rows of the older one whose views the dataset has no more, so that no newer one has their tokens.
    """

    features: FeatureSet
    by: str
    n_removed: int

    @property
    def reason(self) -> str:
        """Why it may go, in words."""
        rows = "1 row whose view was" if self.n_removed == 1 else f"{self.n_removed} rows whose views were"
        but = f", but for {rows} removed" if self.n_removed else ""
        return f"the newer {self.by} holds it{but}"


def find_superseded(store: FeatureStore) -> Iterator[Superseded]:
    """Every feature set of which a newer complete one, of the same chain and recipe, has all arrays and rows.

    Another chain may be another dataset of the same name, whose labels nothing else holds (see `newest`). A row counts
    as held where the newer one keeps its place as that of a removed view: it went on purpose.
    """

    def kind(features: FeatureSet) -> tuple[str, str, str]:
        identity = features.spec.identity
        return dataset_of(features.name), identity.recipe, identity.storage_dtype

    readable, _ = store.readable(partial=True)
    for _, group in groupby(sorted(readable, key=kind), key=kind):
        sets = {features.name: features for features in group}
        if len(sets) > 1:
            yield from _superseded_in(store, sets)


def _superseded_in(store: FeatureStore, sets: dict[str, FeatureSet]) -> Iterator[Superseded]:
    specs = {name: features.spec for name, features in sets.items()}
    ordered = newest_first(specs, lambda: RunHistory(store.root).latest(list(specs)))
    newer: list[FeatureSet] = []
    for features in (sets[name] for name in ordered):
        found = next(filter(None, (_held_by(features, each) for each in newer)), None)
        if found is not None:
            yield found
        elif features.complete:
            newer.append(features)


def _held_by(older: FeatureSet, newer: FeatureSet) -> Superseded | None:
    if not _of_one_chain(older, newer) or not set(token_names(older.spec)) <= set(token_names(newer.spec)):
        return None
    try:
        if not set(older.dataset.spec.classes) <= set(newer.dataset.spec.classes):
            return None  # its labels say what those of the newer one cannot
        theirs, ours = (read_manifest(each.root, each.dataset, _KEY_COLUMNS) for each in (newer, older))
    except StoreError:
        return None  # without their manifests nobody knows which rows they have
    wanted = _keys(ours).filter(pa.array(~removed_rows(ours)))
    live, gone = (_keys(theirs).filter(pa.array(mask)) for mask in (~removed_rows(theirs), removed_rows(theirs)))
    missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=live)))
    if not pc.all(pc.is_in(missing, value_set=gone), min_count=0).as_py():
        return None
    return Superseded(features=older, by=newer.name, n_removed=len(missing))


def _of_one_chain(older: FeatureSet, newer: FeatureSet) -> bool:
    """Whether the newer one is of a later state of the same dataset, or of the very same state."""
    (old_origin, old_number), (origin, number) = (chain_position(each.spec.identity) for each in (older, newer))
    same_state = older.spec.identity.views_digest == newer.spec.identity.views_digest
    return origin == old_origin and (old_number < number or (old_number == number and same_state))


def _keys(manifest: pa.Table) -> pa.Array:
    """What tells the view of each row; a removed row is known by its view's id as well."""
    table = manifest.combine_chunks()
    # Only a digest of the content is a key of a view wherever its file stands.
    by_content = pc.match_substring_regex(table["image_sha256"], "^(removed:)?[0-9a-f]{64}$")
    place = pc.if_else(by_content, "", table["uri"])
    distance = pc.fill_null(pc.cast(table["ground_sample_distance_m"], pa.string()), "")
    keys = pc.binary_join_element_wise(table["view_id"], distance, place, "\n")
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
