"""What a compressed feature set is fitted with: a PCA by exact covariances, offsets and scales by extremes.

Streamed over blocks in double precision; memory is that of one block and one matrix of features by features.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64

from evaluators.moments import stream_moments
from evaluators.tensors import as_tensor
from feature_store import FeatureSet, StoreError, TokenKind
from feature_store.compression import LEVELS, Codec, Projection, Quantiser

Block = Float[np.ndarray, "_ features"]
Stream = Callable[[], Iterable[Block]]
_PIECE_ROWS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A codec, and what a PCA keeps.

    Attributes:
        codec: of one layer and token kind.
        kept_variance: share of the variance of the fitted tokens that the components keep; 1 without a PCA.
        n_tokens: that it was fitted on.
    """

    codec: Codec
    kept_variance: float
    n_tokens: int


def fit_codec(
    features: FeatureSet,
    layer: int,
    kind: TokenKind,
    rows: np.ndarray[tuple[int], np.dtype[np.int64]],
    *,
    n_components: int | None,
    quantise: bool,
) -> Fit:
    """Fit the codec of one layer and token kind on some rows.

    Args:
        features: what is to be compressed.
        layer, kind: of its tokens.
        rows: to fit on, ascending.
        n_components: of a PCA; None to keep the features.
        quantise: to int8, the last step.

    Raises:
        StoreError: a PCA to more components than there are features, or than there are tokens to fit it on.
    """

    def tokens() -> Iterator[Block]:
        for _, block in features.iter_blocks(layer, kind, rows=rows):
            yield block.reshape(-1, block.shape[-1])

    n_tokens = len(rows) * int(np.prod(features.spec.row_shape(kind)[:-1]))
    projection, kept = None, 1.0
    if n_components is not None:
        _check_components(features, kind, n_components, n_tokens)
        projection, kept = fit_projection(tokens, n_components)

    def projected() -> Iterator[Block]:
        for block in tokens():
            yield block if projection is None else projection.apply(block)

    quantiser = fit_quantiser(projected()) if quantise else None
    return Fit(codec=Codec(projection=projection, quantiser=quantiser), kept_variance=kept, n_tokens=n_tokens)


def _check_components(features: FeatureSet, kind: TokenKind, n_components: int, n_tokens: int) -> None:
    width = features.spec.n_features
    if not 1 <= n_components < width:
        raise StoreError(f"--pca {n_components}: tokens have {width} features; name a number from 1 to {width - 1}.")
    if n_tokens <= n_components:
        raise StoreError(
            f"--pca {n_components}: only {n_tokens} {kind} tokens are there to fit it on, and more than {n_components} "
            "are needed; name fewer components, or leave this kind out with --tokens."
        )


def fit_projection(tokens: Stream, n_components: int) -> tuple[Projection, float]:
    """The PCA of a stream of tokens, and the share of their variance that it keeps.

    Two passes: means, then covariances of the deviations from them, so a large mean beside a small variance cancels
    nothing. The sign of a component is that of its largest entry.

    Args:
        tokens: opens the stream; called twice.
        n_components: fewer than features and than tokens.
    """
    # In the precision that is stored: it is these means that will be subtracted.
    mean = stream_moments(tokens()).mean.astype(np.float32)
    variances, vectors = np.linalg.eigh(_scatter(tokens(), mean.astype(np.float64)))
    basis = vectors[:, ::-1][:, :n_components]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    basis = basis * np.where(largest < 0, -1, 1)
    total = float(variances.sum())
    kept = float(variances[::-1][:n_components].sum()) / total if total > 0 else 1.0
    return Projection(mean=mean, basis=np.ascontiguousarray(basis, dtype=np.float32)), kept


def _scatter(
    blocks: Iterable[Block], mean: Float64[np.ndarray, " features"]
) -> Float64[np.ndarray, "features features"]:
    scatter = torch.zeros((len(mean), len(mean)), dtype=torch.float64)
    shift = torch.from_numpy(mean)
    for block in blocks:
        stored = as_tensor(block)
        for start in range(0, len(stored), _PIECE_ROWS):
            deviations = stored[start : start + _PIECE_ROWS].double().sub_(shift)
            scatter.addmm_(deviations.T, deviations)
    found: Float64[np.ndarray, "features features"] = scatter.numpy()
    return found


def fit_quantiser(blocks: Iterable[Block]) -> Quantiser:
    """Offset and scale of each feature, such that its least and greatest value get the outermost levels.

    Extremes depend neither on the order of blocks nor on rounding. A feature that never varies gets scale 1.
    """
    least = greatest = None
    for block in blocks:
        low, high = (extreme.float().numpy() for extreme in torch.aminmax(as_tensor(block), dim=0))
        least = low if least is None else np.minimum(least, low)
        greatest = high if greatest is None else np.maximum(greatest, high)
    if least is None or greatest is None:
        raise ValueError("there are 0 blocks; extremes need at least one. Check that the rows to fit on are valid.")
    low64, high64 = least.astype(np.float64), greatest.astype(np.float64)
    scale = (high64 - low64) / (2 * LEVELS)
    return Quantiser(
        offset=((low64 + high64) / 2).astype(np.float32), scale=np.where(scale > 0, scale, 1.0).astype(np.float32)
    )
