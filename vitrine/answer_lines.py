"""What every command says of an answer besides its numbers: whether it was stored, changed, or cannot be kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluators import Answer, LinearParameters
from vitrine.output import console

_MOST_CHANGES = 5
# What of a result stands in the heading of its table, in this order.
_ASKED = ("on", "layer", "k", "metric", "standardised", "l2", "selection", "selection_made_on")
_USUAL = LinearParameters()


def about_answer(answer: Answer) -> dict[str, Any]:
    """Where an answer came from, as JSON values."""
    changes = None if answer.changes is None else {name: list(both) for name, both in answer.changes.items()}
    return {"digest": answer.digest, "cached": answer.cached, "changed": answer.changed, "changes": changes}


def say_not_kept(answers: Sequence[Answer]) -> None:
    """One line on standard error where the store could not take the answers."""
    reasons = {answer.not_kept for answer in answers if answer.not_kept is not None}
    if reasons:
        text = f"vitrine: the answer is not kept, since the store cannot be written ({', '.join(sorted(reasons))})"
        console(stderr=True).print(text, markup=False, soft_wrap=True)


def asked_in_words(result: Mapping[str, Any]) -> str:
    """What was asked, for the heading of a table: bounds of a fit stand there where they are not the usual ones."""
    asked = {name: result[name] for name in _ASKED if result.get(name)}
    return " ".join(f"{name}={value}" for name, value in {**asked, **bounds_of_fit(result)}.items())


def bounds_of_fit(result: Mapping[str, Any]) -> dict[str, str]:
    """What kept a fit from all training tokens and all the passes it wanted, where anything did."""
    parameters, sample = result.get("parameters") or {}, result.get("sample")
    bounds: dict[str, str] = {}
    if parameters.get("memory_bytes", _USUAL.memory_bytes) != _USUAL.memory_bytes:
        bounds["memory"] = f"{parameters['memory_bytes'] / 1e9:g}GB"
    if parameters.get("max_passes") is not None:
        bounds["max_passes"] = str(parameters["max_passes"])
    if sample:
        bounds["sample"] = f"{sample['images']}/{sample['of']}-images"
    return bounds


def print_unconverged(result: Mapping[str, Any]) -> None:
    """One line under the scores of a fit that ended before its loss had settled: they may still change."""
    if result.get("converged") is False:
        console().print(
            f"not converged after {result['passes']} passes; loss {result['loss']:.4g}. The scores are those of a fit "
            "that was not finished.",
            soft_wrap=True,
        )


def print_absent(result: Mapping[str, Any]) -> None:
    """One line that names the scored classes that nothing was tested on."""
    absent = result.get("absent") or ()
    if absent:
        console().print(f"no test token or pixel is of class {', '.join(absent)}", markup=False)


def print_origin(answer: Answer) -> None:
    """One line that says whether an answer was computed, and whether it changed."""
    if answer.cached and answer.digest is not None:
        made = f", computed {answer.result['computed']}" if "computed" in answer.result else ""
        console().print(f"from the store (result {answer.digest[:8]}{made}); --fresh computes it again")
    elif answer.changes is not None:
        console().print(f"computed again: {_changes_in_words(answer.changes)}", markup=False)
    elif answer.digest is None and answer.not_kept is None:
        console().print("from a part of the feature set; not kept")


def _changes_in_words(changes: Mapping[str, tuple[Any, Any]]) -> str:
    if not changes:
        return "the same result"
    said = [f"{name} was {_figure(was)} and is {_figure(now)}" for name, (was, now) in changes.items()]
    more = f"; {len(said) - _MOST_CHANGES} more" if len(said) > _MOST_CHANGES else ""
    return f"THE RESULT CHANGED: {'; '.join(said[:_MOST_CHANGES])}{more}"


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
