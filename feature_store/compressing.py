"""Making a compressed feature set from a stored one, shard by shard; safe to kill and to repeat."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from feature_store.arrays import token_names
from feature_store.compression import (
    PROJECTION,
    QUANTISER,
    Codecs,
    parameters_sha256,
    read_codecs,
    write_parameters,
)
from feature_store.identity import FeatureSetSpec, TokenKind
from feature_store.layout import feature_set_folder, feature_set_name
from feature_store.reader import FeatureSet
from feature_store.receipts import InvalidRow, Receipt
from feature_store.shards import Shard, missing_shards
from feature_store.storage import INT8, Compression
from feature_store.store import FeatureStore
from feature_store.writer import committed_receipts, create_feature_set, finish_feature_set, write_shard

# As an extraction calls it when tokens overflow what stores them.
_NON_FINITE = "non_finite"


def compressed_spec(
    source: FeatureSet, codecs: Codecs, *, storage_dtype: str, fitted_on: str, fitted_rows_sha256: str
) -> FeatureSetSpec:
    """The record of the feature set that these codecs make of `source`.

    Args:
        source: what is compressed.
        codecs: one a (layer, token kind) to keep; all alike.
        storage_dtype: `int8` with quantisers, else a float.
        fitted_on: the rows that the codecs were fitted on, in words.
        fitted_rows_sha256: of their numbers.
    """
    layers = tuple(sorted({layer for layer, _ in codecs}))
    kinds = tuple(kind for kind in source.spec.identity.token_kinds if any(kind == name for _, name in codecs))
    projection = next(iter(codecs.values())).projection
    compression = Compression(
        source=source.digest,
        source_features=source.spec.n_features,
        fitted_on=fitted_on,
        fitted_rows_sha256=fitted_rows_sha256,
        n_components=None if projection is None else projection.basis.shape[1],
        projection_sha256=parameters_sha256(codecs, PROJECTION),
        quantiser_sha256=parameters_sha256(codecs, QUANTISER),
    )
    identity = replace(
        source.spec.identity,
        layers=layers,
        token_kinds=kinds,
        storage_dtype=storage_dtype,
        compression=compression,
    )
    suffix = compression.words.replace("PCA to ", "pca").replace(", ", "-")
    return replace(
        source.spec,
        identity=identity,
        model=f"{source.spec.model}-{suffix}",
        title=f"{source.spec.title}, {compression.words}",
        n_features=compression.n_components or source.spec.n_features,
    )


def find_compressed(
    source: FeatureSet,
    names: Sequence[tuple[int, TokenKind]],
    *,
    storage_dtype: str,
    n_components: int | None,
    fitted_rows_sha256: str,
) -> FeatureSet | None:
    """The feature set, perhaps unfinished, that was made so of `source`; its codecs need no second fit."""
    for features in FeatureStore(source.root).readable()[0]:
        identity, compression = features.spec.identity, features.spec.identity.compression
        if (
            compression is not None
            and (compression.source, compression.fitted_rows_sha256) == (source.digest, fitted_rows_sha256)
            and (compression.n_components, identity.storage_dtype) == (n_components, storage_dtype)
            and set(token_names(features.spec)) == set(names)
        ):
            return features
    return None


def start_compressed(source: FeatureSet, spec: FeatureSetSpec, codecs: Codecs) -> FeatureSet:
    """Make the feature set, without a shard yet, or join the one that stands there."""
    # First: whoever finds feature_set.json finds its parameters too.
    write_parameters(source.root, feature_set_folder(source.dataset_name, spec), codecs)
    folder = create_feature_set(source.root, source.dataset_name, spec)
    return FeatureSet(source.root, feature_set_name(folder))


def write_compressed(source: FeatureSet, target: FeatureSet) -> Iterator[Receipt]:
    """Commit every missing shard of `target`, one after another; see `missing_compressed`.

    Raises:
        CorruptError: tokens of the source or parameters of the target are not what their records state.
        OSError: the disk is full or failing; committed shards stay.
    """
    codecs = read_codecs(target.root, target.folder, target.spec)
    target.root.sweep_partials(target.folder)
    for shard in missing_compressed(target):
        tokens, invalid = _encode(source, target.spec, codecs, shard)
        yield write_shard(target.root, target.folder, target.spec, shard, tokens, invalid)
    finish_feature_set(target.root, target.folder, target.spec)


def missing_compressed(target: FeatureSet) -> tuple[Shard, ...]:
    """The shards of a compressed feature set that are not committed now, by the receipts themselves."""
    return missing_shards(target.shards, committed_receipts(target.root, target.folder, target.spec))


def _encode(
    source: FeatureSet, spec: FeatureSetSpec, codecs: Codecs, shard: Shard
) -> tuple[dict[tuple[int, TokenKind], np.ndarray[Any, Any]], list[InvalidRow]]:
    rows = np.arange(shard.start, shard.stop)
    finite = np.ones(shard.n_rows, dtype=bool)
    tokens = {}
    for layer, kind in token_names(spec):
        stored = np.zeros((shard.n_rows, *spec.row_shape(kind)), dtype=spec.identity.storage_dtype)
        source.require_intact(layer, kind, rows)
        for some, block in source.iter_blocks(layer, kind, rows=rows):
            stored[some - shard.start] = codecs[layer, kind].encode(block, spec.identity.storage_dtype)
        if spec.identity.storage_dtype != INT8:
            finite &= np.isfinite(stored).reshape(shard.n_rows, -1).all(axis=1)
        tokens[layer, kind] = stored
    # Both are cut into the same shards.
    reasons = {entry.row: entry.reason for entry in source.receipts[shard.index].invalid}
    for place in np.flatnonzero(~finite).tolist():
        reasons[shard.start + place] = _NON_FINITE
        for stored in tokens.values():
            stored[place] = 0
    return tokens, [InvalidRow(row=row, reason=reasons[row]) for row in sorted(reasons)]
