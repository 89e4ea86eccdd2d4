"""Which arrays a feature set has, and how each is laid out."""

from collections.abc import Iterator

from feature_store.identity import FeatureSetSpec, TokenKind
from feature_store.layout import shard_object, token_array, valid_array
from feature_store.shard_format import ArrayLayout
from feature_store.shards import Shard

_AXES: dict[TokenKind, tuple[str, ...]] = {
    "patches": ("row", "patch", "feature"),
    "cls": ("row", "feature"),
    "registers": ("row", "register", "feature"),
    "attention": ("row", "head", "patch"),
}


def valid_layout(spec: FeatureSetSpec) -> ArrayLayout:
    """The layout of the array that says which rows are valid."""
    return ArrayLayout(
        n_rows=spec.n_rows, row_shape=(), dtype="bool", rows_per_shard=spec.rows_per_shard, axes=("row",)
    )


def token_layout(spec: FeatureSetSpec, kind: TokenKind) -> ArrayLayout:
    """The layout of one token kind's arrays; every layer has the same."""
    return ArrayLayout(
        n_rows=spec.n_rows,
        row_shape=spec.row_shape(kind),
        dtype=spec.identity.storage_dtype,
        rows_per_shard=spec.rows_per_shard,
        axes=_AXES[kind],
    )


def token_names(spec: FeatureSetSpec) -> list[tuple[int, TokenKind]]:
    """Every (layer, token kind) that the feature set stores, in writing order."""
    return [(layer, kind) for layer in spec.identity.layers for kind in spec.identity.token_kinds]


def all_arrays(folder: str, spec: FeatureSetSpec) -> Iterator[tuple[str, ArrayLayout]]:
    """Path and layout of every array of the feature set at `folder`, tokens first."""
    for layer, kind in token_names(spec):
        yield token_array(folder, layer, kind), token_layout(spec, kind)
    yield valid_array(folder), valid_layout(spec)


def shard_objects(folder: str, spec: FeatureSetSpec, shard: Shard) -> dict[str, int]:
    """Path and size in bytes of every object of a shard, in writing order."""
    return {
        shard_object(array, shard, 1 + len(array_layout.row_shape)): array_layout.shard_bytes(shard.n_rows)
        for array, array_layout in all_arrays(folder, spec)
    }


def row_bytes(spec: FeatureSetSpec) -> int:
    """Stored bytes of one row over all arrays."""
    return sum(layout.row_bytes for _, layout in all_arrays("", spec))
