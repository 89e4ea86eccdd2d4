"""Stores of any size for the benchmarks: no model, no images, and tokens that cost nothing to make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np

from feature_store import (
    FeatureSet,
    FeatureSetSpec,
    FeatureStore,
    Identity,
    Shard,
    TokenKind,
    create_feature_set,
    create_store,
    finish_feature_set,
    shards_of,
    write_shard,
)

Tokens = Mapping[tuple[int, TokenKind], np.ndarray]


def spec_of(
    *, n_rows: int, rows_per_shard: int, n_features: int, side: int = 16, views: str = "a" * 64, cls: bool = False
) -> FeatureSetSpec:
    """The record of one layer of float16 patches, `side` x `side` a row, and class tokens where asked for."""
    identity = Identity(
        views_digest=views,
        weights_sha256="b" * 64,
        architecture={"name": "synthetic", "norm": "norm"},
        preprocessing={"fit": "squash"},
        layers=(12,),
        token_kinds=("patches", "cls") if cls else ("patches",),
    )
    return FeatureSetSpec(
        identity=identity,
        model="synthetic",
        title="synthetic tokens",
        n_rows=n_rows,
        rows_per_shard=rows_per_shard,
        grid=(side, side),
        n_features=n_features,
        n_registers=0,
        batch_size=16,
        attention_kernel="fused",
    )


def some_tokens(spec: FeatureSetSpec, shard: Shard) -> Tokens:
    """Normal values of unequal scale, the same in every call."""
    random = np.random.default_rng(shard.index)
    scale = np.geomspace(3, 0.1, spec.n_features, dtype=np.float32)
    return {
        (layer, kind): (random.standard_normal((shard.n_rows, *spec.row_shape(kind)), dtype=np.float32) * scale).astype(
            np.float16
        )
        for layer in spec.identity.layers
        for kind in spec.identity.token_kinds
    }


def write_store(folder: Path, spec: FeatureSetSpec, tokens: Tokens | None = None) -> FeatureSet:
    """A whole feature set without a dataset, which need not survive a power cut: nothing is synced.

    Args:
        folder: where.
        spec: its record.
        tokens: of every whole shard, cut for the last; by default other ones in each.
    """
    # Ten thousand shards make a hundred thousand syncs.
    with mock.patch("os.fsync"):
        root = create_store(str(folder))
        place = create_feature_set(root, "synthetic", spec)
        for shard in shards_of(spec.n_rows, spec.rows_per_shard):
            whole = some_tokens(spec, shard) if tokens is None else tokens
            write_shard(root, place, spec, shard, {name: rows[: shard.n_rows] for name, rows in whole.items()})
        finish_feature_set(root, place, spec)
    return FeatureStore(root).features()
