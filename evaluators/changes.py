"""Whether a result that was computed again says something else, as a reader of its figures would see it."""

from collections.abc import Mapping
from typing import Any

# Shares in 0..1, which people read to four digits.
_SCORES = frozenset(
    {
        "miou",
        "class_iou",
        "pixel_accuracy",
        "patch_accuracy",
        "ceiling_miou",
        "accuracy",
        "class_accuracy",
        "held_out_accuracy",
    }
)
_SCORE_TOLERANCE = 5e-5
# Of losses, variances and the like: threads and libraries move the digits behind.
_RELATIVE_TOLERANCE = 1e-5
# How a figure was come by is none.
_EFFORT = frozenset({"iterations", "passes", "computed"})


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two records of one question.

    A score counts as changed from half of its fourth decimal on, another fraction from a hundred-thousandth of itself
    on; counts and words must be equal. What only one of the two records is no change.

    Args:
        was, now: the records as JSON values.

    Returns:
        By name, as in `miou` or `class_iou.road`, the value before and the value now.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(was.keys() & now.keys() - _EFFORT):
        _compare(name, was[name], now[name], name in _SCORES, found)
    return found


def _compare(name: str, was: Any, now: Any, is_score: bool, found: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for part in sorted(was.keys() & now.keys()):
            _compare(f"{name}.{part}", was[part], now[part], is_score, found)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (one, other) in enumerate(zip(was, now, strict=True)):
            _compare(f"{name}.{index}", one, other, is_score, found)
    elif not _alike(was, now, is_score):
        found[name] = (was, now)


def _alike(was: Any, now: Any, is_score: bool) -> bool:
    if not (isinstance(was, float) or isinstance(now, float)) or was is None or now is None:
        return bool(was == now)
    allowed = _SCORE_TOLERANCE if is_score else _RELATIVE_TOLERANCE * max(abs(was), abs(now))
    return bool(abs(was - now) <= allowed)
