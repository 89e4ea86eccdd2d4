"""Small stores with numbers that any process can make again: no model, no images."""

import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feature_store import (
    DatasetSpec,
    FeatureSet,
    FeatureSetSpec,
    FeatureStore,
    Identity,
    InvalidRow,
    Selection,
    Shard,
    StoredDataset,
    TokenKind,
    create_feature_set,
    create_store,
    finish_feature_set,
    manifest_table,
    missing_shards,
    register_dataset,
    shards_of,
    write_shard,
)
from feature_store.arrays import token_names
from feature_store.objects import ObjectRoot
from feature_store.writer import committed_receipts

CLASSES = ("sky", "road", "tree")
VOID = 255


def make_spec(
    *,
    n_rows: int = 21,
    rows_per_shard: int = 8,
    layers: tuple[int, ...] = (1, 2),
    kinds: tuple[TokenKind, ...] = ("patches", "cls"),
    dtype: str = "float16",
    views: str = "a" * 64,
    weights: str = "b" * 64,
    model: str = "vit_tiny",
    batch_size: int = 4,
) -> FeatureSetSpec:
    """The record of a tiny feature set: 2 x 2 patches of 3 features, and a register or two heads where asked for."""
    identity = Identity(
        views_digest=views,
        weights_sha256=weights,
        architecture={"name": model, "norm": "norm"},
        preprocessing={"size": 4, "mean": (0.5, 0.25, 0.125)},
        layers=layers,
        token_kinds=kinds,
        storage_dtype=dtype,
    )
    return FeatureSetSpec(
        identity=identity,
        model=model,
        title="a tiny ViT",
        n_rows=n_rows,
        rows_per_shard=rows_per_shard,
        grid=(2, 2),
        n_features=3,
        n_registers=1 if "registers" in kinds else 0,
        n_heads=2 if "attention" in kinds else 0,
        batch_size=batch_size,
        attention_kernel="fused",
    )


def all_tokens(spec: FeatureSetSpec, layer: int, kind: TokenKind, invalid: Sequence[int] = ()) -> np.ndarray[Any, Any]:
    """Every row of one array; zero in invalid rows."""
    seed = zlib.crc32(f"{spec.identity.weights_sha256} {layer} {kind}".encode())
    values = np.random.default_rng(seed).normal(size=(spec.n_rows, *spec.row_shape(kind)))
    values[list(invalid)] = 0
    return values.astype(spec.identity.storage_dtype)


def shard_tokens(
    spec: FeatureSetSpec, shard: Shard, invalid: Sequence[int] = ()
) -> Mapping[tuple[int, TokenKind], np.ndarray[Any, Any]]:
    """What one shard holds."""
    return {
        (layer, kind): all_tokens(spec, layer, kind, invalid)[shard.start : shard.stop]
        for layer, kind in token_names(spec)
    }


def write_missing(root: ObjectRoot, folder: str, spec: FeatureSetSpec, invalid: Sequence[int] = ()) -> None:
    """Commit every shard that lacks a receipt."""
    shards = shards_of(spec.n_rows, spec.rows_per_shard)
    for shard in missing_shards(shards, committed_receipts(root, folder, spec)):
        reasons = [InvalidRow(row=row, reason="truncated") for row in invalid if shard.start <= row < shard.stop]
        write_shard(root, folder, spec, shard, shard_tokens(spec, shard, invalid), reasons)
    finish_feature_set(root, folder, spec)


def make_masks(n_rows: int) -> list[np.ndarray[Any, Any] | None]:
    """Masks of differing sizes; every fourth view has none."""
    random = np.random.default_rng(7)
    masks: list[np.ndarray[Any, Any] | None] = []
    for row in range(n_rows):
        values = random.integers(0, len(CLASSES) + 1, size=(4 + row % 3, 5 + row % 2), dtype=np.uint8)
        values[values == len(CLASSES)] = VOID
        masks.append(None if row % 4 == 3 else values)
    return masks


def make_table(n_rows: int, label_of_first: int = 0) -> pa.Table:
    """A manifest: the first two thirds train, the rest test."""
    return manifest_table(
        {
            "uri": f"images/{row:03d}.png",
            "image_sha256": f"{row:064x}",
            "split": "train" if row < n_rows * 2 // 3 else "test",
            "label": label_of_first if row == 0 else row % len(CLASSES),
            "mask_uri": f"masks/{row:03d}.png" if row % 4 != 3 else None,
        }
        for row in range(n_rows)
    )


def register(root: ObjectRoot, n_rows: int, label_of_first: int = 0) -> StoredDataset:
    """A dataset of so many rows."""
    spec = DatasetSpec(name="tiny", classes=CLASSES, void=VOID, colours=((0, 0, 9), (9, 9, 9), (0, 9, 0)))
    return register_dataset(root, spec, make_table(n_rows, label_of_first), make_masks(n_rows))


def fill_store(
    url: str,
    *,
    n_rows: int = 21,
    rows_per_shard: int = 8,
    layers: tuple[int, ...] = (1,),
    kinds: tuple[TokenKind, ...] = ("patches", "cls"),
    invalid: Sequence[int] = (),
) -> FeatureSet:
    """A whole store: dataset, feature set, every shard; a run of it may be killed and run again."""
    root = create_store(url)
    dataset = register(root, n_rows)
    spec = make_spec(
        n_rows=n_rows, rows_per_shard=rows_per_shard, layers=layers, kinds=kinds, views=dataset.views_digest
    )
    folder = create_feature_set(root, dataset.spec.name, spec)
    root.sweep_partials(folder)
    write_missing(root, folder, spec, invalid)
    return FeatureStore(root).features()


def make_selection(name: str = "no1", features: tuple[int, ...] = (0, 2), width: int = 3, **changes: Any) -> Selection:
    """A selection of features 0 and 2 of 3, made for the weights of `make_spec`."""
    fields: dict[str, Any] = {
        "weights_sha256": "b" * 64,
        "layer": 2,
        "kind": "patches",
        "made_by": {"drop_listed": 1},
        **changes,
    }
    return Selection(name=name, features=features, width=width, **fields)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file under a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copy_store(source: Path, target: Path) -> Path:
    """A copy of a store to break."""
    shutil.copytree(source, target)
    return target
