"""How a dataset that grew out of another came to the order of its rows; part of the identity of its feature sets."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from feature_store.records import Fields

_DIGESTS = ("predecessor", "origin", "in_uri_order")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The way from a fresh dataset to one that kept its rows; every field follows from the manifests on that way.

    Attributes:
        predecessor: the views digest of the dataset whose rows come first.
        origin: the views digest of the fresh dataset at the beginning of the chain.
        generation: how many times it has grown since; 1 for the first time.
        in_uri_order: the views digest that the same views would have as a fresh dataset, without removed rows.
    """

    predecessor: str
    origin: str
    generation: int
    in_uri_order: str

    def to_json(self) -> dict[str, Any]:
        """The growth as JSON values."""
        return asdict(self)


def read_growth(value: Mapping[str, Any], *, name: str, remedy: str) -> Growth:
    """Read what `Growth.to_json` wrote, perhaps changed by a stranger.

    Raises:
        CorruptError: a field is missing, of the wrong type, unknown or impossible.
    """
    fields = Fields(value, name=name, remedy=remedy)
    unknown = sorted(set(value) - {*_DIGESTS, "generation"})
    if unknown:
        raise fields.corrupt(f"its growth has {unknown}, which this Vitrine does not know")
    for key in _DIGESTS:
        if not re.fullmatch(r"[0-9a-f]{64}", fields.text(key)):
            raise fields.corrupt(f"{key!r} of its growth is no sha256")
    return Growth(
        predecessor=fields.text("predecessor"),
        origin=fields.text("origin"),
        generation=fields.integer("generation", least=1),
        in_uri_order=fields.text("in_uri_order"),
    )
