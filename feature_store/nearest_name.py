"""The names nearest to one that is not there: what a user who mistyped it probably meant."""

import difflib
from collections.abc import Iterable

_SHOWN = 3
# Of difflib's ratio: half of the letters in common, in order, is chance; two of three are a slip of the fingers.
_LEAST_RATIO = 0.65


def nearest_names(word: str, names: Iterable[str]) -> list[str]:
    """At most three of `names` that begin with `word` or are spelt much as it is; upper and lower case are one.

    Args:
        word: what was typed.
        names: what there is.

    Returns:
        Names that begin with the word, the shortest first, then the others, the nearest first.
    """
    by_lower = {name.lower(): name for name in names}
    word = word.lower()
    longer = sorted((name for name in by_lower if word and name.startswith(word)), key=lambda name: (len(name), name))
    close = difflib.get_close_matches(word, by_lower, n=_SHOWN, cutoff=_LEAST_RATIO)
    return [by_lower[name] for name in dict.fromkeys([*longer, *close])][:_SHOWN]


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question to put behind a name that is not there, with a space before it; empty where nothing is near."""
    near = nearest_names(word, names)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
