"""Stores with many runs, feature sets and shards, made in seconds: equal shards are encoded once."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import DatasetSpec, FeatureSetSpec, create_store, manifest_table, register_dataset, shards_of
from feature_store.arrays import all_arrays, token_names
from feature_store.layout import FEATURE_SET_FILE, feature_set_folder, receipt, run_file, shard_object
from feature_store.objects import ObjectRoot, crc32c
from feature_store.receipts import Receipt, StoredObject
from feature_store.receipts_index import write_index
from feature_store.records import record_bytes, write_record
from feature_store.runs import RUN_FILE, id_for_run
from feature_store.shard_format import encode_shard
from feature_store.shards import ROWS_PER_CHUNK, Shard
from feature_store.writer import zarr_metadata_files
from pipelines.backbones import describe_backbone, kernel_name, resolve_backbone
from pipelines.environment import current_environment
from pipelines.plan import ExtractionSettings, feature_set_spec

FIRST_RUN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class LargeStore:
    """A large store, and how to ask for its largest feature set again.

    Attributes:
        url: the store.
        folders: the folders of the feature sets, the largest first.
        spec: the record of the largest.
        manifest: the file that the largest was extracted from.
        new_manifest: the file of a dataset that is not in the store.
    """

    url: str
    folders: tuple[str, ...]
    spec: FeatureSetSpec
    manifest: Path
    new_manifest: Path

    @property
    def extract(self) -> list[str]:
        """The command that made the largest feature set, as words behind `vitrine`."""
        return self._extract(self.manifest)

    @property
    def extract_new(self) -> list[str]:
        """The command that would make another one."""
        return self._extract(self.new_manifest)

    def _extract(self, manifest: Path) -> list[str]:
        recipe = ["--model", "null", "--tokens", "cls", "--rows-per-shard", str(ROWS_PER_CHUNK)]
        return ["extract", f"manifest:{manifest}", *recipe, "--store", self.url]


def make_large_store(
    url: str, folder: Path, *, n_runs: int, n_sets: int, n_shards: int, n_shards_of_others: int = 2
) -> LargeStore:
    """A store of finished feature sets of one recipe over different datasets, each made by as many runs.

    Args:
        url: where.
        folder: for manifests.
        n_runs: runs in all, dealt out to the feature sets in turn.
        n_sets: feature sets.
        n_shards: shards of the first feature set.
        n_shards_of_others: shards of each other one.
    """
    root = create_store(url)
    specs, folders = [], []
    for number in range(n_sets):
        table = _manifest(number, ROWS_PER_CHUNK * (n_shards_of_others if number else n_shards))
        if number == 0:
            pq.write_table(table, folder / "largest.parquet")
        name = f"set-{number}" if number else "largest"
        spec = _spec(root, name, table)
        specs.append(spec)
        folders.append(feature_set_folder(name, spec))
        fill(root, folders[-1], spec)
    pq.write_table(_manifest(n_sets, ROWS_PER_CHUNK), folder / "new.parquet")
    environment = current_environment("cpu")
    for number in range(n_runs):
        _write_run(root, number, folders[number % n_sets], specs[number % n_sets], environment)
    return LargeStore(
        url=url,
        folders=tuple(folders),
        spec=specs[0],
        manifest=folder / "largest.parquet",
        new_manifest=folder / "new.parquet",
    )


def _manifest(number: int, n_rows: int) -> pa.Table:
    return manifest_table(
        {"uri": f"{row:07d}.png", "image_sha256": f"{number * 10**9 + row:064x}", "label": row % 3, "split": "train"}
        for row in range(n_rows)
    )


def _spec(root: ObjectRoot, name: str, table: pa.Table) -> FeatureSetSpec:
    dataset = register_dataset(root, DatasetSpec(name=name), table, [None] * table.num_rows)
    request = resolve_backbone(
        "null", weights=None, image_size=None, windows=None, fit="crop", compute_dtype="float32", device="cpu",
        position_embedding=None,
    )  # fmt: skip
    settings = ExtractionSettings(token_kinds=("cls",), rows_per_shard=ROWS_PER_CHUNK)
    return feature_set_spec(dataset, describe_backbone(request), settings, attention_kernel=kernel_name(request))


def fill(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> None:
    """Write every shard of a feature set, all with the same tokens, and its index."""
    root.put(f"{folder}/{FEATURE_SET_FILE}", [record_bytes(spec.to_json())])
    for path, content in zarr_metadata_files(folder, spec).items():
        root.put(path, [content])
    rows = [np.ones((ROWS_PER_CHUNK, *spec.row_shape(kind)), dtype=np.float16) for _, kind in token_names(spec)]
    rows.append(np.ones(ROWS_PER_CHUNK, dtype=bool))
    arrays = [
        (array, 1 + len(layout.row_shape), b"".join(encode_shard(layout, values)))
        for (array, layout), values in zip(all_arrays(folder, spec), rows, strict=True)
    ]
    checksums = [crc32c([content]) for _, _, content in arrays]
    receipts = {}
    for shard in shards_of(spec.n_rows, spec.rows_per_shard):
        objects = []
        for (array, n_axes, content), checksum in zip(arrays, checksums, strict=True):
            path = shard_object(array, shard, n_axes)
            root.put(path, [content])
            objects.append(StoredObject(path=path.removeprefix(f"{folder}/"), size_bytes=len(content), crc32c=checksum))
        receipts[shard.index] = _receipt(spec, shard, objects)
        write_record(root, receipt(folder, shard), receipts[shard.index].to_json())
    write_index(root, folder, spec, receipts)


def _receipt(spec: FeatureSetSpec, shard: Shard, objects: list[StoredObject]) -> Receipt:
    return Receipt(
        feature_set=spec.identity.digest, shard=shard.index, start=shard.start, stop=shard.stop, objects=tuple(objects)
    )


def _write_run(root: ObjectRoot, number: int, folder: str, spec: FeatureSetSpec, environment: dict[str, str]) -> None:
    record = {
        "feature_set": folder,
        "digest": spec.identity.digest,
        "environment": environment,
        "reused_from": [],
        "outcome": {"committed": 1},
    }
    began = f"{FIRST_RUN + timedelta(minutes=number):%Y%m%dT%H%M%S}-{number:06x}"
    write_record(root, run_file(id_for_run(record, begun=began), RUN_FILE), record)
