"""One compression as a user asks for it: fit on the training rows, then every shard; or what stands already."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.compression import Fit, fit_codec
from feature_store import FeatureSet, StoreError, TokenKind, UnknownNameError
from feature_store.arrays import row_bytes, token_names
from feature_store.compressing import (
    compressed_spec,
    find_compressed,
    missing_compressed,
    start_compressed,
    write_compressed,
)
from feature_store.identity import FEATURE_KINDS
from feature_store.space import free_bytes, require_free
from feature_store.storage import INT8, STORAGE_DTYPES
from vitrine.exits import UsageError


@dataclass(frozen=True, kw_only=True)
class CompressionRequest:
    """What a user asks for.

    Attributes:
        storage: `int8`, `float16` or `float32`; floats only with a PCA.
        n_components: of a PCA, or None.
        kinds: token kinds to keep; None for all.
        split: rows to fit on: a split, or `auto` for train where there is one, else all.
    """

    storage: str
    n_components: int | None = None
    kinds: tuple[str, ...] | None = None
    split: str = "auto"

    def __post_init__(self) -> None:
        if self.storage not in {INT8, *STORAGE_DTYPES}:
            raise UsageError(f"--storage {self.storage!r}: choose int8, float16 or float32.")
        if self.n_components is None and self.storage != INT8:
            raise UsageError(
                f"--storage {self.storage} alone compresses nothing; name int8, or add --pca N. `vitrine extract "
                f"--storage {self.storage}` makes a plain feature set, and copies the rows that stand already."
            )
        unknown = [kind for kind in self.kinds or () if kind not in FEATURE_KINDS]
        if unknown:
            raise UsageError(f"--tokens {unknown[0]!r}: choose among {', '.join(FEATURE_KINDS)}.")


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came of it.

    Attributes:
        features: the compressed feature set, complete.
        source: what it was made from.
        committed: shards that were written now.
        kept_variance: by `layer/kind`, of a PCA that was fitted now.
    """

    features: FeatureSet
    source: FeatureSet
    committed: int
    kept_variance: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        names = token_names(self.features.spec)
        return {
            "feature_set": self.features.name,
            "source": self.source.name,
            "left_out": [
                kind
                for kind in self.source.spec.identity.token_kinds
                if kind not in self.features.spec.identity.token_kinds
            ],
            "already_done": not self.committed,
            "committed": self.committed,
            "stored_bytes": self.features.stored_bytes,
            "source_bytes": _bytes_of(self.source, names),
            "kept_variance": self.kept_variance,
            "invalid": len(self.features.invalid_rows),
        }


def _bytes_of(features: FeatureSet, names: list[tuple[int, TokenKind]]) -> int:
    """Stored bytes of some arrays of a complete feature set, `valid` with them."""
    spec = features.spec
    itemsize = np.dtype(spec.identity.storage_dtype).itemsize
    return spec.n_rows * (1 + sum(int(np.prod(spec.row_shape(kind))) * itemsize for _, kind in names))


def compress(
    source: FeatureSet, request: CompressionRequest, *, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Compressed:
    """Make the compressed feature set, or finish it, or find it done.

    Args:
        source: a complete feature set that was extracted.
        request: how to compress it.
        progress: told shards committed, of how many, after each.

    Raises:
        IncompleteError: the source lacks shards.
        UsageError: a PCA to as many components as there are features, or more.
        StoreError: the source is compressed itself, has no such tokens or rows, or the disk is short.
    """
    source.require_complete()
    if source.spec.identity.compression is not None:
        raise StoreError(
            f"{source.name} is compressed already ({source.spec.identity.compression.words}); compress the feature set "
            "that it was made from: `vitrine ls` lists them."
        )
    width = source.spec.n_features
    if request.n_components is not None and not 1 <= request.n_components < width:
        raise UsageError(
            f"--pca {request.n_components}: tokens have {width} features; name a number from 1 to {width - 1}."
        )
    names = _names(source, request)
    rows, fitted_on = _rows_to_fit_on(source, request.split)
    rows_sha256 = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    target = find_compressed(
        source,
        names,
        storage_dtype=request.storage,
        n_components=request.n_components,
        fitted_rows_sha256=rows_sha256,
    )
    kept: dict[str, float] = {}
    if target is None:
        fits = _fit_all(source, names, rows, request)
        codecs = {name: fit.codec for name, fit in fits.items()}
        if request.n_components is not None:
            kept = {f"{layer}/{kind}": fit.kept_variance for (layer, kind), fit in fits.items()}
        spec = compressed_spec(
            source, codecs, storage_dtype=request.storage, fitted_on=fitted_on, fitted_rows_sha256=rows_sha256
        )
        require_free(
            free_bytes(source.root),
            spec.n_rows * row_bytes(spec),
            url=source.root.url,
            way_out="free some space, or name fewer --tokens",
        )
        target = start_compressed(source, spec, codecs)
    n_missing = len(missing_compressed(target))
    for done, _ in enumerate(write_compressed(source, target), 1):
        progress(done, n_missing)
    finished = FeatureSet(source.root, target.name)
    return Compressed(features=finished, source=source, committed=n_missing, kept_variance=kept)


def _names(source: FeatureSet, request: CompressionRequest) -> list[tuple[int, TokenKind]]:
    lacking = [kind for kind in request.kinds or () if kind not in source.spec.identity.token_kinds]
    if lacking:
        there = ", ".join(source.spec.identity.token_kinds)
        raise UnknownNameError(
            f"{source.name} has no {lacking[0]} tokens, only {there}; name some of these with --tokens."
        )
    return [(layer, kind) for layer, kind in token_names(source.spec) if kind in (request.kinds or FEATURE_KINDS)]


def _rows_to_fit_on(source: FeatureSet, split: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], str]:
    named: str | None = split
    if split == "auto":
        named = "train" if "train" in source.splits else None
    rows = source.rows_of_split(named)
    if not rows.size:
        raise StoreError(f"split {named!r} of {source.name} has no valid rows; name another with --split.")
    return rows, "all valid rows" if named is None else f"valid rows of split {named}"


def _fit_all(
    source: FeatureSet,
    names: list[tuple[int, TokenKind]],
    rows: np.ndarray[Any, np.dtype[np.int64]],
    request: CompressionRequest,
) -> dict[tuple[int, TokenKind], Fit]:
    return {
        (layer, kind): fit_codec(
            source, layer, kind, rows, n_components=request.n_components, quantise=request.storage == INT8
        )
        for layer, kind in names
    }
