"""Rows that stand in another feature set already: found by what decides their pixels, copied instead of computed.

The tokens of a view are a function of its pixels and of the recipe (weights, architecture, preprocessing, compute
dtype, extraction schema), not of the dataset that it is in. So a dataset that gained, lost or reordered images costs
only its new views. Batch size and kernel must be the same too, because on some devices they change last bits.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from feature_store import FeatureSet, Shard, StoredDataset, StoreError, TokenKind, read_dataset, read_manifest
from feature_store.identity import FeatureSetSpec
from feature_store.manifest import REMOVED, removed_rows
from feature_store.manifest_order import ROWS_AT_ONCE
from feature_store.newest import chain_position
from feature_store.objects import ObjectRoot
from feature_store.roots import process_root
from feature_store.runs import RunHistory
from pipelines.environment import EnvironmentOf, environment_difference
from pipelines.prefetch import with_retries
from pipelines.stat_key import STAT

_KEY_COLUMNS = ["view_id", "image_sha256", "uri", "ground_sample_distance_m"]
_COMPUTED = -1
_REMOVED = -2
RowNumbers = Int64[np.ndarray, " rows"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A feature set that rows are copied from.

    Attributes:
        name: of the feature set.
        rows: how many of the wanted rows it gives.
        refused: why its rows are computed all the same: the differing environment; None where they are copied.
    """

    name: str
    rows: int
    refused: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RowMap:
    """Where each row of a new feature set can be copied from.

    Attributes:
        sources: the feature sets.
        source: of each row, an index into `sources`; -1 for a row that must be computed, -2 for one that is only the
            place of a view that the dataset has no more.
        row: of each row, its number in that source.
    """

    sources: tuple[FeatureSet, ...]
    source: RowNumbers
    row: RowNumbers

    def count(self, shards: Sequence[Shard]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How many rows of these shards each source gives."""
        counts = np.zeros(len(self.sources), dtype=np.int64)
        for shard in shards:
            source = self.source[shard.start : shard.stop]
            np.add.at(counts, source[source >= 0], 1)
        return counts

    def n_computed(self, shard: Shard, *, n_sources: int) -> int:
        """How many rows of a shard must be computed when only the first of the sources are copied from."""
        source = self.source[shard.start : shard.stop]
        return int(((source == _COMPUTED) | (source >= n_sources)).sum())

    def n_removed(self, shard: Shard) -> int:
        """How many rows of a shard are only the places of views that are gone."""
        return int((self.source[shard.start : shard.stop] == _REMOVED).sum())

    def twin(self, spec: FeatureSetSpec, shard: Shard) -> FeatureSet | None:
        """The source whose shard of this number has the same valid rows at the same places, if one has.

        The bytes are the same when the other rows are invalid for the same reasons; whether they are is for the caller
        to find out, since an unreadable image may be readable by now.
        """
        source, row = self.source[shard.start : shard.stop], self.row[shard.start : shard.stop]
        valid = source >= 0
        numbers = np.unique(source[valid])
        if len(numbers) != 1:
            return None
        features = self.sources[numbers[0]]
        same_cut = features.spec.rows_per_shard == spec.rows_per_shard and (
            features.shards[shard.index : shard.index + 1] == (shard,)
        )
        same_dtype = features.spec.identity.storage_dtype == spec.identity.storage_dtype
        if not same_cut or not same_dtype or (row[valid] != shard.start + np.flatnonzero(valid)).any():
            return None
        their_invalid = [entry.row - shard.start for entry in features.receipts[shard.index].invalid]
        return features if their_invalid == np.flatnonzero(~valid).tolist() else None


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """What of the missing shards stands in the store already.

    Attributes:
        sources: feature sets that give rows, those of another environment with the difference, and only for rows that
            no other has.
        computed: of each missing shard, how many rows no source gives that may be copied from.
        removed: of each missing shard, how many rows are only the places of views that are gone.
        linked: of each missing shard, how many rows need not be written, since a source has the same shard.
    """

    sources: tuple[Source, ...] = ()
    computed: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    linked: tuple[int, ...] = ()


def find_sources(
    others: Sequence[FeatureSet],
    manifest: pa.Table,
    spec: FeatureSetSpec,
    missing: Sequence[Shard],
    *,
    environment: EnvironmentOf | None,
    predecessor: str | None = None,
) -> Reuse:
    """The feature sets of the store that have rows of the missing shards, and how much is left to compute.

    Args:
        others: the feature sets of the store.
        manifest: of the new feature set's dataset.
        spec: of the new feature set.
        missing: the shards to commit.
        environment: gives the one that sources must have been made in, and is asked where there are any; None to
            allow all.
        predecessor: the name of the feature set that this one grew out of, which is asked first.
    """
    ranked = _ranked(others, spec, environment, predecessor)
    n_allowed = sum(difference is None for _, difference in ranked)
    rows = _map_rows(manifest, [features for features, _ in ranked])
    return Reuse(
        sources=tuple(
            Source(name=features.name, rows=int(n_rows), refused=difference)
            for (features, difference), n_rows in zip(ranked, rows.count(missing), strict=True)
            if n_rows
        ),
        computed=tuple(rows.n_computed(shard, n_sources=n_allowed) for shard in missing),
        removed=tuple(rows.n_removed(shard) for shard in missing),
        linked=tuple(_linked_rows(rows, spec, shard, n_allowed) for shard in missing),
    )


def _ranked(
    others: Sequence[FeatureSet], spec: FeatureSetSpec, environment: EnvironmentOf | None, predecessor: str | None
) -> list[tuple[FeatureSet, str | None]]:
    """The feature sets that may have rows, each with the environment's difference: those without one come first."""
    fitting = [each for each in others if each.digest != spec.identity.digest and _fits(each.spec, spec)]
    differing = _differing(environment)
    first = [(each, differing(each)) for each in _with_rows([each for each in fitting if each.name == predecessor])]
    rest = [each for each in fitting if each.name != predecessor]
    for grown_out_of, difference in first:
        if difference is None:
            # Earlier states have nothing that the predecessor does not have: nothing of them but the record is read.
            position = chain_position(grown_out_of.spec.identity)
            rest = [each for each in rest if not _is_before(each, position)]
    ranked = [*first, *((each, differing(each)) for each in _with_rows(rest))]
    # Stable: the predecessor stays before the others of its kind.
    return sorted(ranked, key=lambda each: each[1] is not None)


def _differing(environment: EnvironmentOf | None) -> Callable[[FeatureSet], str | None]:
    """What tells the difference of the environment of a feature set; runs and environment are read when it is asked."""
    if environment is None:
        return lambda _: None
    history, ours = functools.cache(RunHistory), functools.cache(environment)
    return lambda features: _difference(history(features.root), features, ours())


def _is_before(features: FeatureSet, position: tuple[str, int]) -> bool:
    """Whether a feature set is of an earlier state of the chain of datasets that this position is in."""
    origin, generation = chain_position(features.spec.identity)
    return origin == position[0] and generation < position[1]


def _linked_rows(rows: RowMap, spec: FeatureSetSpec, shard: Shard, n_sources: int) -> int:
    """The rows of a shard that need not be written, as far as can be said before images are looked at."""
    if rows.n_computed(shard, n_sources=n_sources):
        return 0
    return 0 if rows.twin(spec, shard) is None else shard.n_rows


def _difference(history: RunHistory, features: FeatureSet, environment: dict[str, str]) -> str | None:
    made_in = history.environments(features.folder)
    return environment_difference(made_in, environment) if made_in else "no run says where it was made"


def _with_rows(candidates: Sequence[FeatureSet]) -> list[FeatureSet]:
    """Those that have a valid row: the receipts of each are read, side by side."""
    has_rows = candidates[0].root.side_by_side(_has_rows, candidates) if candidates else []
    return [features for features, there in zip(candidates, has_rows, strict=True) if there]


def _has_rows(features: FeatureSet) -> bool:
    try:
        return bool(features.valid.any())
    except StoreError:
        return False  # what cannot be read holds nothing that could be used here


def _fits(theirs: FeatureSetSpec, ours: FeatureSetSpec) -> bool:
    """Whether tokens of theirs are those that ours would compute."""
    return (
        theirs.identity.recipe == ours.identity.recipe
        and (theirs.batch_size, theirs.attention_kernel) == (ours.batch_size, ours.attention_kernel)
        and set(theirs.identity.layers) >= set(ours.identity.layers)
        and set(theirs.identity.token_kinds) >= set(ours.identity.token_kinds)
        # Tokens are computed in float32 and rounded once, so float16 can be had of float32.
        and theirs.identity.storage_dtype in {ours.identity.storage_dtype, "float32"}
    )


@functools.lru_cache(maxsize=1)
def row_map(store: str, dataset_folder: str, sources: tuple[str, ...]) -> RowMap:
    """The row map of a plan, made once a process.

    A source that is gone meanwhile, or cannot be read, gives nothing: its rows are computed.
    """
    root = process_root(store)
    found = []
    for name in sources:
        try:
            features = FeatureSet(root, name)
            if features.valid.any():
                found.append(features)
        except StoreError:
            continue
    return _map_rows(_key_columns(root, read_dataset(root, dataset_folder)), found)


def _map_rows(manifest: pa.Table, sources: Sequence[FeatureSet]) -> RowMap:
    """Each row from the first source that has it, valid."""
    source = np.where(removed_rows(manifest), _REMOVED, _COMPUTED)
    row = np.zeros(manifest.num_rows, dtype=np.int64)
    # Of no row where nobody asks: a key is some hundred bytes.
    keys = view_keys(manifest if sources else manifest.slice(0, 0))
    for number, features in enumerate(sources):
        wanted, valid = np.flatnonzero(source == _COMPUTED), np.flatnonzero(features.valid)
        if not wanted.size:
            break
        try:
            theirs = view_keys(_key_columns(features.root, features.dataset)).take(pa.array(valid))
        except StoreError:
            theirs = pa.array([], pa.string())  # without its manifest nobody knows what its rows are
        found = pc.index_in(keys.take(pa.array(wanted)), value_set=theirs)
        hits = found.is_valid().to_numpy(zero_copy_only=False)
        source[wanted[hits]] = number
        row[wanted[hits]] = valid[found.drop_null().to_numpy()]
    return RowMap(sources=tuple(sources), source=source, row=row)


def _key_columns(root: ObjectRoot, dataset: StoredDataset) -> pa.Table:
    return read_manifest(root, dataset, _KEY_COLUMNS)


def view_keys(manifest: pa.Table) -> pa.Array:
    """What decides the pixels of each view, as one text; of a removed row, what decided them."""
    # In runs of rows, so that memory holds the columns that a key is made of for a few of them alone.
    batches = manifest.select(_KEY_COLUMNS).to_batches(max_chunksize=ROWS_AT_ONCE)
    return pa.concat_arrays([_view_keys_of(batch) for batch in batches] or [pa.array([], pa.string())])


def _view_keys_of(table: pa.RecordBatch) -> pa.Array:
    # Size and time are a key of one file only; a digest is one of content, whatever the file is called.
    content = pc.replace_substring_regex(table["image_sha256"], f"^{REMOVED}", "")
    by_file = pc.starts_with(content, STAT)
    place = pc.if_else(by_file, table["uri"], "")
    distance = pc.fill_null(pc.cast(table["ground_sample_distance_m"], pa.string()), "")
    # The content key follows from the view's id, unless a manifest lies; then only rows of the same lie meet.
    return pc.binary_join_element_wise(table["view_id"], content, distance, place, "\n")


def copy_rows(rows: RowMap, shard: Shard, tokens: dict[tuple[int, TokenKind], np.ndarray[Any, Any]]) -> RowNumbers:
    """Fill in the tokens of a shard that stand in a source.

    Every object read is held to its receipt's checksum. What fails it, or is not finite in the storage dtype, is left
    to be computed, and stays zero.

    Args:
        rows: of the feature set.
        shard: of it.
        tokens: one array a (layer, token kind), zeros [shard rows, ...]; filled in place.

    Returns:
        The places in the shard that were filled, ascending.

    Raises:
        OSError: a source cannot be read, after several attempts.
    """
    source, row = rows.source[shard.start : shard.stop], rows.row[shard.start : shard.stop]
    filled = np.zeros(shard.n_rows, dtype=bool)
    for number, features in enumerate(rows.sources):
        places = np.flatnonzero(source == number)
        if places.size:
            filled[_copy(features, row[places], places, tokens)] = True
    return np.flatnonzero(filled)


def _copy(
    features: FeatureSet,
    rows: RowNumbers,
    places: RowNumbers,
    tokens: dict[tuple[int, TokenKind], np.ndarray[Any, Any]],
) -> RowNumbers:
    """Copy rows of one source to places of a shard; gives the places that hold tokens now."""
    unique, back = np.unique(rows, return_inverse=True)
    finite = np.ones(len(places), dtype=bool)
    try:
        for (layer, kind), target in tokens.items():
            features.require_intact(layer, kind, unique)
            values = with_retries(functools.partial(features.read, layer, kind, unique))
            with np.errstate(over="ignore"):
                target[places] = values.astype(target.dtype, copy=False)[back]
            finite &= np.isfinite(target[places]).reshape(len(places), -1).all(axis=1)
    except StoreError:
        finite[:] = False
    for target in tokens.values():
        target[places[~finite]] = 0
    return places[finite]
