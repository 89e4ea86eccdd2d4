"""What an adapter found and did not take: counted and named, so that nothing is lost in silence."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

MOST_NAMED = 1000


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """Things of one kind that are in a dataset's folder or table, and give no row.

    Attributes:
        what: the kind and why it is not taken, as a phrase that follows "1 " or "20 ".
        count: how many there are.
        names: the first of them, at most `MOST_NAMED`, in the order of their names.
    """

    what: str
    count: int
    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {**asdict(self), "names": list(self.names)}


class PassedOverList:
    """Collects what is passed over, by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, what: str, name: str) -> None:
        """Count one more thing of this kind."""
        self._counts[what] = self._counts.get(what, 0) + 1
        names = self._names.setdefault(what, [])
        if len(names) < MOST_NAMED:
            names.append(name)

    def add_all(self, what: str, names: Iterable[str]) -> None:
        """Count several things of one kind."""
        for name in names:
            self.add(what, name)

    def found(self) -> tuple[PassedOver, ...]:
        """Everything that was counted, the most frequent kind first."""
        kinds = sorted(self._counts, key=lambda what: (-self._counts[what], what))
        return tuple(
            PassedOver(what=what, count=self._counts[what], names=tuple(sorted(self._names[what]))) for what in kinds
        )
