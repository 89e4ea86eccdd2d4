"""Exit codes, and which of them an error gets."""

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


def status_of(error: BaseException) -> int:
    """2 for wrong usage or configuration, else 1."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return USAGE if names & _USAGE_ERRORS else FAILED


def one_line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split())
