"""Exit codes, and which of them an error gets."""

import errno
from collections.abc import Iterable
from typing import Any

DONE = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130
# As `feature_store.receipts.REMOVED_ROW`, which is not imported: `vitrine --help` loads no package.
_REMOVED = "removed"
# By name, so that telling them apart imports nothing: what a user asked for cannot be, whatever the store holds.
_USAGE_ERRORS = {
    "AskedError",
    "BackboneError",
    "BadParameter",
    "DecoderError",
    "ExportRefusedError",
    "ImportRefusedError",
    "ManifestError",
    "PlanError",
    "QueryError",
    "SelectionError",
    "UnknownNameError",
    "UsageError",
}


class UsageError(ValueError):
    """An option whose value is not among the choices."""


class InterruptedCommandError(Exception):
    """Ctrl-C, with the line that says what stands; Typer would turn a plain KeyboardInterrupt into silence."""


def of_invalid(reasons: Iterable[str]) -> int:
    """The code of a run that finished with rows that are invalid for these reasons; a removed view is no failure."""
    return INCOMPLETE if set(reasons) - {_REMOVED} else DONE


# What the system refused, and what a user can do about it.
_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EROFS: "mount it for writing, or choose another --store",
    errno.EACCES: "grant the right to it",
    errno.EPERM: "grant the right to it",
    errno.EMFILE: "allow more open files with `ulimit -n`",
    errno.ENFILE: "close other programs, which have too many files open",
    errno.ENOMEM: "close other programs, or use fewer --workers",
    errno.EIO: "the disk is failing; copy the store to another",
}
# By the type of what the parser of options found.
_RULES = {
    "greater_than_equal": "a number of {ge} or more",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
}
_BOUNDS = {"ge", "gt", "le", "lt"}
_SHOWN_CHARACTERS = 60
# A RuntimeError of Python's own, for want of memory for the thread's stack.
_NO_THREAD = "can't start new thread"


def line_of(error: BaseException) -> str:
    """What to say of an error, on one line."""
    if isinstance(error, MemoryError) or str(error) == _NO_THREAD:
        error = OSError(errno.ENOMEM, f"memory ran out ({one_line(str(error)) or type(error).__name__})")
    # The store's own errors end in their way out.
    is_plain = isinstance(error, OSError) and "StoreError" not in {kind.__name__ for kind in type(error).__mro__}
    way_out = _WAYS_OUT.get(getattr(error, "errno", None) or 0) if is_plain else None
    if way_out is None or not isinstance(error, OSError):
        return one_line(str(error)) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    return one_line(f"{place}{error.strerror}; {way_out}, and run the same command again: what is committed stays.")


def usage_line_of(error: BaseException) -> str:
    """What to say of a command line that the parser refuses: the value, the rule, and where help stands."""
    command = getattr(getattr(error, "ctx", None), "command_path", "vitrine")
    message = one_line(_value_refused(error) or _format(error))
    end = "" if message.endswith("?") else "."
    return f"{message.rstrip('.')}{end} See `{command} --help`."


def _format(error: Any) -> str:
    message: str = error.format_message()
    return message


def _value_refused(error: BaseException) -> str | None:
    """A value that is out of range or no number, named with its option; None for any other error."""
    find = getattr(error.__cause__, "errors", None)
    names = getattr(getattr(error, "param", None), "opts", None)
    if find is None or not names:
        return None
    found = find()[0]
    rule = _RULES.get(found["type"])
    if rule is None:
        return None
    bounds = {name: f"{bound:.12g}" for name, bound in found.get("ctx", {}).items() if name in _BOUNDS}
    value = str(found["input"])
    shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
    return f"{names[-1]} {shown!r}: give {rule.format(**bounds)}"


def status_of(error: BaseException) -> int:
    """2 for wrong usage or configuration, else 1."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return USAGE if names & _USAGE_ERRORS else FAILED


def one_line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split())
