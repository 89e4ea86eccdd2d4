"""The store: schema, identity, writing, reading. Imports neither torch nor the packages beside it."""

from feature_store.canonical import digest_of
from feature_store.datasets import StoredDataset, read_dataset, read_manifest, register_dataset
from feature_store.errors import (
    CorruptError,
    IdentityMismatchError,
    IncompleteError,
    ManifestError,
    QueryError,
    SelectionError,
    ShardError,
    StoreError,
    StoreNotFoundError,
    UnknownNameError,
)
from feature_store.identity import FeatureSetSpec, Identity, TokenKind
from feature_store.manifest import DatasetSpec, annotations_digest, manifest_table, mask_digest, view_id, views_digest
from feature_store.query import FeatureRows, RowQueries
from feature_store.reader import FeatureSet
from feature_store.receipts import InvalidRow, Receipt, StoredObject
from feature_store.selections import (
    Selection,
    dropping,
    made_elsewhere,
    read_selection,
    selection_names,
    write_selection,
)
from feature_store.shards import Shard, missing_shards, shards_of, suggest_rows_per_shard
from feature_store.store import FeatureStore, open_store
from feature_store.writer import create_feature_set, create_store, finish_feature_set, write_shard

__all__ = [
    "CorruptError",
    "DatasetSpec",
    "FeatureRows",
    "FeatureSet",
    "FeatureSetSpec",
    "FeatureStore",
    "Identity",
    "IdentityMismatchError",
    "IncompleteError",
    "InvalidRow",
    "ManifestError",
    "QueryError",
    "Receipt",
    "RowQueries",
    "Selection",
    "SelectionError",
    "Shard",
    "ShardError",
    "StoreError",
    "StoreNotFoundError",
    "StoredDataset",
    "StoredObject",
    "TokenKind",
    "UnknownNameError",
    "annotations_digest",
    "create_feature_set",
    "create_store",
    "digest_of",
    "dropping",
    "finish_feature_set",
    "made_elsewhere",
    "manifest_table",
    "mask_digest",
    "missing_shards",
    "open_store",
    "read_dataset",
    "read_manifest",
    "read_selection",
    "register_dataset",
    "selection_names",
    "shards_of",
    "suggest_rows_per_shard",
    "view_id",
    "views_digest",
    "write_selection",
    "write_shard",
]
