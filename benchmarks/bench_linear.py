"""Logistic regression against scikit-learn's: one strength, and a sweep over eight with one predefined split.

Both sides standardise nothing and start from nothing. Scikit-learn stops by the gradient (tol 1e-4, its default), ours
by how far the loss can still fall; ours must reach a loss at least as low at every strength.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit

from benchmarks.ratio import FULL, compare, sized
from evaluators.linear import Goal, LinearModel, fit, fit_blocks, fit_path, predict

FEATURES, CLASSES = sized(tiny=24, full=384), 12
STRENGTHS = np.geomspace(1e-1, 1e-5, 8).tolist()


def tokens(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised tokens: strongly correlated, alike within an image, of unbalanced and overlapping classes."""
    rng = np.random.default_rng(0)
    spectrum = 3 * np.arange(1, FEATURES + 1, dtype=np.float32) ** -0.8
    basis = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0].astype(np.float32)
    shares = np.arange(1, CLASSES + 1) ** -1.3
    labels = rng.choice(CLASSES, size=rows, p=shares / shares.sum())
    centres = rng.standard_normal((CLASSES, FEATURES), dtype=np.float32)
    images = rng.standard_normal((rows // 256 + 1, FEATURES), dtype=np.float32)
    plain = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    plain += 0.6 * centres[labels] + 0.5 * images[np.arange(rows) // 256]
    features = (plain * spectrum) @ basis.T
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    mistaken = rng.random(rows) < 0.08
    labels[mistaken] = rng.choice(CLASSES, size=int(mistaken.sum()), p=shares / shares.sum())
    return features.astype(np.float16).astype(np.float32), labels


def loss_of(weights: np.ndarray, bias: np.ndarray, l2: float, features: np.ndarray, labels: np.ndarray) -> float:
    """The penalised loss, in double precision."""
    logits = (features @ weights.astype(np.float32) + bias).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(log_loss(labels, shares, labels=range(CLASSES)) + l2 / 2 * (weights.astype(np.float64) ** 2).sum())


def assert_no_worse(model: LinearModel, weights: np.ndarray, bias: np.ndarray, rows: tuple[np.ndarray, ...]) -> float:
    """Hold the loss to the peer's, and give the peer's over ours."""
    theirs = loss_of(weights, bias, model.l2, *rows)
    print(f"  l2 {model.l2:.1e}: loss {theirs:.6f} against {model.loss:.6f} in {model.iterations} iterations")
    ours = loss_of(model.weights, model.bias, model.l2, *rows)
    assert ours <= theirs * (1 + 1e-5)
    return theirs / ours


def test_one_strength() -> None:
    features, labels = tokens(sized(tiny=600, full=20_000))
    l2 = STRENGTHS[4]

    def peer() -> LogisticRegression:
        return LogisticRegression(C=1 / (len(labels) * l2), max_iter=5_000).fit(features, labels)

    found = compare(
        "linear probe, LogisticRegression", peer=peer, ours=lambda: fit(features, labels, n_classes=CLASSES, l2=l2)
    )
    assert_no_worse(found.ours, found.peer.coef_.T, found.peer.intercept_, (features, labels))


def test_passes() -> None:
    """How often a fit reads the rows, which counts beyond memory; without the scale of the steps twice as often."""
    features, labels = tokens(sized(tiny=600, full=20_000))
    passes = 0

    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal passes
        passes += 1
        yield features, labels

    for words, l2s, goal in (
        ("one strength", STRENGTHS[4:5], Goal()),
        ("eight strengths, as for a choice", STRENGTHS, Goal(tolerance=1e-4)),
        ("one strength, as beyond memory", STRENGTHS[4:5], Goal(tolerance=1e-5, most_fall=3e-4)),
    ):
        passes = 0
        models = fit_blocks(counted, n_classes=CLASSES, l2s=l2s, goal=goal)
        most = max(model.iterations for model in models)
        print(f"  {words}: {passes} passes, {most} steps at most")
        if FULL:
            assert passes <= 1.3 * most + 2


def test_sweep() -> None:
    features, labels = tokens(sized(tiny=600, full=20_000))
    held_out = np.arange(len(labels)) >= 0.8 * len(labels)
    train = features[~held_out], labels[~held_out]
    held = features[held_out], labels[held_out]

    def peer() -> LogisticRegressionCV:
        penalties = [1 / (len(train[1]) * l2) for l2 in STRENGTHS]
        split = PredefinedSplit(np.where(held_out, 0, -1))
        sweep = LogisticRegressionCV(
            Cs=penalties,
            cv=split,
            refit=False,
            max_iter=5_000,
            scoring="accuracy",
            use_legacy_attributes=False,
            l1_ratios=(0.0,),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            return sweep.fit(features, labels)

    def ours() -> list[tuple[LinearModel, float]]:
        models = fit_path(*train, n_classes=CLASSES, l2s=STRENGTHS)
        return [(model, float((predict(model, held[0]) == held[1]).mean())) for model in models]

    found = compare("sweep of 8 strengths, LogisticRegressionCV", peer=peer, ours=ours)
    # Of one fold and one mixture of penalties: [strength, class, feature and bias], and the accuracies.
    peers = found.peer.scores_[0, 0]
    for (model, right), path, their_right in zip(found.ours, found.peer.coefs_paths_[0, 0], peers, strict=True):
        excess = assert_no_worse(model, path[:, :-1].T, path[:, -1], train)
        print(f"  accuracy {their_right:.4f} against {right:.4f}")
        # Where the peer stopped far from the optimum it scored another classifier.
        if FULL and excess < 1.01:
            assert abs(right - their_right) <= 0.005
    if FULL:
        assert abs(max(right for _, right in found.ours) - max(peers)) <= 0.005
