"""One extraction as a user sees it: the cost first, a bar while it runs, and a line that says what came of it."""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from feature_store import open_store
from feature_store.writer import committed_receipts
from pipelines.backbones import Windows
from pipelines.backbones.description import DescribedModel
from pipelines.backbones.preprocessing import Fit
from pipelines.backbones.remembered import describe_model
from pipelines.cost import Cost, estimate_cost, require_space
from pipelines.datasets import Dataset
from pipelines.devices import has_gpu
from pipelines.failures import ShardFailure
from pipelines.plan import ExtractionSettings, PlanError
from pipelines.run import Engine, Outcome, Prepared, prepare_extraction, run_extraction, settle_extraction
from vitrine import exits
from vitrine.extract_checks import check_device, check_fit
from vitrine.findings import finding_pairs
from vitrine.interruption import saying_what_stands
from vitrine.native_size import native_size_note
from vitrine.output import assumed_pairs, console, counted, duration, print_json, print_pairs, size
from vitrine.progress import extraction_bar

# Of those that failed for one reason.
_SHARDS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ModelWords:
    """A model as a user asks for it.

    Attributes:
        model: its name.
        weights: a local file, or None for the model's own.
        image_size: (height, width) of the input in pixels, or None for the model's own.
        windows: that slide over the input, or None.
        fit: `squash`, `crop`, or `auto`: squash where there are masks, else as the model's authors evaluate it.
        compute_dtype: of the forward pass.
        position_embedding: the rule that resamples it, or None for the model's own.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        network: which network of a file that holds several, or None for the one that authors publish.
        arguments: what the user states of the network, as `NAME=VALUE`.
    """

    model: str
    weights: Path | None = None
    image_size: tuple[int, int] | None = None
    windows: Windows | None = None
    fit: str = "auto"
    compute_dtype: str = "float32"
    device: str = "auto"
    position_embedding: str | None = None
    network: str | None = None
    arguments: tuple[str, ...] = ()


def resolve_model(words: ModelWords, dataset: Dataset) -> DescribedModel:
    """The model for a dataset, described: `auto` choices made, everything else as `resolve_backbone` takes it.

    Raises:
        PlanError: an unknown fit or device.
        BackboneError: an unknown model, or weights that are not there.
    """
    check_fit(words.fit)
    fit: Fit | None = "squash" if words.fit == "squash" else "crop"
    if words.fit == "auto":
        has_masks = dataset.table["mask_uri"].null_count < dataset.table.num_rows
        # None is the model's own way: a crop for most, and for some the whole view, squashed.
        fit = "squash" if has_masks else None
    return describe_model(
        words.model,
        weights=words.weights,
        image_size=words.image_size,
        windows=words.windows,
        fit=fit,
        compute_dtype=words.compute_dtype,
        device=device_of(words.device),
        position_embedding=words.position_embedding,
        network=words.network,
        arguments=words.arguments,
    )


def device_of(device: str) -> str:
    """A device of this machine; `auto` is CUDA where there is one.

    Raises:
        PlanError: another word, or no CUDA device here.
    """
    check_device(device)
    if device == "auto":
        return "cuda" if has_gpu() else "cpu"
    if device.startswith("cuda") and not has_gpu():
        raise PlanError(f"--device {device}: this machine has no CUDA device that torch can use; use --device cpu.")
    return device


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a user wants an extraction run and shown.

    Attributes:
        workers: processes.
        dry_run: say the cost, and stop; nothing is written.
        calibrate: in a dry run, load the model and run a batch to say memory and time; a run does so anyway.
        allow_mixed_environment: go on with what was begun under other versions.
        beam_options: Beam's own.
        json: print one JSON object.
        quiet: print nothing unless the run is interrupted.
    """

    workers: int = 1
    dry_run: bool = False
    calibrate: bool = False
    allow_mixed_environment: bool = False
    beam_options: tuple[str, ...] = ()
    json: bool = False
    quiet: bool = False

    @property
    def talks(self) -> bool:
        """Whether people read along."""
        return not self.json and not self.quiet


def extract_dataset(
    dataset: Dataset,
    model: DescribedModel,
    settings: ExtractionSettings,
    *,
    store: str,
    options: RunOptions,
) -> int:
    """Plan, say the cost, run, and report; returns the exit code."""
    if options.beam_options:
        _engine(options)  # an option that Beam does not know is refused before anything is read
    prepared = prepare_extraction(
        dataset,
        model,
        settings,
        store=store,
        workers=options.workers,
        allow_mixed_environment=options.allow_mixed_environment,
        dry_run=options.dry_run,
    )
    if prepared.done_as or not prepared.missing:
        if not options.dry_run:
            with saying_what_stands(lambda: prepared.already, _in_all(prepared)):
                settle_extraction(prepared)
        return _report_done(prepared, options)
    if not prepared.already:
        return _estimate_and_run(prepared, options)
    with saying_what_stands(lambda: prepared.already, _in_all(prepared)):
        return _estimate_and_run(prepared, options)


def _estimate_and_run(prepared: Prepared, options: RunOptions) -> int:
    note = native_size_note(prepared.plan.backbone, prepared.plan.spec)
    if options.talks and note is not None:
        console().print(note, markup=False)
    cost = estimate_cost(prepared, workers=options.workers, calibrate=options.calibrate or not options.dry_run)
    if options.talks:
        _print_cost(prepared, cost, options.workers)
    if not options.dry_run:
        require_space(cost, prepared.root.url)
        return _run(prepared, cost, _engine(options), options)
    if options.json:
        print_json(
            {
                "feature_set": prepared.name,
                "dry_run": True,
                "native_size": note,
                **asdict(cost),
                "sources": [asdict(source) for source in prepared.sources],
                "grown_from": prepared.grown.predecessor if prepared.grown else None,
                **_told(prepared),
            }
        )
    return exits.DONE


def _engine(options: RunOptions) -> Engine:
    """What drives the run, its options checked. Beam is loaded here, since most answers would only wait for it."""
    from pipelines.beam_engine import BeamEngine

    return BeamEngine(arguments=options.beam_options)


def _run(prepared: Prepared, cost: Cost, engine: Engine, options: RunOptions) -> int:
    standing = saying_what_stands(partial(_committed, prepared), _in_all(prepared))
    with tempfile.TemporaryDirectory(prefix="vitrine-run-") as name, standing:
        folder = Path(name)
        with extraction_bar(folder, cost.rows, cost.reused, quiet=not options.talks):
            outcome = run_extraction(prepared, engine, workers=options.workers, progress_folder=folder)
    code = _exit_code(outcome)
    if options.json:
        note = native_size_note(prepared.plan.backbone, prepared.plan.spec)
        print_json({**outcome.to_json(), "exit_code": code, "native_size": note, **_told(prepared)})
    elif options.talks:
        _print_outcome(outcome, cost)
    if outcome.interrupted:
        stands = outcome.committed + outcome.already
        print(
            f"vitrine: interrupted, {stands} of {counted(outcome.total, 'shard')} committed; "
            "run the same command to go on",
            file=sys.stderr,
        )
    return code


def _committed(prepared: Prepared) -> int:
    return len(committed_receipts(prepared.root, prepared.plan.folder, prepared.plan.spec))


def _in_all(prepared: Prepared) -> str:
    return counted(prepared.already + len(prepared.missing), "shard")


def _exit_code(outcome: Outcome) -> int:
    if outcome.interrupted:
        return 128 + outcome.interrupted
    return exits.INCOMPLETE if outcome.failures else exits.of_invalid(outcome.invalid)


def _report_done(prepared: Prepared, options: RunOptions) -> int:
    name = prepared.done_as or prepared.name
    invalid = _invalid_counts(prepared, name)
    if options.json:
        print_json(
            {
                "feature_set": name,
                "already_done": True,
                "committed": 0,
                "reused": 0,
                "invalid": invalid,
                **_told(prepared),
            }
        )
    elif options.talks:
        note = f"; {sum(invalid.values())} rows invalid" if invalid else ""
        console().print(f"{name}: done already, nothing to compute{note}")
        if prepared.findings:
            print_pairs("in its dataset", finding_pairs(prepared.findings))
    return exits.of_invalid(invalid)


def _told(prepared: Prepared) -> dict[str, Any]:
    """What was assumed of the model, and found in the dataset."""
    assumed = list(prepared.plan.spec.assumed)
    return {"assumed": assumed, "findings": [found.to_json() for found in prepared.findings]}


def _invalid_counts(prepared: Prepared, name: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in open_store(prepared.plan.store).features(name).invalid_rows:
        counts[entry.reason] = counts.get(entry.reason, 0) + 1
    return counts


def _print_cost(prepared: Prepared, cost: Cost, workers: int) -> None:
    spec = prepared.plan.spec
    identity = spec.identity
    in_all = counted(prepared.already + cost.shards, "shard")
    resumed = f" ({prepared.already} of {in_all} stand)" if prepared.already else ""
    print_pairs(
        f"{prepared.name}{resumed}",
        {
            "model": f"{spec.title}, {' x '.join(map(str, identity.preprocessing['image_size']))} pixels, "
            f"grid {spec.grid[0]} x {spec.grid[1]}{_windows_text(identity.preprocessing)}",
            **assumed_pairs(spec.assumed),
            "tokens": f"{', '.join(identity.token_kinds)} of layers {', '.join(map(str, identity.layers))}, "
            f"{spec.n_features} features, computed in {identity.compute_dtype}, stored as {identity.storage_dtype}",
            "to compute": f"{counted(cost.rows, 'row')} in {counted(cost.shards, 'shard')}, {size(cost.stored_bytes)} "
            f"({size(cost.free_bytes)} free)",
            **_reuse_pairs(prepared, cost),
            "workers": f"{workers} x {counted(prepared.plan.threads, 'thread')}, "
            f"{'' if cost.calibrated else 'about '}{size(cost.worker_bytes)} each, batch {spec.batch_size}",
            **finding_pairs(prepared.findings),
            "time": _time_text(cost),
        },
    )


def _time_text(cost: Cost) -> str:
    if not cost.rows:
        return "only that of copying"
    if cost.seconds is None:
        return "not measured; --calibrate loads the model and times one batch"
    return f"about {duration(cost.seconds)}, from one timed batch"


def _windows_text(preprocessing: Mapping[str, Any]) -> str:
    windows = preprocessing.get("windows")
    if windows is None:
        return ""
    (height, width), (down, right) = windows["size"], windows["stride"]
    return f", in windows of {height} x {width} every {down} x {right}"


def _reuse_pairs(prepared: Prepared, cost: Cost) -> dict[str, str]:
    """What is copied, and what could be if another environment were allowed."""
    pairs = {}
    grown = prepared.grown
    if grown is not None and grown.predecessor is not None:
        removed = f", {grown.removed} removed" if grown.removed else ""
        pairs["grown from"] = f"{grown.predecessor}: {counted(grown.kept, 'row')} kept, {grown.new} new{removed}"
    if cost.reused:
        linked = f", {cost.linked} in shards that are linked, not written" if cost.linked else ""
        pairs["reused"] = f"{counted(cost.reused, 'row')}, copied from {', '.join(prepared.plan.sources)}{linked}"
    refused = [source for source in prepared.sources if source.refused is not None]
    if refused:
        pairs["not reused"] = "; ".join(f"{counted(s.rows, 'row')} of {s.name}, {s.refused}" for s in refused) + (
            "; --allow-mixed-environment copies them"
        )
    return pairs


def failure_lines(failures: Sequence[ShardFailure]) -> list[str]:
    """One line a reason, with the first shards that failed for it: thousands may fail for one."""
    by_reason: dict[str, list[int]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure.shard)
    return [f"{_shards_text(sorted(shards))} failed: {reason}" for reason, shards in by_reason.items()]


def _shards_text(shards: Sequence[int]) -> str:
    if len(shards) == 1:
        return f"shard {shards[0]}"
    more = ", ..." if shards[_SHARDS_NAMED:] else ""
    return f"{counted(len(shards), 'shard')} ({', '.join(map(str, shards[:_SHARDS_NAMED]))}{more})"


def _print_outcome(outcome: Outcome, cost: Cost) -> None:
    out = console()
    for line in failure_lines(outcome.failures):
        out.print(line, markup=False)
    if outcome.invalid:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.invalid.items()))
        out.print(f"invalid rows: {counts} (`vitrine show` lists them)")
    working_s = max(1e-6, outcome.seconds - outcome.start_seconds)
    split = ", ".join(f"{name} {value:.1f} s" for name, value in outcome.split.items() if value)
    rate = f"{cost.rows / working_s:.1f} images/s" if outcome.committed == cost.shards and cost.rows else ""
    reused = f"{counted(outcome.reused, 'row')} reused, " if outcome.reused else ""
    out.print(
        f"{outcome.feature_set}: {outcome.committed + outcome.already} of {counted(outcome.total, 'shard')} committed "
        f"({outcome.committed} now), {reused}{counted(sum(outcome.invalid.values()), 'invalid row')}, "
        f"{counted(len(outcome.failures), 'failed shard')}; {duration(working_s)} {rate} ({split})"
    )
