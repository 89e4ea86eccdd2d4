"""From vectors to a feature set: two passes over them, the first for the identity, the second shard by shard."""

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from feature_store import (
    FeatureSetSpec,
    Identity,
    InvalidRow,
    Shard,
    TokenKind,
    create_feature_set,
    create_store,
    digest_of,
    finish_feature_set,
    missing_shards,
    shards_of,
    suggest_rows_per_shard,
    write_shard,
)
from feature_store.arrays import row_bytes
from feature_store.datasets import stage_dataset
from feature_store.layout import feature_set_folder, feature_set_name, run_file
from feature_store.manifest import views_digest
from feature_store.objects import ObjectRoot, crc32c
from feature_store.records import write_record
from feature_store.runs import RUN_FILE, id_for_run
from feature_store.shards import ROWS_PER_CHUNK
from feature_store.space import free_bytes, require_free
from feature_store.storage import STORAGE_DTYPES
from feature_store.writer import check_feature_set, committed_receipts, enter_store, look_at_store
from pipelines.extract import NON_FINITE
from pipelines.imports.dataset import ImportedDataset
from pipelines.imports.source_arrays import ImportRefusedError, Positions, Values
from pipelines.imports.vectors import Vectors
from pipelines.stopping import stop_requested, stopping_on_signals

Progress = Callable[[str, int, int], None]
_FITS = ("squash", "crop")


@dataclass(frozen=True, kw_only=True)
class ImportStatement:
    """What a user says of vectors that nothing else can tell.

    Attributes:
        model: a name for what made them.
        layer: the block that they were read after, counted from 1.
        grid: (height, width) of the patches; None for a square.
        fit: `squash` where the patches cover the whole view, `crop` where only its centre.
        storage: `float16`, `float32`, or `auto`: float16 where the values are that already, else float32.
    """

    model: str
    layer: int = 1
    grid: tuple[int, int] | None = None
    fit: str = "squash"
    storage: str = "auto"

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ImportRefusedError("--model is empty; name what made the vectors, e.g. clip-vit-b32.")
        if self.fit not in _FITS:
            raise ImportRefusedError(f"--fit {self.fit!r}: choose {' or '.join(_FITS)}.")
        if self.storage not in {"auto", *STORAGE_DTYPES}:
            raise ImportRefusedError(f"--storage {self.storage!r}: choose auto, {' or '.join(STORAGE_DTYPES)}.")


@dataclass(frozen=True, kw_only=True)
class ImportOutcome:
    """What came of an import.

    Attributes:
        feature_set: its name, as `FeatureStore.features` takes it; empty where it was interrupted before it had one.
        rows: of the feature set.
        n_features: of each vector.
        committed: shards that this run committed.
        already: shards that stood before it.
        total: all shards.
        invalid: rows without tokens, by reason code.
        first_invalid: the uri of the first of them.
        stored_bytes: of all rows.
        interrupted: the number of the signal that ended it early, or None.
    """

    feature_set: str
    rows: int
    n_features: int
    committed: int = 0
    already: int = 0
    total: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    first_invalid: str | None = None
    stored_bytes: int = 0
    interrupted: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Digested:
    """The first pass: a digest of all that will be stored, a checksum a shard, and the rows without finite values."""

    sha256: str
    checksums: tuple[int, ...]
    invalid: Positions


def import_vectors(
    vectors: Vectors,
    imported: ImportedDataset,
    statement: ImportStatement,
    *,
    store: str,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ImportOutcome:
    """Store vectors as a feature set; run again after any end, it commits what is missing.

    Memory is bounded by a shard. Rows whose values are not finite in the storage dtype become invalid rows.

    Args:
        vectors: what a layout gave.
        imported: their manifest, see `imported_dataset`.
        statement: what the user says of them.
        store: its URL; made where there is none.
        dry_run: write nothing; the outcome says what there is to commit, and refusals are those of the import.
        progress: called with (what is done, rows done, rows in all).

    Raises:
        ImportRefusedError: patches that fill no grid, no row with finite values, or a source that changed meanwhile.
        StoreError: the store cannot be used, or its disk is too small.
    """
    draft = _draft(vectors, imported, statement)
    # Here, where Ctrl-C still ends a wait for whoever has the store alone.
    root = look_at_store(store) if dry_run else enter_store(store)
    with stopping_on_signals() as stop:
        digested = _digest(vectors, imported.positions, draft, progress)
        if digested is None:
            return ImportOutcome(
                feature_set="", rows=draft.n_rows, n_features=draft.n_features, interrupted=stop.number
            )
        if len(digested.invalid) == draft.n_rows:
            raise ImportRefusedError(
                f"no row of {vectors.arrays[vectors.kinds[0]].name} has values that are finite as "
                f"{draft.identity.storage_dtype}; look at what wrote them."
            )
        dataset = imported.dataset
        spec = _final(draft, views_digest(dataset.table), digested.sha256)
        staged = stage_dataset(dataset.spec, dataset.table, dataset.iter_masks())
        # Before anything is written: a refused import makes no store, and does not put its annotations in force.
        already = _require_room(root, dataset.spec.name, spec)
        if dry_run:
            return _outcome(_Work(root, vectors, imported, spec, digested), committed=0, already=already)
        root = create_store(store)
        check_feature_set(root, dataset.spec.name, spec)
        staged.register(root)
        work = _Work(root, vectors, imported, spec, digested)
        outcome = _commit(work, progress)
    return replace(outcome, interrupted=stop.number if outcome.committed + outcome.already < outcome.total else None)


def _draft(vectors: Vectors, imported: ImportedDataset, statement: ImportStatement) -> FeatureSetSpec:
    """The record but for the two digests."""
    dtypes = {array.dtype.name for array in vectors.arrays.values()}
    storage = statement.storage
    if storage == "auto":
        storage = "float16" if dtypes == {"float16"} else "float32"
    identity = Identity(
        views_digest="0" * 64,
        # No checkpoint is at hand. Sets of one stated model share this, and with it their selections.
        weights_sha256=digest_of({"imported": statement.model}),
        # The layout is no part of it: the same vectors by another door are the same feature set.
        architecture={"imported": statement.model},
        preprocessing={"fit": statement.fit, "stated_by": "the user"},
        layers=(statement.layer,),
        token_kinds=vectors.kinds,
        storage_dtype=storage,
        compute_dtype="float16" if dtypes == {"float16"} else "float32",
    )
    spec = FeatureSetSpec(
        identity=identity,
        model=statement.model,
        title=f"imported: {statement.model}",
        n_rows=len(imported.positions),
        rows_per_shard=ROWS_PER_CHUNK,
        grid=vectors.grid(statement.grid),
        n_features=vectors.n_features,
        n_registers=vectors.n_registers,
        batch_size=1,
        attention_kernel="unknown",
    )
    return replace(spec, rows_per_shard=suggest_rows_per_shard(spec.n_rows, row_bytes(spec)))


def _final(draft: FeatureSetSpec, views_digest: str, vectors_sha256: str) -> FeatureSetSpec:
    architecture = {**draft.identity.architecture, "vectors_sha256": vectors_sha256}
    return replace(draft, identity=replace(draft.identity, views_digest=views_digest, architecture=architecture))


def _read(vectors: Vectors, positions: Positions, dtype: str) -> tuple[dict[TokenKind, Values], Values]:
    """The values of some rows in the storage dtype, rows that are not finite set to zero; and which rows are finite."""
    values: dict[TokenKind, Values] = {}
    finite = np.ones(len(positions), dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for kind in vectors.kinds:
            values[kind] = np.ascontiguousarray(vectors.arrays[kind].take(positions).astype(dtype, copy=False))
            finite &= np.isfinite(values[kind]).reshape(len(positions), -1).all(axis=1)
    for kind, rows in values.items():
        if not finite.all():
            values[kind] = np.where(finite.reshape(-1, *[1] * (rows.ndim - 1)), rows, rows.dtype.type(0))
    return values, finite


def _digest(
    vectors: Vectors, positions: Positions, spec: FeatureSetSpec, progress: Progress | None
) -> _Digested | None:
    """The first pass, in row order, so that neither order nor layout of the source counts; None when stopped."""
    digests = {kind: hashlib.sha256() for kind in vectors.kinds}
    valid = hashlib.sha256()
    checksums, invalid = [], []
    for shard in shards_of(spec.n_rows, spec.rows_per_shard):
        if stop_requested.is_set():
            return None
        values, finite = _read(vectors, positions[shard.start : shard.stop], spec.identity.storage_dtype)
        for kind, rows in values.items():
            digests[kind].update(rows.astype(rows.dtype.newbyteorder("<"), copy=False).data)
        valid.update(finite.tobytes())
        checksums.append(_checksum(values, finite))
        invalid.append(shard.start + np.flatnonzero(~finite))
        if progress is not None:
            progress("reading", shard.stop, spec.n_rows)
    whole = {**{str(kind): digest.hexdigest() for kind, digest in digests.items()}, "valid": valid.hexdigest()}
    return _Digested(sha256=digest_of(whole), checksums=tuple(checksums), invalid=np.concatenate(invalid))


def _checksum(values: Mapping[TokenKind, Values], finite: Values) -> int:
    return crc32c([*(rows.reshape(-1).view(np.uint8).data for rows in values.values()), finite.view(np.uint8).data])


@dataclass(frozen=True)
class _Work:
    """What the second pass needs."""

    root: ObjectRoot
    vectors: Vectors
    imported: ImportedDataset
    spec: FeatureSetSpec
    digested: _Digested


def _commit(work: _Work, progress: Progress | None) -> ImportOutcome:
    root, spec = work.root, work.spec
    shards = shards_of(spec.n_rows, spec.rows_per_shard)
    name = work.imported.dataset.spec.name
    folder = create_feature_set(root, name, spec)
    root.sweep_partials(folder)
    receipts = committed_receipts(root, folder, spec)
    missing = missing_shards(shards, receipts)
    record = _run_record(folder, spec, work.vectors.layout, len(missing))
    run_id = id_for_run(record)
    if missing:
        write_record(root, run_file(run_id, RUN_FILE), record)
    committed = 0
    for shard in missing:
        if stop_requested.is_set():
            break
        _commit_shard(work, folder, shard)
        committed += 1
        if progress is not None:
            progress("writing", shard.stop, spec.n_rows)
    finish_feature_set(root, folder, spec)
    outcome = _outcome(work, committed=committed, already=len(receipts))
    if missing:
        finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "outcome": outcome.to_json()}
        write_record(root, run_file(run_id, RUN_FILE), {**record, **finished})
    return outcome


def _outcome(work: _Work, *, committed: int, already: int) -> ImportOutcome:
    spec, invalid, dataset = work.spec, work.digested.invalid, work.imported.dataset
    return ImportOutcome(
        feature_set=feature_set_name(feature_set_folder(dataset.spec.name, spec)),
        rows=spec.n_rows,
        n_features=spec.n_features,
        committed=committed,
        already=already,
        total=len(shards_of(spec.n_rows, spec.rows_per_shard)),
        invalid={NON_FINITE: len(invalid)} if len(invalid) else {},
        first_invalid=dataset.table["uri"][int(invalid[0])].as_py() if len(invalid) else None,
        stored_bytes=spec.n_rows * row_bytes(spec),
    )


def _commit_shard(work: _Work, folder: str, shard: Shard) -> None:
    spec = work.spec
    positions = work.imported.positions[shard.start : shard.stop]
    values, finite = _read(work.vectors, positions, spec.identity.storage_dtype)
    if _checksum(values, finite) != work.digested.checksums[shard.index]:
        raise ImportRefusedError(
            f"{work.vectors.arrays[work.vectors.kinds[0]].name} changed while it was imported; what is committed "
            f"belongs to the old content. Remove {folder}, and import again."
        )
    layer = spec.identity.layers[0]
    invalid = [InvalidRow(row=shard.start + place, reason=NON_FINITE) for place in np.flatnonzero(~finite).tolist()]
    write_shard(work.root, folder, spec, shard, {(layer, kind): rows for kind, rows in values.items()}, invalid)


def _require_room(root: ObjectRoot, dataset: str, spec: FeatureSetSpec) -> int:
    """Refuse a feature set that does not fit what stands in its place, or whose shards the disk cannot take.

    Returns:
        How many shards stand.
    """
    folder = check_feature_set(root, dataset, spec)
    receipts = committed_receipts(root, folder, spec)
    missing = missing_shards(shards_of(spec.n_rows, spec.rows_per_shard), receipts)
    if missing:
        needed_bytes = sum(shard.n_rows for shard in missing) * row_bytes(spec)
        way_out = "free some space, or choose another --store"
        require_free(free_bytes(root), needed_bytes, url=root.url, way_out=way_out)
    return len(receipts)


def _run_record(folder: str, spec: FeatureSetSpec, layout: str, n_missing: int) -> dict[str, Any]:
    return {
        "feature_set": folder,
        "digest": spec.identity.digest,
        "environment": {"numpy": np.__version__, "python": platform.python_version()},
        "engine": "import",
        "layout": layout,
        "shards": n_missing,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
