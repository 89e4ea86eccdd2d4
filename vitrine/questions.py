"""From the words of the command line to the evaluators' questions, and their answers."""

from pathlib import Path
from typing import Any, get_args

from evaluators import (
    KNN_REVISION,
    LINEAR_REVISION,
    VARIANCE_REVISION,
    Answer,
    KnnParameters,
    LinearParameters,
    Subject,
    VarianceParameters,
    VarianceResult,
    ask,
    drop_listed,
    drop_random as without_random,
    drop_top_variance as without_top_variance,
    evaluate_knn_for,
    evaluate_linear,
    evaluate_variance,
    question,
)
from evaluators.neighbors import Backend, Metric
from evaluators.probe_input import On, resolve_subject
from feature_store import FeatureSet, Selection, SelectionError, read_selection, write_selection
from feature_store.identity import TOKEN_KINDS


class UsageError(ValueError):
    """An option whose value is not among the choices."""


def _choice(value: str, choices: tuple[str, ...], option: str) -> Any:
    if value not in choices:
        raise UsageError(f"{option} {value!r}: choose {', '.join(choices)}.")
    return value


def subject_of(
    on: str, layer: str, train_split: str, test_split: str | None, hold_out: float | None, seed: int
) -> Subject:
    """The subject that the options name.

    Raises:
        UsageError: an unknown word, or a share outside (0, 1).
    """
    if hold_out is not None and not 0 < hold_out < 1:
        raise UsageError(f"--hold-out {hold_out}: give a share between 0 and 1, e.g. 0.2.")
    return Subject(
        on=_choice(on, get_args(On), "--on"),
        layer=layer,
        train_split=train_split,
        test_split=test_split,
        hold_out=hold_out,
        seed=seed,
    )


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
        kind=_choice(kind, TOKEN_KINDS, "--tokens"), layer=features.layer_number(layer), split=split
    )
    asked = question(features, "variance", VARIANCE_REVISION, parameters)
    return ask(features, asked, lambda: evaluate_variance(features, parameters), fresh=fresh)


def ask_knn(
    features: FeatureSet,
    subject: Subject,
    *,
    ks: tuple[int, ...] = (1,),
    metric: str = "cosine",
    standardise: bool = False,
    selection: str | None = None,
    backend: str = "auto",
    fresh: bool = False,
) -> list[Answer]:
    """One answer a k; those that the store lacks come from one search."""
    chosen = None if selection is None else read_selection(features.root, selection)
    subject = resolve_subject(features, subject)
    metric_name: Metric = _choice(metric, get_args(Metric), "--metric")
    backend_name: Backend = _choice(backend, get_args(Backend), "--backend")
    computed: dict[int, Any] = {}

    def compute(k: int) -> Any:
        if k not in computed:
            parameters = KnnParameters(subject=subject, metric=metric_name, standardise=standardise)
            found = evaluate_knn_for(features, ks, parameters, selection=chosen, backend=backend_name)
            computed.update(zip(ks, found, strict=True))
        return computed[k]

    answers = []
    for k in ks:
        parameters = KnnParameters(subject=subject, k=k, metric=metric_name, standardise=standardise)
        asked = question(features, "knn", KNN_REVISION, parameters, chosen)
        answers.append(ask(features, asked, lambda k=k: compute(k), fresh=fresh))  # type: ignore[misc]
    return answers


def ask_linear(
    features: FeatureSet,
    subject: Subject,
    *,
    selection: str | None = None,
    l2s: tuple[float, ...] | None = None,
    memory_bytes: int | None = None,
    fresh: bool = False,
) -> Answer:
    """The linear probe."""
    chosen = None if selection is None else read_selection(features.root, selection)
    changes: dict[str, Any] = {"l2s": l2s, "memory_bytes": memory_bytes}
    given = {name: value for name, value in changes.items() if value is not None}
    parameters = LinearParameters(subject=resolve_subject(features, subject), **given)
    asked = question(features, "linear", LINEAR_REVISION, parameters, chosen)
    return ask(features, asked, lambda: evaluate_linear(features, parameters, selection=chosen), fresh=fresh)


def make_selection(
    features: FeatureSet,
    *,
    name: str,
    drop_top_variance: int | None = None,
    drop: Path | None = None,
    drop_random: int | None = None,
    seed: int = 0,
    kind: str = "patches",
    layer: int | str = "last",
) -> Selection:
    """Make and store a selection in one of three ways.

    Raises:
        UsageError: none or several of the ways.
        SelectionError: a number that does not fit, or another selection of that name.
    """
    ways = [way for way in (drop_top_variance, drop, drop_random) if way is not None]
    if len(ways) != 1:
        raise UsageError("give exactly one of --drop-top-variance M, --drop FILE and --drop-random M.")
    about: dict[str, Any] = {"name": name, "layer": features.layer_number(layer), "kind": kind}
    if drop_top_variance is not None:
        answer = ask_variance(features, kind=kind, layer=layer)
        names = VarianceResult.__dataclass_fields__
        variance = VarianceResult(**{key: value for key, value in answer.result.items() if key in names})
        selection = without_top_variance(features, variance, n_dropped=drop_top_variance, **about)
    elif drop_random is not None:
        selection = without_random(features, n_dropped=drop_random, seed=seed, **about)
    else:
        selection = drop_listed(features, _listed(drop), **about)
    write_selection(features.root, selection)
    return selection


def _listed(path: Path | None) -> list[int]:
    """Feature numbers from a file, separated by white space or commas."""
    try:
        words = Path(str(path)).read_text().replace(",", " ").split()
        return [int(word) for word in words]
    except (OSError, ValueError) as error:
        raise SelectionError(f"--drop {path}: {error}; give a file of feature numbers, one a line.") from error
