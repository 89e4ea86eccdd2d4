"""Exit codes, and which of them an error gets."""

import errno

DONE = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130
# By name, so that telling them apart imports nothing: what a user asked for cannot be, whatever the store holds.
_USAGE_ERRORS = {
    "BackboneError",
    "BadParameter",
    "ExportRefusedError",
    "ImportRefusedError",
    "ManifestError",
    "PlanError",
    "QueryError",
    "SelectionError",
    "UsageError",
}


class UsageError(ValueError):
    """An option whose value is not among the choices."""


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
# A RuntimeError of Python's own, for want of memory for the thread's stack.
_NO_THREAD = "can't start new thread"


def line_of(error: BaseException) -> str:
    """What to say of an error, on one line."""
    if isinstance(error, MemoryError) or str(error) == _NO_THREAD:
        error = OSError(errno.ENOMEM, f"memory ran out ({one_line(str(error)) or type(error).__name__})")
    way_out = _WAYS_OUT.get(error.errno or 0) if isinstance(error, OSError) else None
    if way_out is None or not isinstance(error, OSError):
        return one_line(str(error)) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    return one_line(f"{place}{error.strerror}; {way_out}, and run the same command again: what is committed stays.")


def status_of(error: BaseException) -> int:
    """2 for wrong usage or configuration, else 1."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return USAGE if names & _USAGE_ERRORS else FAILED


def one_line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split())
