"""Making a feature set, and committing its shards: whole shards only, safe to repeat, safe to kill.

The order of a commit is its whole proof. Every object of a shard is written and synced; then the receipt is. A shard
with a receipt is therefore on the disk, and one without is computed again, whatever its objects look like. Every
object's content is a function of its name, so two writers of one shard do no harm, and no lock is needed.
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from feature_store import layout
from feature_store.arrays import all_arrays, shard_objects, token_names
from feature_store.canonical import pretty_json
from feature_store.compression import parameter_metadata_files
from feature_store.durable_files import PARTIAL_SUFFIX
from feature_store.errors import CorruptError, ShardError, StoreError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec, TokenKind, require_same
from feature_store.objects import ObjectRoot, crc32c
from feature_store.receipts import InvalidRow, Receipt, StoredObject
from feature_store.receipts_index import drop_index, stated_receipts, write_index
from feature_store.records import Fields, parse_record, read_record, record_bytes, write_record
from feature_store.roots import open_root
from feature_store.shard_format import encode_shard
from feature_store.shards import Shard, shards_of
from feature_store.zarr_metadata import GROUP_METADATA

STORE_RECORD: Mapping[str, Any] = {"schema": layout.SCHEMA_NUMBER, "written_by": "vitrine"}
Tokens: TypeAlias = Mapping[tuple[int, TokenKind], Shaped[np.ndarray, "rows ..."]]
# Stands in the root of every fresh ext4 volume.
_VOLUME_FOLDER = "lost+found"
# Objects of one shard that are written at a time.
_WRITERS = 4


def create_store(url: str) -> ObjectRoot:
    """Open the store at `url` for writing, and make it where there is none.

    Raises:
        StoreError: the place holds something that is not a store of this schema, or cannot be written.
    """
    root = open_root(url)
    try:
        if not root.exists(layout.STORE_FILE):
            _require_free(root)
            root.put_new(layout.STORE_FILE, record_bytes(STORE_RECORD))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise StoreError(
            f"no store can be made at {root.url} ({error.strerror or error}); choose a folder that you may write."
        ) from error
    check_store(root)
    root.join_writers(layout.STORE_FILE)
    # What killed runs left; a feature set's own folder is swept by the run that goes on with it.
    root.sweep_partials("", recursive=False)
    for folder in (layout.DATASETS, layout.SELECTIONS, layout.RESULTS, layout.RUNS):
        root.sweep_partials(folder)
    return root


def look_at_store(url: str) -> ObjectRoot:
    """The place of a store, or of one to be made: refuses what `create_store` would refuse, and writes nothing.

    Raises:
        StoreError: the place holds something that is not a store of this schema.
    """
    root = open_root(url)
    if root.exists(layout.STORE_FILE):
        check_store(root)
    else:
        _require_free(root)
    return root


def enter_store(url: str) -> ObjectRoot:
    """As `look_at_store`; what stands in a store is not removed while the root is in use, and nothing is written.

    Waits while another process of this machine has the store alone, and says for whom.
    """
    root = look_at_store(url)
    if root.exists(layout.STORE_FILE):
        root.join_writers(layout.STORE_FILE)
    return root


def _require_free(root: ObjectRoot) -> None:
    if _is_file(root):
        raise StoreError(f"{root.url} is a file, and a store is a folder; choose another --store.")
    others = [name for name in root.list("") if name != _VOLUME_FOLDER and not name.endswith(PARTIAL_SUFFIX)]
    # Looked up again: what stands there may be a store that another run has made in between, whose first file this is.
    if others and not root.exists(layout.STORE_FILE):
        raise StoreError(
            f"{root.url} holds {others[0]!r} and no {layout.STORE_FILE}, so it is not a store; choose a new or an "
            "empty folder."
        )


def _is_file(root: ObjectRoot) -> bool:
    local = root.local_path("")
    return local is not None and local.exists() and not local.is_dir()


def no_store(root: ObjectRoot, why: str = "") -> StoreNotFoundError:
    """The error that says that no store stands there, and how to come by one.

    Args:
        root: the place.
        why: what is missing, or empty.
    """
    if _is_file(root):
        return StoreNotFoundError(f"{root.url} is a file, and a store is a folder; name the folder of a store.")
    lacking = f": {why}. " if why else "; "
    return StoreNotFoundError(f"no store at {root.url}{lacking}`vitrine extract ... --store {root.url}` makes one.")


def check_store(root: ObjectRoot) -> None:
    """Refuse a place that is not a store of this schema.

    Raises:
        StoreNotFoundError: no store.
        CorruptError: a store of another schema.
    """
    try:
        record = read_record(root, layout.STORE_FILE)
    except StoreNotFoundError as error:
        raise no_store(root, f"it has no {layout.STORE_FILE}") from error
    remedy = f"It is no store of Vitrine's; restore {layout.STORE_FILE} in {root.url} from a copy."
    schema = Fields(record, name=layout.STORE_FILE, remedy=remedy).integer("schema")
    if schema != layout.SCHEMA_NUMBER:
        raise CorruptError(
            f"{root.url} has store schema {schema}, and this Vitrine reads {layout.SCHEMA_NUMBER}. "
            "Use the Vitrine that wrote it, or extract anew."
        )


def create_feature_set(root: ObjectRoot, dataset: str, spec: FeatureSetSpec) -> str:
    """Make a feature set, or join the one that stands there.

    `feature_set.json` is created exclusively; whoever comes second reads it and compares.

    Returns:
        The feature set's folder.

    Raises:
        IdentityMismatchError: another identity or shape stands at the place, with every differing value.
        CorruptError: `spec` itself, or the record that stands there, is not one that could be read again.
    """
    folder = check_feature_set(root, dataset, spec)
    if not root.put_new(f"{folder}/{layout.FEATURE_SET_FILE}", record_bytes(spec.to_json())):
        require_same(read_spec(root, folder), spec)
    root.remove(f"{folder}/{layout.REMOVED_FILE}")  # whoever began a removal is overruled
    _write_array_metadata(root, folder, spec)
    return folder


def check_feature_set(root: ObjectRoot, dataset: str, spec: FeatureSetSpec) -> str:
    """Refuse what `create_feature_set` would, and write nothing.

    Returns:
        The feature set's folder.

    Raises:
        IdentityMismatchError, CorruptError: as for `create_feature_set`.
    """
    FeatureSetSpec.from_json(parse_record(record_bytes(spec.to_json()), name="the new feature set"))
    folder = layout.feature_set_folder(dataset, spec)
    with contextlib.suppress(StoreNotFoundError):
        require_same(read_spec(root, folder), spec)
    return folder


def _write_array_metadata(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> None:
    """Idempotent: a run killed before this was done is helped by the next, and a damaged file is made good."""

    def make_good(file: tuple[str, bytes]) -> None:
        path, content = file
        if not _says(root, path, content):
            root.put(path, [content])

    root.side_by_side(make_good, list(zarr_metadata_files(folder, spec).items()))


def zarr_metadata_files(folder: str, spec: FeatureSetSpec) -> dict[str, bytes]:
    """Every `zarr.json` of a feature set, by path; what it says follows from the record alone."""
    groups = [layout.tokens_group(folder)]
    groups += [f"{groups[0]}/layer_{layer}" for layer in spec.identity.layers]
    contents = {f"{group}/zarr.json": pretty_json(dict(GROUP_METADATA)) for group in groups}
    for array, array_layout in all_arrays(folder, spec):
        contents[f"{array}/zarr.json"] = pretty_json(array_layout.metadata())
    return contents | parameter_metadata_files(folder, spec)


def _says(root: ObjectRoot, path: str, content: bytes) -> bool:
    try:
        return root.read(path, max_bytes=len(content) + 1) == content
    except StoreNotFoundError:
        return False


def read_spec(root: ObjectRoot, folder: str) -> FeatureSetSpec:
    """The record of the feature set at `folder`.

    Raises:
        StoreNotFoundError: none there.
        CorruptError: not a record, or changed after it was written.
    """
    path = f"{folder}/{layout.FEATURE_SET_FILE}"
    return FeatureSetSpec.from_json(read_record(root, path), name=path)


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
        ShardError: rows that cut through a shard, a missing or surplus array, an array of the wrong shape, or an
            invalid row that lies outside the shard or has tokens.
        OSError: the disk is full or failing; the shard is not committed.
    """
    _check_shard(spec, shard, tokens, invalid)
    valid = np.ones(shard.n_rows, dtype=bool)
    valid[[entry.row - shard.start for entry in invalid]] = False
    arrays = [*(tokens[name] for name in token_names(spec)), valid]
    encoded = {
        layout.shard_object(array, shard, 1 + len(array_layout.row_shape)): encode_shard(array_layout, rows)
        for (array, array_layout), rows in zip(all_arrays(folder, spec), arrays, strict=True)
    }
    # The index speaks of finished feature sets alone, and this one now changes.
    drop_index(root, folder)
    # All at once, and checksums meanwhile: most of a commit is waiting for the disk. The receipt waits for every one.
    with ThreadPoolExecutor(_WRITERS) as pool:
        puts = [pool.submit(root.put, path, parts) for path, parts in encoded.items()]
        objects = tuple(
            StoredObject(
                path=path.removeprefix(f"{folder}/"),
                size_bytes=sum(memoryview(part).nbytes for part in parts),
                crc32c=crc32c(parts),
            )
            for path, parts in encoded.items()
        )
    for put in puts:
        put.result()
    return commit_shard(root, folder, spec, shard, objects, invalid)


def commit_shard(
    root: ObjectRoot,
    folder: str,
    spec: FeatureSetSpec,
    shard: Shard,
    objects: Sequence[StoredObject],
    invalid: Sequence[InvalidRow],
) -> Receipt:
    """Write the receipt of a shard, which commits it: every object must stand there, synced, before this is called."""
    receipt = Receipt(
        feature_set=spec.identity.digest,
        shard=shard.index,
        start=shard.start,
        stop=shard.stop,
        objects=tuple(objects),
        invalid=tuple(invalid),
    )
    write_record(root, layout.receipt(folder, shard), receipt.to_json())
    return receipt


def _check_shard(spec: FeatureSetSpec, shard: Shard, tokens: Tokens, invalid: Sequence[InvalidRow]) -> None:
    if shard not in shards_of(spec.n_rows, spec.rows_per_shard)[shard.index : shard.index + 1]:
        raise ShardError(
            f"rows {shard.start}:{shard.stop} are not shard {shard.index} of {spec.n_rows} rows cut every "
            f"{spec.rows_per_shard}; two workers could overwrite each other. Write whole shards: see shards_of()."
        )
    if set(tokens) != set(token_names(spec)):
        raise ShardError(f"arrays {sorted(tokens)} given, {sorted(token_names(spec))} declared; write all of them.")
    for (layer, kind), rows in tokens.items():
        if len(rows) != shard.n_rows:
            raise ShardError(
                f"{len(rows)} rows of {kind} of layer {layer} for shard {shard.index}, which has {shard.n_rows}; write "
                "the whole shard."
            )
    places = [entry.row - shard.start for entry in invalid]
    if places != sorted(set(places)) or (places and not 0 <= places[0] <= places[-1] < shard.n_rows):
        raise ShardError(
            f"invalid rows {[entry.row for entry in invalid][:10]} of shard {shard.index}: name rows of "
            f"{shard.start}..{shard.stop - 1}, each once, ascending."
        )
    for (layer, kind), rows in tokens.items():
        if places and rows[places].any():
            raise ShardError(
                f"invalid rows of shard {shard.index} have {kind} of layer {layer} that are not zero; what a row "
                "without tokens holds must not depend on chance. Set them to zero."
            )


def committed_receipts(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt]:
    """The valid receipts of a feature set by shard index.

    A receipt counts when it can be read, is of its shard's rows, and its objects stand there in the sizes it states.
    Anything else is left out, so that the shard is computed again. Sizes come out of one listing for each array. Of a
    finished feature set the index says what the receipts say; a receipt is read all the same where it has not the size
    of what the index says of it.
    """
    sizes = _stored_sizes(root, folder, spec)
    standing = _standing(sizes, folder, spec)
    whole = len(standing) == len(shards_of(spec.n_rows, spec.rows_per_shard))
    found = (stated_receipts(root, folder, spec) if whole else None) or {}
    found = {
        index: receipt
        for index, receipt in found.items()
        if sizes[layout.receipt(folder, standing[index])] == len(record_bytes(receipt.to_json()))
    }
    unread = [shard for shard in standing.values() if shard.index not in found]
    receipts = root.side_by_side(lambda shard: _read_receipt(root, folder, spec, shard), unread)
    found |= {receipt.shard: receipt for receipt in receipts if receipt is not None}
    return dict(sorted(found.items()))


def standing_shards(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> tuple[Shard, ...]:
    """The shards that have a receipt, and objects in the sizes that the feature set declares, by listings alone.

    No receipt is read, so one that was changed counts here, and does not in `committed_receipts`.
    """
    return tuple(_standing(_stored_sizes(root, folder, spec), folder, spec).values())


def _stored_sizes(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[str, int]:
    return root.sizes([layout.receipts_folder(folder), *(array for array, _ in all_arrays(folder, spec))])


def _standing(sizes: Mapping[str, int], folder: str, spec: FeatureSetSpec) -> dict[int, Shard]:
    """See `standing_shards`; by shard index, ascending."""
    return {
        shard.index: shard
        for shard in shards_of(spec.n_rows, spec.rows_per_shard)
        if layout.receipt(folder, shard) in sizes
        and all(sizes.get(path) == size_bytes for path, size_bytes in shard_objects(folder, spec, shard).items())
    }


def _read_receipt(root: ObjectRoot, folder: str, spec: FeatureSetSpec, shard: Shard) -> Receipt | None:
    """The receipt of a shard, where it can be read and states that shard."""
    path = layout.receipt(folder, shard)
    try:
        receipt = Receipt.from_json(read_record(root, path), name=path)
    except (CorruptError, StoreNotFoundError):
        return None
    return receipt if states_shard(receipt, folder, spec, shard) else None


def states_shard(receipt: Receipt, folder: str, spec: FeatureSetSpec, shard: Shard) -> bool:
    """Whether a receipt is of this feature set and shard, and names all of its objects in their sizes."""
    if (receipt.feature_set, receipt.shard) != (spec.identity.digest, shard.index):
        return False
    stated = {f"{folder}/{stored.path}": stored.size_bytes for stored in receipt.objects}
    expected = shard_objects(folder, spec, shard)
    return (receipt.start, receipt.stop) == (shard.start, shard.stop) and list(stated.items()) == list(expected.items())


def finish_feature_set(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt]:
    """To be called after the last shard that somebody writes: where no shard is missing, write the receipts' index.

    Returns:
        The valid receipts by shard index.
    """
    receipts = committed_receipts(root, folder, spec)
    write_index(root, folder, spec, receipts)
    return receipts
