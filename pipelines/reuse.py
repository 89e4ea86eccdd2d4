"""Rows that stand in another feature set already: found by what decides their pixels, copied instead of computed.

The tokens of a view are a function of its pixels and of the recipe (weights, architecture, preprocessing, compute
dtype, extraction schema), not of the dataset that it is in. So a dataset that gained, lost or reordered images costs
only its new views. Batch size and kernel must be the same too, because on some devices they change last bits.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from feature_store import FeatureSet, Shard, StoredDataset, StoreError, TokenKind, read_dataset, read_manifest
from feature_store.identity import FeatureSetSpec
from feature_store.objects import ObjectRoot
from feature_store.roots import process_root
from feature_store.runs import RunHistory
from pipelines.environment import environment_difference
from pipelines.prefetch import with_retries
from pipelines.stat_key import STAT

_KEY_COLUMNS = ["view_id", "image_sha256", "uri", "ground_sample_distance_m"]
_COMPUTED = -1
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
        source: of each row, an index into `sources`; -1 for a row that must be computed.
        row: of each row, its number in that source.
    """

    sources: tuple[FeatureSet, ...]
    source: RowNumbers
    row: RowNumbers

    def count(self, shards: Sequence[Shard]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How many rows of these shards each source gives; last, how many must be computed."""
        counts = np.zeros(len(self.sources) + 1, dtype=np.int64)
        for shard in shards:
            # -1 counts at the end.
            np.add.at(counts, self.source[shard.start : shard.stop], 1)
        return counts

    def n_computed(self, shard: Shard, *, n_sources: int) -> int:
        """How many rows of a shard must be computed when only the first of the sources are copied from."""
        source = self.source[shard.start : shard.stop]
        return int(((source == _COMPUTED) | (source >= n_sources)).sum())


def find_sources(
    others: Sequence[FeatureSet],
    manifest: pa.Table,
    spec: FeatureSetSpec,
    missing: Sequence[Shard],
    *,
    environment: dict[str, str] | None,
) -> tuple[tuple[Source, ...], tuple[int, ...]]:
    """The feature sets of the store that have rows of the missing shards, and how much is left to compute.

    Args:
        others: the feature sets of the store.
        manifest: of the new feature set's dataset.
        spec: of the new feature set.
        missing: the shards to commit.
        environment: that sources must have been made in; None to allow any.

    Returns:
        Sources that give rows, those of another environment with the difference, and only for rows that no other has;
        and of each missing shard, how many rows no source gives that may be copied from.
    """
    allowed: list[tuple[FeatureSet, str | None]] = []
    refused: list[tuple[FeatureSet, str | None]] = []
    candidates = _candidates(others, spec)
    history = RunHistory(candidates[0].root) if candidates and environment is not None else None
    for features in candidates:
        difference = None if history is None else _difference(history, features, environment or {})
        (allowed if difference is None else refused).append((features, difference))
    ranked = [*allowed, *refused]
    if not ranked:
        return (), tuple(shard.n_rows for shard in missing)
    rows = _map_rows(manifest, [features for features, _ in ranked])
    sources = tuple(
        Source(name=features.name, rows=int(n_rows), refused=difference)
        for (features, difference), n_rows in zip(ranked, rows.count(missing), strict=False)
        if n_rows
    )
    return sources, tuple(rows.n_computed(shard, n_sources=len(allowed)) for shard in missing)


def _difference(history: RunHistory, features: FeatureSet, environment: dict[str, str]) -> str | None:
    made_in = history.environments(features.folder)
    return environment_difference(made_in, environment) if made_in else "no run says where it was made"


def _candidates(others: Sequence[FeatureSet], spec: FeatureSetSpec) -> list[FeatureSet]:
    fitting = [each for each in others if each.digest != spec.identity.digest and _fits(each.spec, spec)]
    has_rows = fitting[0].root.side_by_side(_has_rows, fitting) if fitting else []
    return [features for features, there in zip(fitting, has_rows, strict=True) if there]


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
    source = np.full(manifest.num_rows, _COMPUTED, dtype=np.int64)
    row = np.zeros(manifest.num_rows, dtype=np.int64)
    keys = _keys(manifest)
    for number, features in enumerate(sources):
        wanted, valid = np.flatnonzero(source == _COMPUTED), np.flatnonzero(features.valid)
        if not wanted.size:
            break
        try:
            theirs = _keys(_key_columns(features.root, features.dataset)).take(pa.array(valid))
        except StoreError:
            theirs = pa.array([], pa.string())  # without its manifest nobody knows what its rows are
        found = pc.index_in(keys.take(pa.array(wanted)), value_set=theirs)
        hits = found.is_valid().to_numpy(zero_copy_only=False)
        source[wanted[hits]] = number
        row[wanted[hits]] = valid[found.drop_null().to_numpy()]
    return RowMap(sources=tuple(sources), source=source, row=row)


def _key_columns(root: ObjectRoot, dataset: StoredDataset) -> pa.Table:
    return read_manifest(root, dataset, _KEY_COLUMNS)


def _keys(manifest: pa.Table) -> pa.Array:
    """What decides the pixels of each view, as one text."""
    table = manifest.select(_KEY_COLUMNS).combine_chunks()
    # Size and time are a key of one file only; a digest is one of content, whatever the file is called.
    by_file = pc.starts_with(table["image_sha256"], STAT)
    place = pc.if_else(by_file, table["uri"], "")
    distance = pc.fill_null(pc.cast(table["ground_sample_distance_m"], pa.string()), "")
    # The content key follows from the view's id, unless a manifest lies; then only rows of the same lie meet.
    keys = pc.binary_join_element_wise(table["view_id"], table["image_sha256"], distance, place, "\n")
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys


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
