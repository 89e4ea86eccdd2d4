"""One extraction from beginning to end: plan, cost, the missing shards through an engine, and what came of it."""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_store import (
    FeatureSet,
    Receipt,
    Shard,
    create_feature_set,
    create_store,
    finish_feature_set,
    read_dataset,
)
from feature_store.datasets import StagedDataset, describe_dataset, stage_dataset
from feature_store.errors import StoreError
from feature_store.identity import FeatureSetSpec, Identity, require_same
from feature_store.layout import (
    FEATURE_SET_FILE,
    FEATURES,
    feature_set_folder,
    feature_set_name,
    receipts_folder,
    run_file,
)
from feature_store.objects import ObjectRoot
from feature_store.receipts_index import write_index
from feature_store.records import write_record
from feature_store.runs import PLAN_FILE, RUN_FILE, RunHistory, id_for_run
from feature_store.shards import missing_shards, shards_of
from feature_store.store import FeatureStore
from feature_store.writer import check_feature_set, committed_receipts, enter_store, look_at_store, read_spec
from pipelines.backbones import BackboneRequest
from pipelines.backbones.description import DescribedModel
from pipelines.backbones.remembered import describe_request
from pipelines.backbones.weight_files import file_sha256
from pipelines.datasets import Dataset, Finding, classes_without_pixels
from pipelines.devices import devices_for
from pipelines.environment import current_environment, require_same_environment
from pipelines.failures import ShardFailure
from pipelines.growing import Grown, fresh_spec, grow_dataset, with_growth
from pipelines.meter import STAGES, read_counts, read_shard_times
from pipelines.plan import (
    ExtractionPlan,
    ExtractionSettings,
    PlanError,
    feature_set_spec,
    require_possible,
    view_columns,
    with_stored_shape,
)
from pipelines.reuse import Reuse, Source, find_sources
from pipelines.stopping import stopping_on_signals

if TYPE_CHECKING:
    from pipelines.backbones import Backbone


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        feature_set: its name, as `FeatureStore.features` takes it.
        rows: of the feature set.
        reused: rows that this run copied from other feature sets.
        committed: shards that this run committed.
        already: shards that stood before it.
        total: all shards.
        invalid: rows without tokens, by reason code.
        failures: shards that kept failing.
        seconds: wall time of the engine.
        start_seconds: from the start of the engine to the first row.
        split: seconds by stage, summed over workers and threads.
        interrupted: the number of the signal that ended it before every shard was committed, or None.
    """

    feature_set: str
    rows: int
    reused: int
    committed: int
    already: int
    total: int
    invalid: dict[str, int] = field(default_factory=dict)
    failures: tuple[ShardFailure, ...] = ()
    seconds: float = 0.0
    start_seconds: float = 0.0
    split: dict[str, float] = field(default_factory=dict)
    interrupted: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A planned extraction: what `run_extraction` takes.

    Attributes:
        root: the store.
        plan: for the workers.
        dataset: the dataset's name.
        name: of the feature set.
        missing: shards to compute.
        receipts: of the shards that stand, by index.
        staged: the dataset, to be registered before anything is computed; None where it stands in the store already.
        done_as: the name of a complete feature set that holds everything asked for, or None.
        computed, removed, linked: of each missing shard, how many rows no source gives, how many are only the places of
            views that are gone, and how many need not be written; see `reuse.Reuse`.
        grown: how the dataset came to the order of its rows.
        manifest: of the dataset, its columns that decide pixels.
        sources: feature sets that have rows of the missing shards.
        findings: what the dataset's adapter noticed, and the classes that no pixel has.
        mask_values: what the values in its mask files mean, or None where it has no masks.
    """

    root: ObjectRoot
    plan: ExtractionPlan
    dataset: str
    name: str
    missing: tuple[Shard, ...]
    computed: tuple[int, ...]
    manifest: pa.Table
    receipts: Mapping[int, Receipt]
    staged: StagedDataset | None
    done_as: str | None
    sources: tuple[Source, ...] = ()
    removed: tuple[int, ...] = ()
    linked: tuple[int, ...] = ()
    grown: Grown | None = None
    findings: tuple[Finding, ...] = ()
    mask_values: Mapping[str, Any] | None = None

    @property
    def already(self) -> int:
        """How many shards stand."""
        return len(self.receipts)

    @property
    def backbone(self) -> "Backbone":
        """The backbone, loaded in this process when it is first asked for."""
        from pipelines.extract import planned_backbone

        return planned_backbone(self.plan)


Engine = Callable[[ExtractionPlan, Sequence[Shard], Path, int], list[ShardFailure]]


def prepare_extraction(
    dataset: Dataset,
    model: BackboneRequest | DescribedModel,
    settings: ExtractionSettings,
    *,
    store: str,
    workers: int = 1,
    allow_mixed_environment: bool = False,
    dry_run: bool = False,
) -> Prepared:
    """Make the plan of an extraction; nothing is written, so that an extraction that is refused changes nothing.

    The model's weights are not loaded: what is done already, or can be copied whole, needs none. The plan of a dry run
    is for `estimate_cost` alone. A model that is described already needs no torch either, unless the store holds what
    was made in an environment that has to be compared with this one.

    Raises:
        PlanError: a layer or token kind that the model lacks.
        BackboneError: weights that do not fit.
        StoreError: the store cannot be used, or the feature set was begun in another environment.
    """
    described = model if isinstance(model, DescribedModel) else describe_request(model)
    request, backbone, kernel = described.request, described.backbone, described.attention_kernel
    require_possible(backbone, settings)
    root = look_at_store(store) if dry_run else enter_store(store)
    grown = grow_dataset(root, dataset, fresh_spec(dataset, backbone, settings, kernel), settings)
    dataset = grown.dataset
    seen: set[int] = set()
    content = dataset.spec, dataset.table, dataset.iter_masks(seen)
    staged = None if dry_run else stage_dataset(*content)
    stored = describe_dataset(*content) if staged is None else staged.described
    spec = feature_set_spec(stored, backbone, settings, attention_kernel=kernel, max_pixels=dataset.rules.max_pixels)
    spec = with_growth(spec, grown)
    folder = feature_set_folder(stored.spec.name, spec)
    if root.exists(f"{folder}/{FEATURE_SET_FILE}"):
        spec = with_stored_shape(spec, read_spec(root, folder))
    receipts = committed_receipts(root, folder, spec)
    missing = missing_shards(shards_of(spec.n_rows, spec.rows_per_shard), receipts)
    others = FeatureStore(root).readable()[0] if missing else []
    done_as = _complete_superset(others, spec) if missing else feature_set_name(folder)
    environment = None if allow_mixed_environment else partial(current_environment, request.device)
    reuse = Reuse()
    if missing and not done_as:
        if receipts and environment is not None:
            require_same_environment(root, folder, environment())
        reuse = find_sources(
            others, dataset.table, spec, missing, environment=environment, predecessor=grown.predecessor
        )
    plan = ExtractionPlan(
        store=store,
        folder=folder,
        dataset_root=str(dataset.root),
        max_pixels=dataset.rules.max_pixels,
        link_roots=tuple(map(str, dataset.rules.link_roots)),
        keys_stated=dataset.keys_stated,
        dataset_folder=stored.folder,
        spec=spec,
        backbone=request,
        threads=max(1, len(os.sched_getaffinity(0)) // workers),
        sources=tuple(source.name for source in reuse.sources if source.refused is None),
        devices=devices_for(request.device, workers),
    )
    return Prepared(
        root=root,
        plan=plan,
        dataset=stored.spec.name,
        name=feature_set_name(folder),
        missing=missing,
        computed=reuse.computed,
        removed=reuse.removed,
        linked=reuse.linked,
        manifest=dataset.table.select(view_columns()),
        receipts=receipts,
        staged=staged,
        done_as=done_as,
        sources=reuse.sources,
        grown=grown,
        findings=(*dataset.findings, *classes_without_pixels(dataset.spec, seen)),
        mask_values=dataset.mask_values.to_json() if seen else None,
    )


def settle_extraction(prepared: Prepared) -> None:
    """Put the dataset's annotations in force, and make sure that what is committed stays.

    These are the first writes of an extraction. Whatever can refuse it is asked before, since labels that are put in
    force change the answers of every later question.

    Raises:
        IdentityMismatchError: another run made the feature set meanwhile, in another shape.
    """
    root, plan = create_store(prepared.plan.store), prepared.plan
    check_feature_set(root, prepared.dataset, plan.spec)
    if prepared.staged is not None:
        prepared.staged.register(root)
    if prepared.receipts:
        # Receipts speak of shards alone: a lost feature_set.json or zarr.json beside them is written again.
        create_feature_set(root, prepared.dataset, plan.spec)
        # A run killed between a receipt's rename and the sync of its folder: what is called done here must stay done.
        root.settle(receipts_folder(plan.folder))
    if len(prepared.receipts) == len(shards_of(plan.spec.n_rows, plan.spec.rows_per_shard)):
        root.sweep_partials(plan.folder)  # nothing will be computed here that would do it
        write_index(root, plan.folder, plan.spec, prepared.receipts)  # its writer may have been killed before this


def begin_extraction(prepared: Prepared) -> None:
    """Make everything in the store that workers need to find there: the store, the dataset, the empty feature set.

    Raises:
        IdentityMismatchError: another run made the feature set meanwhile, in another shape.
    """
    settle_extraction(prepared)
    create_feature_set(prepared.root, prepared.dataset, prepared.plan.spec)
    prepared.root.sweep_partials(prepared.plan.folder)


def prepare_rerun(plan: ExtractionPlan, *, store: str) -> Prepared:
    """Prepare the missing shards of a feature set from the plan of an earlier run, without its dataset's adapter.

    Args:
        plan: of the earlier run. Its folder of images, the folders that links may lead into, and its weights are
            opened, so they must be the user's words and not those of a stranger's store; see `vitrine.rerun`.
        store: URL of the store, since the plan's own says nothing of its user.

    Raises:
        PlanError: there is no such folder of images, or the weights are others.
        StoreError: the feature set or its dataset cannot be read, or was begun in another environment.
    """
    from pipelines.extract import cached_manifest

    root = enter_store(store)
    spec = read_spec(root, plan.folder)
    require_same(spec, plan.spec)
    dataset = read_dataset(root, plan.dataset_folder)
    if not Path(plan.dataset_root).is_dir():
        raise PlanError(f"{plan.dataset_root} is no folder; name the one that holds the images now.")
    # Empty for a model without a file.
    if plan.backbone.weights and (found := file_sha256(Path(plan.backbone.weights))) != plan.backbone.weights_sha256:
        raise PlanError(
            f"weights {plan.backbone.weights} have sha256 {found}, and those of before had "
            f"{plan.backbone.weights_sha256}; name the file of before."
        )
    receipts = committed_receipts(root, plan.folder, spec)
    environment = current_environment(plan.backbone.device)
    if receipts:
        require_same_environment(root, plan.folder, environment)
    missing = missing_shards(shards_of(spec.n_rows, spec.rows_per_shard), receipts)
    manifest = cached_manifest(store, plan.dataset_folder)
    # Feature sets that the earlier run copied from may be gone or damaged by now, and others may have been mended.
    reuse = find_sources(FeatureStore(root).readable()[0], manifest, spec, missing, environment=lambda: environment)
    sources = tuple(source.name for source in reuse.sources if source.refused is None)
    threads = max(1, len(os.sched_getaffinity(0)))
    # Whoever made the keys did it in an earlier run: each is held to its image before a row is copied by it.
    plan = replace(plan, store=store, threads=threads, sources=sources, devices=(), keys_stated=True)
    return Prepared(
        root=root,
        plan=plan,
        dataset=dataset.spec.name,
        name=feature_set_name(plan.folder),
        missing=missing,
        computed=reuse.computed,
        removed=reuse.removed,
        linked=reuse.linked,
        sources=reuse.sources,
        manifest=manifest,
        receipts=receipts,
        staged=None,
        done_as=None,
    )


def _complete_superset(others: Sequence[FeatureSet], spec: FeatureSetSpec) -> str | None:
    """A complete feature set of the same computation that already has every array asked for."""
    for features in others:
        # A feature set that cannot be read is another's trouble, and holds nothing that could be used here.
        with contextlib.suppress(StoreError):
            if not _holds_all(features.spec.identity, spec.identity):
                continue
            # Before nothing is computed, each of its objects is looked for.
            if len(committed_receipts(features.root, features.folder, features.spec)) == len(features.shards):
                return features.name
    return None


def _holds_all(theirs: Identity, ours: Identity) -> bool:
    return (
        theirs.computation == ours.computation
        and theirs.storage_dtype == ours.storage_dtype
        and set(theirs.layers) >= set(ours.layers)
        and set(theirs.token_kinds) >= set(ours.token_kinds)
    )


def run_extraction(
    prepared: Prepared, engine: Engine, *, workers: int = 1, progress_folder: Path | None = None
) -> Outcome:
    """Compute and commit every missing shard; where none is missing, do nothing and say so.

    SIGINT and SIGTERM end the run between two batches, when this is called in the main thread.

    Args:
        prepared: from `prepare_extraction`.
        engine: what drives the unit of work over the shards.
        workers: processes.
        progress_folder: where workers keep their counter files; a temporary one by default.

    Raises:
        EngineError: the engine itself failed.
        IdentityMismatchError: another run made the feature set meanwhile, in another shape.
    """
    root, plan = prepared.root, prepared.plan
    with _folder_or_temporary(progress_folder) as folder:
        start = time.time()
        if not prepared.missing:
            settle_extraction(prepared)
            return _outcome(prepared, [], folder, start=start, interrupted=None)
        begin_extraction(prepared)
        record = _run_record(prepared, engine, workers)
        run_id = id_for_run(record)
        write_record(root, run_file(run_id, RUN_FILE), record)
        # Without what a URL may say of its user: whoever reruns it names the store again.
        write_record(root, run_file(run_id, PLAN_FILE), json.loads(replace(plan, store=root.url).to_json()))
        with stopping_on_signals() as stop:
            failures = engine(plan, prepared.missing, folder, workers)
            outcome = _outcome(prepared, failures, folder, start=start, interrupted=stop.number)
        _write_times(root, run_id, record, outcome, folder)
    return outcome


def _run_record(prepared: Prepared, engine: Engine, workers: int) -> dict[str, Any]:
    plan, history = prepared.plan, RunHistory(prepared.root)
    return {
        "feature_set": plan.folder,
        "digest": plan.spec.identity.digest,
        "environment": current_environment(plan.backbone.device),
        "engine": getattr(engine, "__name__", type(engine).__name__),
        "workers": workers,
        "threads": plan.threads,
        "shards": len(prepared.missing),
        "findings": [finding.to_json() for finding in prepared.findings],
        "mask_values": prepared.mask_values,
        "reused_from": [
            {"feature_set": name, "environments": history.environments(f"{FEATURES}/{name}")} for name in plan.sources
        ],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def _folder_or_temporary(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="vitrine-run-") as name:
        yield Path(name)


def _outcome(
    prepared: Prepared, failures: Sequence[ShardFailure], folder: Path, *, start: float, interrupted: int | None
) -> Outcome:
    finish_feature_set(prepared.root, prepared.plan.folder, prepared.plan.spec)
    features = FeatureSet(prepared.root, prepared.name)
    invalid: dict[str, int] = {}
    for entry in features.invalid_rows:
        invalid[entry.reason] = invalid.get(entry.reason, 0) + 1
    counts = read_counts(folder)
    absent = [shard.index for shard in features.shards if shard.index not in features.receipts]
    reasons = {failure.shard: failure.reason for failure in failures}
    if interrupted is None:
        # Such as a remote engine's, whose workers cannot leave their reasons here.
        reasons = {**dict.fromkeys(absent, "the engine ended without committing it"), **reasons}
    return Outcome(
        feature_set=prepared.name,
        rows=prepared.plan.spec.n_rows,
        reused=sum(count.reused for count in counts),
        committed=len(features.receipts) - prepared.already,
        already=prepared.already,
        total=len(features.shards),
        invalid=invalid,
        failures=tuple(ShardFailure(shard=index, reason=reasons[index]) for index in absent if index in reasons),
        seconds=time.time() - start,
        start_seconds=min((c.computing_since - start for c in counts if c.computing_since is not None), default=0.0),
        split={name: sum(count.seconds[name] for count in counts) for name in STAGES},
        interrupted=interrupted if absent else None,
    )


def _write_times(root: ObjectRoot, run_id: str, record: dict[str, Any], outcome: Outcome, folder: Path) -> None:
    times = [{"shard": each.shard, "seconds": each.wall_s, **each.seconds} for each in read_shard_times(folder)]
    finished = {"finished": datetime.now(UTC).isoformat(timespec="seconds"), "outcome": outcome.to_json()}
    write_record(root, run_file(run_id, RUN_FILE), {**record, **finished})
    write_record(root, run_file(run_id, "times.json"), {"shards": times})
