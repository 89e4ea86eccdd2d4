"""Two coordinates for every vector: exact PCA streamed over any number, or t-SNE of as many as it takes."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from feature_store.exports.places import ExportRefusedError

Method = Literal["pca", "tsne"]
METHODS: tuple[Method, ...] = get_args(Method)
Points: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Vectors: TypeAlias = np.ndarray[Any, Any]
Blocks = Callable[[], Iterator[Vectors]]
# Where t-SNE takes minutes on two cores.
MAX_TSNE_POINTS = 20_000
# The scatter matrix then takes half a gigabyte.
MAX_FEATURES = 8192
_LEAST_POINTS = 3
_TSNE_COMPONENTS = 50
_PERPLEXITY = 30.0


def project(blocks: Blocks, n_points: int, *, method: str, seed: int) -> Points:
    """Coordinates [points, 2] of vectors that are read in blocks, in their order.

    Args:
        blocks: gives a fresh iterator over [n, features] each time it is called.
        n_points: how many there are.
        method: `pca`: the two directions of greatest variance; `tsne`: t-SNE of the first 50 principal components.
        seed: of t-SNE.

    Raises:
        ExportRefusedError: an unknown method, too few points, more points or features than it can take, or scikit-learn
            is not installed.
    """
    if method not in METHODS:
        raise ExportRefusedError(f"--projection {method!r}: choose {', '.join(METHODS)} or none.")
    width = next(blocks()).shape[1]
    if n_points < _LEAST_POINTS or width > MAX_FEATURES:
        raise ExportRefusedError(
            f"{n_points} points of {width} features: a projection takes at least {_LEAST_POINTS} points, of at most "
            f"{MAX_FEATURES} features. Use --projection none."
        )
    if method == "tsne" and n_points > MAX_TSNE_POINTS:
        raise ExportRefusedError(
            f"{n_points} points; t-SNE takes at most {MAX_TSNE_POINTS}. Use --projection pca, or fewer rows (--where)."
        )
    components = 2 if method == "pca" else _TSNE_COMPONENTS
    mean, axes = _principal_axes(blocks, n_points, min(components, width))
    reduced = np.concatenate([(block.astype(np.float32) - mean) @ axes for block in blocks()])
    if method == "tsne":
        reduced = _tsne(reduced, seed)
    points: Points = np.zeros((n_points, 2), dtype=np.float32)
    points[:, : reduced.shape[1]] = reduced[:, :2]
    return points


def _principal_axes(blocks: Blocks, n_points: int, n_axes: int) -> tuple[Vectors, Vectors]:
    """The mean [features] and the directions of greatest variance [features, axes], the largest part of each positive.

    Two passes, so that nothing cancels: the mean first, then the scatter around it, in float64.
    """
    total = sum(block.sum(axis=0, dtype=np.float64) for block in blocks())
    mean = (total / n_points).astype(np.float32)
    scatter = np.zeros((len(mean), len(mean)))
    for block in blocks():
        centred = block.astype(np.float32) - mean
        scatter += centred.T @ centred
    axes = np.linalg.eigh(scatter)[1][:, ::-1][:, :n_axes]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_axes)])
    return mean, (axes * signs).astype(np.float32)


def _tsne(reduced: Vectors, seed: int) -> Vectors:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ExportRefusedError(
            "t-SNE needs scikit-learn: pip install 'vitrine[atlas]', or use --projection pca."
        ) from error
    perplexity = min(_PERPLEXITY, (len(reduced) - 1) / 3)
    # From PCA and a seed, so that the same features give the same picture.
    points: Vectors = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return points
