"""Choosing features to keep: without those of highest variance, without listed ones, or without random ones."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.results import VarianceResult
from feature_store import FeatureSet, Selection, SelectionError, dropping


def drop_top_variance(
    features: FeatureSet, variance: VarianceResult, *, name: str, n_dropped: int, layer: int, kind: str
) -> Selection:
    """All features but the `n_dropped` of highest variance; of equal ones the lower number goes first.

    Raises:
        SelectionError: `n_dropped` is negative, or leaves nothing.
    """
    check_count(n_dropped, features.spec.n_features)
    made_by = {"drop_top_variance": n_dropped, "over": f"{variance.n_tokens} tokens of split {variance.split}"}
    return _selection(features, variance.order[:n_dropped], name=name, layer=layer, kind=kind, made_by=made_by)


def drop_random(features: FeatureSet, *, name: str, n_dropped: int, seed: int, layer: int, kind: str) -> Selection:
    """All features but `n_dropped` drawn without replacement: the control of `drop_top_variance`.

    Raises:
        SelectionError: `n_dropped` is negative, or leaves nothing.
    """
    check_count(n_dropped, features.spec.n_features)
    drawn = np.random.default_rng(seed).permutation(features.spec.n_features)[:n_dropped].tolist()
    made_by = {"drop_random": n_dropped, "seed": seed}
    return _selection(features, drawn, name=name, layer=layer, kind=kind, made_by=made_by)


def drop_listed(features: FeatureSet, dropped: Sequence[int], *, name: str, layer: int, kind: str) -> Selection:
    """All features but the listed ones.

    Raises:
        SelectionError: a feature that does not exist, one listed twice, or nothing left.
    """
    return _selection(features, dropped, name=name, layer=layer, kind=kind, made_by={"drop_listed": len(dropped)})


def check_count(n_dropped: int, n_features: int) -> None:
    """Refuse to drop fewer than no features, or all of them.

    Raises:
        SelectionError: such a number.
    """
    if not 0 <= n_dropped < n_features:
        raise SelectionError(
            f"cannot drop {n_dropped} of {n_features} features; name a number from 0 to {n_features - 1}."
        )


def _selection(
    features: FeatureSet, dropped: Sequence[int], *, name: str, layer: int, kind: str, made_by: Mapping[str, object]
) -> Selection:
    width = features.spec.n_features
    kinds = features.spec.identity.token_kinds
    if kind not in kinds:
        raise SelectionError(
            f"{features.name} has no {kind!r} tokens to make a selection for, only {', '.join(kinds)}; name one of "
            "these with --tokens."
        )
    return Selection(
        name=name,
        features=dropping(list(dropped), width),
        width=width,
        weights_sha256=features.spec.identity.weights_sha256,
        basis=features.spec.identity.basis,
        layer=layer,
        kind=kind,
        made_by={**made_by, "feature_set": features.digest},
    )
