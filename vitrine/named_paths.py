"""Which paths of a store's plan may be opened: those alone that the user names too, for a store may be a stranger's."""

import shlex
from collections.abc import Sequence


def chosen(theirs: str, ours: Sequence[str]) -> str | None:
    """The user's path that the store names too, or the only one that the user names; the store's is not looked at."""
    return theirs if theirs in ours else ours[0] if len(ours) == 1 else None


def naming_options(words: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """What a store names, and the options that confirm it, to be typed.

    Args:
        words: (option, path) of each.
    """
    said = ", ".join(repr(path) for _, path in words)
    return said, " ".join(f"{option} {typed(path)}" for option, path in words)


def typed(text: str) -> str:
    """A word as a shell takes it, without what would move a terminal's cursor."""
    return shlex.quote("".join(character if character.isprintable() else "?" for character in text))
