"""Text from files and stores made safe to print: what names hold must not move a terminal's cursor or recolour it."""

import unicodedata

# Control and format characters (which reverse the direction of what follows), surrogates of bytes that are no text,
# and the two separators that break a line.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_CUT = "..."


def printable(text: str, most: int | None = None) -> str:
    """`text` with control characters written as Python would write them, and shortened in the middle.

    Args:
        text: from a file, a store or a command line.
        most: characters that the result may have, or None for any number.
    """
    shown = "".join(escaped(each) if unicodedata.category(each) in _UNPRINTABLE else each for each in text)
    if most is None or len(shown) <= most:
        return shown
    kept = max(most - len(_CUT), 2)
    return f"{shown[: (kept + 1) // 2]}{_CUT}{shown[-(kept // 2) :]}"


def escaped(character: str) -> str:
    """A character as Python would write it in a string."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def printable_json(text: str) -> str:
    """JSON text with the same value and no character that a terminal obeys; its own line breaks stay."""
    return "".join(
        each if each == "\n" or unicodedata.category(each) not in _UNPRINTABLE else _json_escape(each) for each in text
    )


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
