"""What a paper published of one model, to hold a run to: its images, its features of high variance, its table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from vitrine.exits import UsageError

_FILES = {"mae-b": "acceptance_mae_b.json"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published experiment.

    Attributes:
        source: where the figures are from.
        title: what reports call it.
        model: timm's name of the architecture.
        weights_file: the checkpoint that its authors name.
        weights_md5_prefix: first digits of its md5, as its authors published them.
        image_px: (width, height) of every image.
        tile_px: side of the tiles that images are cut into.
        classes: names of all mask values, from 0.
        scored: those that mIoU is the mean of.
        n_dropped: how many features of highest variance are dropped, column by column of the table.
        miou_1nn, miou_linear: the table, by column.
        miou_1nn_standardised, miou_linear_standardised: with all features standardised instead.
        top_variance: features of highest variance, highest first.
        train, val: images as city/name.
    """

    source: str
    title: str
    model: str
    weights_file: str
    weights_md5_prefix: str
    image_px: tuple[int, int]
    tile_px: int
    classes: tuple[str, ...]
    scored: tuple[int, ...]
    n_dropped: tuple[int, ...]
    miou_1nn: tuple[float, ...]
    miou_linear: tuple[float, ...]
    miou_1nn_standardised: float
    miou_linear_standardised: float
    top_variance: tuple[int, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Published":
        """Read a file of this package."""
        return cls(**{field.name: _frozen(value[field.name]) for field in fields(cls)})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def published(name: str) -> Published:
    """A published experiment by its short name.

    Raises:
        UsageError: none of that name.
    """
    if name not in _FILES:
        raise UsageError(f"acceptance {name!r}: choose {', '.join(_FILES)}.")
    text = resources.files("vitrine").joinpath(_FILES[name]).read_text(encoding="utf-8")
    return Published.from_json(json.loads(text))
