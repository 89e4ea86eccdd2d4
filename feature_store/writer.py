"""Making a feature set, and committing its shards: whole shards only, safe to repeat, safe to kill.

The order of a commit is its whole proof. Every object of a shard is written and synced; then the receipt is. A shard
with a receipt is therefore on the disk, and one without is computed again, whatever its objects look like. Every
object's content is a function of its name, so two writers of one shard do no harm, and no lock is needed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from feature_store import layout
from feature_store.arrays import all_arrays, token_names
from feature_store.canonical import parse_json, pretty_json
from feature_store.errors import CorruptError, ShardError, StoreError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec, TokenKind, require_same
from feature_store.objects import ObjectRoot, crc32c, open_root
from feature_store.receipts import InvalidRow, Receipt, StoredObject
from feature_store.shard_format import GROUP_METADATA, encode_shard
from feature_store.shards import Shard, shards_of

Tokens = Mapping[tuple[int, TokenKind], np.ndarray]


def create_store(url: str) -> ObjectRoot:
    """Open the store at `url` for writing, and make it where there is none.

    Raises:
        StoreError: the place holds something that is not a store of this schema.
    """
    root = open_root(url)
    local = root.local_path("")
    if local is not None and local.exists() and not local.is_dir():
        raise StoreError(f"{root.url} is a file, and a store is a folder; choose another --store.")
    content = pretty_json({"schema": layout.SCHEMA_NUMBER, "written_by": "vitrine"})
    if not root.exists(layout.STORE_FILE):
        if root.list(""):
            raise StoreError(
                f"{root.url} holds other files and no {layout.STORE_FILE}; it is not a store. Choose a new or empty folder."
            )
        root.put_new(layout.STORE_FILE, content)
    check_store(root)
    return root


def check_store(root: ObjectRoot) -> None:
    """Refuse a place that is not a store of this schema.

    Raises:
        StoreNotFoundError: no store.
        CorruptError: a store of another schema.
    """
    try:
        data = root.read(layout.STORE_FILE)
    except StoreNotFoundError as error:
        raise StoreNotFoundError(
            f"no store at {root.url}: it has no {layout.STORE_FILE}. `vitrine extract ... --store {root.url}` makes one."
        ) from error
    schema = parse_json(data, name=f"{root.url}/{layout.STORE_FILE}").get("schema")
    if schema != layout.SCHEMA_NUMBER:
        raise CorruptError(
            f"{root.url} has store schema {schema!r}, and this Vitrine reads {layout.SCHEMA_NUMBER}. "
            "Use the Vitrine that wrote it, or extract anew."
        )


def create_feature_set(root: ObjectRoot, dataset: str, spec: FeatureSetSpec) -> str:
    """Make a feature set, or join the one that stands there.

    `feature_set.json` is created exclusively; whoever comes second reads it and compares.

    Returns:
        The feature set's folder.

    Raises:
        IdentityMismatchError: another identity or shape stands at the place, with every differing value.
    """
    folder = layout.feature_set_folder(dataset, spec)
    path = f"{folder}/feature_set.json"
    if not root.put_new(path, pretty_json(spec.to_json())):
        require_same(read_spec(root, folder), spec)
    _write_array_metadata(root, folder, spec)
    return folder


def _write_array_metadata(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> None:
    """Idempotent: a run killed before this was done is helped by the next."""
    groups = [layout.tokens_group(folder)]
    groups += [f"{groups[0]}/layer_{layer}" for layer in spec.identity.layers]
    contents = {f"{group}/zarr.json": pretty_json(dict(GROUP_METADATA)) for group in groups}
    for array, array_layout in all_arrays(folder, spec):
        contents[f"{array}/zarr.json"] = pretty_json(array_layout.metadata())
    for path, content in contents.items():
        if root.size_bytes(path) != len(content):
            root.put(path, [content])


def read_spec(root: ObjectRoot, folder: str) -> FeatureSetSpec:
    """The record of the feature set at `folder`.

    Raises:
        StoreNotFoundError: none there.
        CorruptError: not a record, or changed after it was written.
    """
    path = f"{folder}/feature_set.json"
    return FeatureSetSpec.from_json(parse_json(root.read(path), name=path), name=path)


def write_shard(
    root: ObjectRoot,
    folder: str,
    spec: FeatureSetSpec,
    shard: Shard,
    tokens: Tokens,
    invalid: Sequence[InvalidRow] = (),
) -> Receipt:
    """Commit one whole shard: its objects, then its receipt.

    Args:
        root: the store.
        folder: of the feature set.
        spec: its record.
        shard: which rows.
        tokens: one array a (layer, token kind), [shard rows, *row shape], of the storage dtype; zero in invalid rows.
        invalid: rows without tokens, with their reasons.

    Raises:
        ShardError: rows that cut through a shard, a missing or surplus array, or an array of the wrong shape.
        OSError: the disk is full or failing; the shard is not committed.
    """
    if shard not in shards_of(spec.n_rows, spec.rows_per_shard)[shard.index : shard.index + 1]:
        raise ShardError(
            f"rows {shard.start}:{shard.stop} are not shard {shard.index} of {spec.n_rows} rows cut every "
            f"{spec.rows_per_shard}; two workers could overwrite each other. Write whole shards: see shards_of()."
        )
    if set(tokens) != set(token_names(spec)):
        raise ShardError(f"arrays {sorted(tokens)} given, {sorted(token_names(spec))} declared; write all of them.")
    valid = np.ones(shard.n_rows, dtype=bool)
    valid[[entry.row - shard.start for entry in invalid]] = False
    arrays = [*(tokens[name] for name in token_names(spec)), valid]
    objects = []
    for (array, array_layout), rows in zip(all_arrays(folder, spec), arrays, strict=True):
        if len(rows) != shard.n_rows:
            raise ShardError(f"{len(rows)} rows for shard {shard.index} of {shard.n_rows}; write the whole shard.")
        parts = encode_shard(array_layout, rows)
        path = layout.shard_object(array, shard, 1 + len(array_layout.row_shape))
        root.put(path, parts)
        objects.append(
            StoredObject(
                path=path.removeprefix(f"{folder}/"),
                size_bytes=sum(memoryview(part).nbytes for part in parts),
                crc32c=crc32c(parts),
            )
        )
    receipt = Receipt(
        shard=shard.index, start=shard.start, stop=shard.stop, objects=tuple(objects), invalid=tuple(invalid)
    )
    root.put(layout.receipt(folder, shard), [pretty_json(receipt.to_json())])
    return receipt


def committed_receipts(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt]:
    """The valid receipts of a feature set by shard index.

    A receipt counts when it can be read, is of its shard's rows, and its objects stand there in the sizes it states.
    Anything else is left out, so that the shard is computed again.
    """
    found = {}
    names = set(root.list(layout.receipts_folder(folder)))
    for shard in shards_of(spec.n_rows, spec.rows_per_shard):
        if f"{shard.name}.json" not in names:
            continue
        path = layout.receipt(folder, shard)
        try:
            receipt = Receipt.from_json(parse_json(root.read(path), name=path), name=path)
        except (CorruptError, StoreNotFoundError):
            continue
        if _holds(root, folder, spec, shard, receipt):
            found[shard.index] = receipt
    return found


def _holds(root: ObjectRoot, folder: str, spec: FeatureSetSpec, shard: Shard, receipt: Receipt) -> bool:
    if (receipt.shard, receipt.start, receipt.stop) != (shard.index, shard.start, shard.stop):
        return False
    expected = {
        layout.shard_object(array, shard, 1 + len(array_layout.row_shape)).removeprefix(f"{folder}/"): (
            array_layout.shard_bytes(shard.n_rows)
        )
        for array, array_layout in all_arrays(folder, spec)
    }
    stated = {stored.path: stored.size_bytes for stored in receipt.objects}
    return stated == expected and all(root.size_bytes(f"{folder}/{path}") == size for path, size in expected.items())
