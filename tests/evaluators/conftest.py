"""Small stores of random tokens with masks and labels, written through the store's own writer; no model, no images.

| fixture | what it is |
| --- | --- |
| `synthetic` | builds a store; keyword arguments shape it |
| `segmented` | 14 views of 3 x 4 patches with masks of uneven sizes, void pixels, and two invalid rows |
| `labelled` | 30 views with labels, cls tokens that carry them, and two invalid rows |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from feature_store import (
    DatasetSpec,
    FeatureSet,
    FeatureSetSpec,
    Identity,
    InvalidRow,
    create_feature_set,
    create_store,
    manifest_table,
    open_store,
    register_dataset,
    shards_of,
    views_digest,
    write_shard,
)
from feature_store.identity import TokenKind


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What a synthetic store was made of: the oracle's input."""

    url: str
    features: FeatureSet
    patches: np.ndarray
    cls: np.ndarray
    masks: list[np.ndarray | None]
    labels: list[int | None]
    splits: Sequence[str | None]
    valid: np.ndarray


def build(
    folder: Path,
    *,
    n_rows: int,
    grid: tuple[int, int] = (3, 4),
    n_features: int = 6,
    with_masks: bool = True,
    invalid: tuple[int, ...] = (),
    splits: Sequence[str | None] | None = None,
    seed: int = 0,
    void: int | None = 9,
    commit: slice = slice(None),
    absent: int | None = None,
    by_class: bool = False,
    same_image: Mapping[int, int] = MappingProxyType({}),
) -> Synthetic:
    """Write a store of random tokens that carry their classes weakly, so that no score is 0 or 1.

    `absent` is a class that no test row has; class 0 stands in its place. `by_class` sorts the rows by class
    and gives all pixels of a row that class. `same_image` names rows whose image is a copy of another's.
    """
    generator = np.random.default_rng(seed)
    n_classes, n_patches = 3, grid[0] * grid[1]
    splits = splits or ["train" if row % 3 else "test" for row in range(n_rows)]
    labels: list[int | None] = [int(generator.integers(n_classes)) for _ in range(n_rows)]
    if absent is not None:
        labels = [
            0 if split == "test" and label == absent else label for split, label in zip(splits, labels, strict=True)
        ]
    labels = sorted(labels, key=lambda label: label or 0) if by_class else labels
    centres = generator.normal(size=(n_classes + 1, n_features))
    masks: list[np.ndarray | None] = []
    patches = np.zeros((n_rows, n_patches, n_features), dtype=np.float16)
    for row in range(n_rows):
        height, width = 7 + row % 5, 11 + row % 3
        mask = generator.integers(0, n_classes, (height, width)).astype(np.uint8)
        if splits[row] == "test":
            mask[mask == absent] = 0
        if by_class:
            mask[:] = labels[row] or 0
        if void is not None:
            mask[generator.random(mask.shape) < 0.1] = void
        masks.append(mask if with_masks else None)
        rows, columns = (
            (np.arange(side) * 2 + 1) * length // (2 * side) for side, length in zip(grid, mask.shape, strict=True)
        )
        truth = np.minimum(mask[np.ix_(rows, columns)].reshape(-1), n_classes)
        patches[row] = centres[truth] + generator.normal(size=(n_patches, n_features))
    cls = (centres[[label or 0 for label in labels]] + generator.normal(size=(n_rows, n_features))).astype(np.float16)
    patches[list(invalid)], cls[list(invalid)] = 0, 0
    table = manifest_table(
        {
            "image_sha256": f"{same_image.get(row, row):064x}",
            "uri": f"{row:04d}.png",
            "split": splits[row],
            "label": labels[row],
        }
        for row in range(n_rows)
    )
    spec = DatasetSpec(name="synthetic", classes=("sky", "road", "tree"), void=void)
    root = create_store(str(folder))
    register_dataset(root, spec, table, masks)
    identity = Identity(
        views_digest=views_digest(table),
        weights_sha256="ab" * 32,
        architecture={"name": "none"},
        preprocessing={"fit": "squash"},
        layers=(2,),
        token_kinds=("patches", "cls"),
    )
    record = FeatureSetSpec(
        identity=identity,
        model="none",
        title="random tokens",
        n_rows=n_rows,
        rows_per_shard=8,
        grid=grid,
        n_features=n_features,
        n_registers=0,
        batch_size=1,
        attention_kernel="explicit",
    )
    place = create_feature_set(root, spec.name, record)
    for shard in shards_of(n_rows, 8)[commit]:
        rows_of_shard = slice(shard.start, shard.stop)
        tokens: dict[tuple[int, TokenKind], np.ndarray] = {
            (2, "patches"): patches[rows_of_shard],
            (2, "cls"): cls[rows_of_shard],
        }
        bad = [InvalidRow(row=row, reason="truncated") for row in invalid if shard.start <= row < shard.stop]
        write_shard(root, place, record, shard, tokens, bad)
    valid = np.ones(n_rows, dtype=bool)
    valid[list(invalid)] = False
    return Synthetic(
        url=str(folder),
        features=open_store(str(folder)).features(partial=commit != slice(None)),
        patches=patches,
        cls=cls,
        masks=masks,
        labels=labels,
        splits=splits,
        valid=valid,
    )


@pytest.fixture
def synthetic(tmp_path: Path) -> Callable[..., Synthetic]:
    """`build` in a folder of its own at every call."""
    count = iter(range(1000))
    return lambda **options: build(tmp_path / f"store{next(count)}", **options)


@pytest.fixture
def segmented(synthetic: Callable[..., Synthetic]) -> Synthetic:
    return synthetic(n_rows=14, invalid=(0, 7))


@pytest.fixture
def labelled(synthetic: Callable[..., Synthetic]) -> Synthetic:
    return synthetic(n_rows=30, with_masks=False, invalid=(3, 4))
