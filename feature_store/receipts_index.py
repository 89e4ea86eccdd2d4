"""What all receipts of a finished feature set say, in one file, so that opening it reads one file and not thousands.

The index is written after the last receipt and dropped before any shard is written again, so it stands only beside a
whole feature set. Receipts stay the truth: an index that is absent, damaged or of another shape is passed over, where
a receipt or an object is missing or of another size receipts are read, and `contradiction` says where the two differ.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from feature_store.arrays import all_arrays, shard_objects
from feature_store.canonical import MAX_JSON_BYTES
from feature_store.errors import CorruptError, StoreNotFoundError
from feature_store.identity import FeatureSetSpec
from feature_store.layout import receipts_folder, receipts_index
from feature_store.objects import ObjectRoot
from feature_store.receipts import InvalidRow, Receipt, StoredObject
from feature_store.records import Fields, read_record, record_bytes
from feature_store.shards import shards_of

_REMEDY = "Remove it: the same `vitrine extract` writes it again from the receipts."
_CRC_DIGITS = 8


def write_index(root: ObjectRoot, folder: str, spec: FeatureSetSpec, receipts: Mapping[int, Receipt]) -> bool:
    """Write the index of a finished feature set, unless the right one stands there.

    Args:
        root: the store.
        folder: of the feature set.
        spec: its record.
        receipts: its valid receipts by shard index, read from the receipts themselves.

    Returns:
        Whether an index stands there now: not for a feature set that lacks shards, nor for one of so many shards or
        invalid rows that its index would be larger than any JSON that is read.
    """
    shards = shards_of(spec.n_rows, spec.rows_per_shard)
    if len(receipts) < len(shards):
        return False
    content = record_bytes(_record(folder, spec, [receipts[shard.index] for shard in shards]))
    if len(content) > MAX_JSON_BYTES:
        return False
    path = receipts_index(folder)
    try:
        if root.read(path, max_bytes=len(content) + 1) == content:
            return True
    except StoreNotFoundError:
        pass
    root.put(path, [content])
    return True


def drop_index(root: ObjectRoot, folder: str) -> None:
    """Remove the index, so that it stays removed; to be done before a shard, a receipt or an object is touched."""
    root.remove(receipts_index(folder))


def read_index(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt] | None:
    """The receipts by shard index as the index states them, or None where no sound index of this feature set is.

    The folder of receipts is listed, and not one of them read: where a name is missing, receipts decide and not the
    index.
    """
    receipts = stated_receipts(root, folder, spec)
    if receipts is None:
        return None
    names = set(root.list(receipts_folder(folder)))
    shards = shards_of(spec.n_rows, spec.rows_per_shard)
    return receipts if all(f"{shard.name}.json" in names for shard in shards) else None


def stated_receipts(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt] | None:
    """The receipts by shard index as a sound index states them, or None; whether they stand there is not asked."""
    try:
        return _parsed(root, folder, spec)
    except (StoreNotFoundError, CorruptError):
        return None


def contradiction(
    root: ObjectRoot, folder: str, spec: FeatureSetSpec, receipts: Mapping[int, Receipt]
) -> CorruptError | None:
    """What is wrong with the index that stands there, if one does, held against those receipts that are sound."""
    path = receipts_index(folder)
    try:
        stated = _parsed(root, folder, spec)
    except StoreNotFoundError:
        return None
    except CorruptError as error:
        return error
    differing = [index for index, receipt in receipts.items() if receipt != stated[index]]
    if not differing:
        return None
    return CorruptError(
        f"{path} says something else than {len(differing)} receipts, the first of shard {differing[0]}. {_REMEDY}"
    )


def _record(folder: str, spec: FeatureSetSpec, receipts: list[Receipt]) -> dict[str, Any]:
    checksums: dict[str, list[int]] = {array.removeprefix(f"{folder}/"): [] for array, _ in all_arrays(folder, spec)}
    for receipt in receipts:
        for of_array, stored in zip(checksums.values(), receipt.objects, strict=True):
            of_array.append(stored.crc32c)
    return {
        "feature_set": spec.identity.digest,
        "n_rows": spec.n_rows,
        "rows_per_shard": spec.rows_per_shard,
        # Eight hexadecimal digits a shard; names and sizes of objects follow from the feature set's record.
        "crc32c": {array: np.asarray(values, dtype=">u4").tobytes().hex() for array, values in checksums.items()},
        "invalid": [[entry.row, entry.reason] for receipt in receipts for entry in receipt.invalid],
    }


def _parsed(root: ObjectRoot, folder: str, spec: FeatureSetSpec) -> dict[int, Receipt]:
    path = receipts_index(folder)
    record = read_record(root, path)
    fields = Fields(record, name=path, remedy=_REMEDY)
    shape = (fields.text("feature_set"), fields.integer("n_rows"), fields.integer("rows_per_shard"))
    if shape != (spec.identity.digest, spec.n_rows, spec.rows_per_shard):
        raise fields.corrupt(f"it is of {shape[1]} rows in shards of {shape[2]} of the feature set {shape[0][:80]!r}")
    checksums = _checksums(fields, folder, spec)
    invalid = _invalid_by_shard(fields, record.get("invalid"), spec)
    receipts = {}
    for shard in shards_of(spec.n_rows, spec.rows_per_shard):
        objects = tuple(
            StoredObject(path=path.removeprefix(f"{folder}/"), size_bytes=size_bytes, crc32c=values[shard.index])
            for (path, size_bytes), values in zip(shard_objects(folder, spec, shard).items(), checksums, strict=True)
        )
        receipts[shard.index] = Receipt(
            feature_set=spec.identity.digest,
            shard=shard.index,
            start=shard.start,
            stop=shard.stop,
            objects=objects,
            invalid=tuple(invalid.get(shard.index, ())),
        )
    return receipts


def _checksums(fields: Fields, folder: str, spec: FeatureSetSpec) -> list[list[int]]:
    """By array in writing order, then by shard."""
    stored = Fields(fields.mapping("crc32c"), name=receipts_index(folder), remedy=_REMEDY)
    n_shards = len(shards_of(spec.n_rows, spec.rows_per_shard))
    found = []
    for array, _ in all_arrays(folder, spec):
        text = stored.text(array.removeprefix(f"{folder}/"))
        if len(text) != n_shards * _CRC_DIGITS:
            raise fields.corrupt(f"it has {len(text)} digits of checksums of {array}, not {n_shards * _CRC_DIGITS}")
        try:
            values: list[int] = np.frombuffer(bytes.fromhex(text), dtype=">u4").tolist()
        except ValueError as error:
            raise fields.corrupt(f"its checksums of {array} are not hexadecimal digits") from error
        if len(values) != n_shards:  # fromhex skips spaces
            raise fields.corrupt(f"its checksums of {array} are not hexadecimal digits")
        found.append(values)
    return found


def _invalid_by_shard(fields: Fields, entries: Any, spec: FeatureSetSpec) -> dict[int, list[InvalidRow]]:
    found: dict[int, list[InvalidRow]] = {}
    rows = []
    if not isinstance(entries, list):
        raise fields.corrupt("'invalid' is no list")
    for entry in entries:
        match entry:
            case [int(row), str(reason)] if 0 <= row < spec.n_rows and row is not True and row is not False:
                found.setdefault(row // spec.rows_per_shard, []).append(InvalidRow(row=row, reason=reason))
                rows.append(row)
            case _:
                raise fields.corrupt("'invalid' holds what is no row of it with a reason")
    if any(later <= earlier for earlier, later in pairwise(rows)):
        raise fields.corrupt("the rows of 'invalid' do not ascend")
    return found
