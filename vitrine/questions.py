"""From the words of the command line to the evaluators' questions, and their answers.

What computes an answer is called as `evaluators.evaluate_...`: only that call loads it, and torch with it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import evaluators
from evaluators import (
    KNN_REVISION,
    LINEAR_REVISION,
    VARIANCE_REVISION,
    Answer,
    KnnParameters,
    LinearParameters,
    ProbeResult,
    Subject,
    VarianceParameters,
    VarianceResult,
    ask,
    drop_listed,
    drop_random,
    drop_top_variance,
    question,
)
from evaluators.parameters import DEFAULT_L2S, Backend, Metric
from evaluators.prune import check_count
from evaluators.subject import KIND_READ, On, probed_kind, resolve_subject
from feature_store import FeatureSet, Selection, SelectionError, read_selection, write_selection
from feature_store.identity import FEATURE_KINDS
from feature_store.nearest_name import did_you_mean
from vitrine.exits import UsageError


def _choice(value: str, choices: tuple[str, ...], option: str) -> Any:
    if value not in choices:
        raise UsageError(f"{option} {value!r}: choose {', '.join(choices)}{did_you_mean(value, choices)}.")
    return value


def scored_classes(features: FeatureSet, names: str | None) -> tuple[int, ...] | None:
    """The numbers of the classes that an option names, ascending; None where it names none.

    Raises:
        UsageError: a class that the dataset does not have.
    """
    if names is None:
        return None
    classes = features.dataset.spec.classes
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in classes]
    if unknown:
        near = did_you_mean(unknown[0], classes)
        raise UsageError(
            f"--score {unknown[0]!r}: {features.dataset.spec.name} has {', '.join(classes) or 'none'}{near}."
        )
    return tuple(sorted({classes.index(name) for name in wanted}))


def subject_of(
    on: str,
    layer: str,
    train_split: str,
    test_split: str | None,
    hold_out: float | None,
    seed: int,
    scored: tuple[int, ...] | None = None,
) -> Subject:
    """The subject that the options name.

    Raises:
        UsageError: an unknown word, a share outside (0, 1), or a share to hold out beside a test split.
    """
    if hold_out is not None and not 0 < hold_out < 1:
        raise UsageError(f"--hold-out {hold_out}: give a share between 0 and 1, e.g. 0.2.")
    kind = _choice(on, get_args(On), "--on")
    try:
        return Subject(
            on=kind,
            layer=layer,
            train_split=train_split,
            test_split=test_split,
            hold_out=hold_out,
            seed=seed,
            scored=scored,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def ask_variance(
    features: FeatureSet,
    *,
    kind: str = "patches",
    layer: int | str = "last",
    split: str | None = "auto",
    fresh: bool = False,
) -> Answer:
    """The variance of every feature."""
    parameters = VarianceParameters(
        kind=_choice(kind, FEATURE_KINDS, "--tokens"), layer=features.layer_number(layer), split=split
    )
    asked = question(features, "variance", VARIANCE_REVISION, parameters)
    return ask(features, asked, lambda: evaluators.evaluate_variance(features, parameters), fresh=fresh)


def check_plot(path: Path) -> None:
    """Refuse a place that no picture can be written to, before anything is computed.

    Raises:
        UsageError: not a .png, .svg or .pdf file in a folder that is there.
    """
    if path.suffix not in {".png", ".svg", ".pdf"} or path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {path}: name a .png, .svg or .pdf file in a folder that exists.")


def knn_parameters(subject: Subject, *, metric: str, standardise: bool) -> KnnParameters:
    """The k-NN question that the options name.

    Raises:
        UsageError: an unknown metric.
    """
    return KnnParameters(subject=subject, metric=_choice(metric, get_args(Metric), "--metric"), standardise=standardise)


def ask_knn(
    features: FeatureSet,
    parameters: KnnParameters,
    *,
    ks: tuple[int, ...] = (1,),
    selection: str | None = None,
    any_layer: bool = False,
    backend: str = "auto",
    fresh: bool = False,
) -> list[Answer]:
    """One answer a k; those that the store lacks come from one search. `parameters.k` is not used.

    Raises:
        UsageError: an unknown backend.
    """
    backend_name: Backend = _choice(backend, get_args(Backend), "--backend")
    resolved = replace(parameters, subject=resolve_subject(features, parameters.subject))
    chosen = _chosen(features, resolved.subject, selection, any_layer=any_layer)

    @functools.cache
    def results() -> dict[int, ProbeResult]:
        found = evaluators.evaluate_knn_for(features, ks, resolved, selection=chosen, backend=backend_name)
        return dict(zip(ks, found, strict=True))

    def answer(k: int) -> Answer:
        asked = question(features, "knn", KNN_REVISION, replace(resolved, k=k), chosen)
        return ask(features, asked, lambda: results()[k], fresh=fresh)

    return [answer(k) for k in ks]


def linear_parameters(
    subject: Subject,
    *,
    l2s: tuple[float, ...] | None = None,
    memory_gb: float = 4.0,
    all_rows: bool = False,
    max_passes: int | None = None,
) -> LinearParameters:
    """The linear-probe question that the options name; without strengths, one is chosen among the usual ones.

    Raises:
        UsageError: a strength that is too weak to count.
    """
    try:
        return LinearParameters(
            subject=subject,
            l2s=DEFAULT_L2S if l2s is None else l2s,
            memory_bytes=round(memory_gb * 1e9),
            all_rows=all_rows,
            max_passes=max_passes,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def ask_linear(
    features: FeatureSet,
    parameters: LinearParameters,
    *,
    selection: str | None = None,
    any_layer: bool = False,
    fresh: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Answer:
    """The linear probe; `say` is told what a fit beyond memory will take."""
    resolved = replace(parameters, subject=resolve_subject(features, parameters.subject))
    chosen = _chosen(features, resolved.subject, selection, any_layer=any_layer)
    asked = question(features, "linear", LINEAR_REVISION, resolved, chosen)
    return ask(
        features,
        asked,
        lambda: evaluators.evaluate_linear(features, resolved, selection=chosen, say=say),
        fresh=fresh,
    )


def _chosen(features: FeatureSet, subject: Subject, name: str | None, *, any_layer: bool) -> Selection | None:
    """The selection of that name, held to the tokens of a resolved subject before any answer is looked up."""
    if name is None:
        return None
    chosen = read_selection(features.root, name, any_layer=any_layer)
    chosen.check_fits(features.spec, layer=int(subject.layer), kind=KIND_READ[subject.on])
    return chosen


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """Which features a selection drops; exactly one of the three ways.

    Attributes:
        top_variance: so many of highest variance.
        listed: the ones in this file.
        random: so many at random, drawn with `seed`.
    """

    top_variance: int | None = None
    listed: Path | None = None
    random: int | None = None
    seed: int = 0


def make_selection(
    features: FeatureSet, dropping: Dropping, *, name: str, kind: str = "auto", layer: int | str = "last"
) -> Selection:
    """Make and store a selection, for tokens of `kind`; `auto` is what probes of this dataset use.

    Raises:
        UsageError: none or several of the ways.
        SelectionError: a number that does not fit, or another selection of that name.
    """
    ways = [way for way in (dropping.top_variance, dropping.listed, dropping.random) if way is not None]
    if len(ways) != 1:
        raise UsageError("give exactly one of --drop-top-variance M, --drop FILE and --drop-random M.")
    kind = _choice(kind, ("auto", *FEATURE_KINDS), "--tokens")
    kind = probed_kind(features) if kind == "auto" else kind
    about: dict[str, Any] = {"name": name, "layer": features.layer_number(layer), "kind": kind}
    if dropping.top_variance is not None:
        # Before the variance is taken, which leaves an answer in the store.
        check_count(dropping.top_variance, features.spec.n_features)
        answer = ask_variance(features, kind=kind, layer=layer)
        variance = VarianceResult.from_json(answer.result)
        selection = drop_top_variance(features, variance, n_dropped=dropping.top_variance, **about)
    elif dropping.random is not None:
        selection = drop_random(features, n_dropped=dropping.random, seed=dropping.seed, **about)
    else:
        selection = drop_listed(features, _listed(dropping.listed), **about)
    write_selection(features.root, selection)
    return selection


def _listed(path: Path | None) -> list[int]:
    """Feature numbers from a file, separated by white space or commas."""
    try:
        numbers = [int(word) for word in Path(str(path)).read_text().replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise SelectionError(f"--drop {path}: {error}; give a file of feature numbers, one a line.") from error
    if not numbers:
        raise SelectionError(f"--drop {path}: it lists no feature; give a file of feature numbers, one a line.")
    return numbers
