"""Asking once: results are kept in the store under the digest of everything that decides them.

An answer is computed when the store has none, or when a fresh one is asked for; then it says whether it changed.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

from evaluators.changes import changes
from evaluators.subject import KIND_READ, Subject
from feature_store import FeatureSet, Selection, StoreError, made_elsewhere
from feature_store.results import read_result, result_digest, write_result


class Result(Protocol):
    """A result record."""

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A result, and where it came from.

    Attributes:
        evaluator: its name.
        result: the record as JSON values.
        digest: of the key; None for an answer that is not kept: from a part of a feature set, or see `not_kept`.
        cached: whether it was read from the store.
        changes: by name, what a fresh result says otherwise than the stored one, before and now; None where there was
            nothing to compare with.
        not_kept: why the store could not take it, or None.
    """

    evaluator: str
    result: Mapping[str, Any]
    digest: str | None
    cached: bool
    changes: Mapping[str, tuple[Any, Any]] | None = None
    not_kept: str | None = None

    @property
    def changed(self) -> bool | None:
        """Whether a fresh result differs from the stored one; None where there was nothing to compare with."""
        return None if self.changes is None else bool(self.changes)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a feature set.

    Attributes:
        key: everything that decides the result: inputs by digest, the evaluator with its revision, and its parameters.
        about: the inputs by the names and digests that a reader knows them by, and what was asked; it decides nothing.
    """

    key: Mapping[str, Any]
    about: Mapping[str, Any]


def question(
    features: FeatureSet, evaluator: str, revision: int, parameters: Any, selection: Selection | None = None
) -> Question:
    """The question that `evaluator` answers with these parameters (a dataclass) and this selection."""
    asked = _plain(asdict(parameters))
    return Question(
        key={
            "feature_set": features.digest,
            "annotations": features.dataset.annotations_digest,
            "selection": None if selection is None else selection.digest,
            "evaluator": evaluator,
            "revision": revision,
            "parameters": asked,
        },
        about={
            "features": features.name,
            "feature_set": features.digest,
            "annotations": features.dataset.annotations_digest,
            "model": features.spec.title,
            "selection": None if selection is None else selection.name,
            **_taken_for_other_tokens(selection, parameters),
            "layer": asked.get("subject", asked).get("layer"),
            "parameters": asked,
        },
    )


def _taken_for_other_tokens(selection: Selection | None, parameters: Any) -> dict[str, str]:
    """What an answer says of a selection that was made on other tokens than those that are asked about."""
    subject = getattr(parameters, "subject", None)
    if isinstance(subject, Subject) and subject.on != "auto" and subject.layer != "last":
        return made_elsewhere(selection, int(subject.layer), KIND_READ[subject.on])
    # A decoder takes patches with the class token; a selection for it is one of patches.
    layer = getattr(parameters, "layer", None)
    return made_elsewhere(selection, layer, "patches") if isinstance(layer, int) else {}


def ask(features: FeatureSet, asked: Question, compute: Callable[[], Result], *, fresh: bool = False) -> Answer:
    """The stored answer to a question, or a computed one, which is then stored where the store takes it.

    Args:
        features: what the question is about.
        asked: from `question`.
        compute: makes the record.
        fresh: compute even where an answer is stored, and say whether the numbers changed.
    """
    evaluator = str(asked.key["evaluator"])
    if features.missing:
        result = _computed(asked, compute)
        return Answer(evaluator=evaluator, result=result, digest=None, cached=False)
    stored = read_result(features.root, evaluator, asked.key)
    if stored is not None and not fresh:
        return Answer(
            evaluator=evaluator, result={**stored, **asked.about}, digest=result_digest(asked.key), cached=True
        )
    result = _computed(asked, compute)
    digest, not_kept = _keep(features, asked, result)
    changed = None if stored is None else changes({**stored, **asked.about}, result)
    return Answer(evaluator=evaluator, result=result, digest=digest, cached=False, changes=changed, not_kept=not_kept)


def _computed(asked: Question, compute: Callable[[], Result]) -> dict[str, Any]:
    """A new record, and when it was made."""
    values = _plain(compute().to_json())
    return {**asked.about, **values, "computed": datetime.now(UTC).isoformat(timespec="seconds")}


def _keep(features: FeatureSet, asked: Question, result: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The digest under which a result is kept, or why it is not."""
    try:
        return write_result(features.root, str(asked.key["evaluator"]), asked.key, result), None
    except (OSError, StoreError) as error:
        # The numbers are there, and cost time; that a store is mounted read-only does not make them wrong.
        return None, getattr(error, "strerror", None) or str(error)


def _plain(value: Any) -> Any:
    """What is read back: tuples as lists, and null for NaN and the infinities, which JSON cannot say."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
