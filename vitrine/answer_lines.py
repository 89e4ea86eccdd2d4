"""What every command says of an answer besides its numbers: whether it was stored, changed, or cannot be kept."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluators import Answer
from vitrine.output import console


def about_answer(answer: Answer) -> dict[str, Any]:
    """Where an answer came from, as JSON values."""
    return {"digest": answer.digest, "cached": answer.cached, "changed": answer.changed}


def say_not_kept(answers: Sequence[Answer]) -> None:
    """One line on standard error where the store could not take the answers."""
    reasons = {answer.not_kept for answer in answers if answer.not_kept is not None}
    if reasons:
        text = f"vitrine: the answer is not kept, since the store cannot be written ({', '.join(sorted(reasons))})"
        console(stderr=True).print(text, markup=False, soft_wrap=True)


def print_absent(result: Mapping[str, Any]) -> None:
    """One line that names the scored classes that nothing was tested on."""
    absent = result.get("absent") or ()
    if absent:
        console().print(f"no test token or pixel is of class {', '.join(absent)}", markup=False)


def print_origin(answer: Answer) -> None:
    """One line that says whether an answer was computed, and whether it changed."""
    if answer.cached and answer.digest is not None:
        console().print(f"from the store (result {answer.digest[:8]}); --fresh computes it again")
    elif answer.changed is not None:
        console().print("computed again: " + ("THE RESULT CHANGED" if answer.changed else "the same result"))
    elif answer.digest is None and answer.not_kept is None:
        console().print("from a part of the feature set; not kept")
