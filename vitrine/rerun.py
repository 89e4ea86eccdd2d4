"""Computing again what a repair took out, from the plan that the last run left in the store.

A store may come from a stranger, and its plan names folders and files of this machine. None of them is opened on the
store's word: the user names the folders of images and the files of weights that may be read.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from feature_store import StoreError
from feature_store.roots import open_root
from feature_store.runs import stored_plan
from feature_store.upkeep import Unfinished
from pipelines.backbones import BackboneRequest
from pipelines.backbones.catalogue import DEMO_SHA256
from pipelines.backbones.hub_folder import weights_file
from pipelines.backbones.weight_files import demo_weights, resolved
from pipelines.beam_engine import BeamEngine
from pipelines.plan import ExtractionPlan, PlanError
from pipelines.run import prepare_rerun, run_extraction
from vitrine.named_paths import chosen, naming_options, typed
from vitrine.output import console, counted
from vitrine.progress import extraction_bar


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What came of one feature set.

    Attributes:
        feature_set: its name.
        committed: shards that were computed again.
        complete: whether none is missing now.
        reason: why it was not, or empty.
    """

    feature_set: str
    committed: int
    complete: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Named:
    """What the user says may be read.

    Attributes:
        images: folders of images, and folders that links in them may lead into.
        weights: checkpoint files.
    """

    images: tuple[Path, ...] = ()
    weights: tuple[Path, ...] = ()


def rerun_unfinished(store: str, unfinished: Sequence[Unfinished], named: Named, *, quiet: bool) -> list[Rerun]:
    """Extract the missing shards of feature sets, one after another; one that cannot be is named, the others go on."""
    reruns = []
    for each in unfinished:
        try:
            reruns.append(_rerun(store, each.feature_set, named, quiet=quiet))
        except (StoreError, ValueError, OSError) as error:
            reruns.append(Rerun(feature_set=each.feature_set, committed=0, complete=False, reason=str(error)))
        if not quiet:
            _print(reruns[-1])
    return reruns


def _rerun(store: str, name: str, named: Named, *, quiet: bool) -> Rerun:
    prepared = prepare_rerun(_as_named(_plan(store, f"features/{name}"), store, named), store=store)
    with tempfile.TemporaryDirectory(prefix="vitrine-run-") as folder:
        n_rows = sum(shard.n_rows for shard in prepared.missing)
        with extraction_bar(Path(folder), n_rows, 0, quiet=quiet):
            outcome = run_extraction(prepared, BeamEngine(), progress_folder=Path(folder))
    reason = "; ".join(f"shard {failure.shard}: {failure.reason}" for failure in outcome.failures)
    complete = outcome.committed + outcome.already == outcome.total
    return Rerun(feature_set=name, committed=outcome.committed, complete=complete, reason=reason)


def _plan(store: str, folder: str) -> ExtractionPlan:
    record = stored_plan(open_root(store), folder)
    if record is None:
        raise PlanError(f"no run left a plan for {folder}; run the same `vitrine extract` again.")
    try:
        plan = ExtractionPlan.from_json(json.dumps(record))
    except (KeyError, TypeError) as error:
        raise PlanError(f"the plan for {folder} is none ({error!r}); run the same `vitrine extract` again.") from error
    if plan.folder != folder:
        raise PlanError(f"the plan for {folder} is one for {plan.folder!r}; run the same `vitrine extract` again.")
    return plan


def _as_named(plan: ExtractionPlan, store: str, named: Named) -> ExtractionPlan:
    """The plan with the user's paths in place of the store's.

    Of several that the user names, the one that the plan names too; a single one may be where the files are now, since
    every image is held to its content key, and the weights are held to their digest.

    Raises:
        PlanError: what the plan needs was not named; the message gives the store's words and the command to go on.
    """
    images = chosen(plan.dataset_root, [str(resolved(path)) for path in named.images])
    weights = _weights(plan.backbone, named)
    if images is None or weights is None:
        raise PlanError(_to_be_named(plan, store))
    allowed = {str(resolved(path)) for path in named.images}
    return replace(
        plan,
        dataset_root=str(images),
        link_roots=tuple(path for path in plan.link_roots if path in allowed),
        backbone=replace(plan.backbone, weights=str(weights)),
    )


def _weights(request: BackboneRequest, named: Named) -> str | None:
    """The file of weights to read, empty for a model without one; None where the user has to name it."""
    if not _needs_weights(request):
        return str(demo_weights()) if request.weights else ""
    return chosen(request.weights, [str(weights_file(resolved(path))) for path in named.weights])


def _needs_weights(request: BackboneRequest) -> bool:
    """Whether a file of the user's is needed: the null model has none, and the demo's comes with Vitrine."""
    return bool(request.weights) and request.weights_sha256 != DEMO_SHA256


def _to_be_named(plan: ExtractionPlan, store: str) -> str:
    """What the store's plan names, and the command that confirms it."""
    words = [("--images", path) for path in (plan.dataset_root, *plan.link_roots)]
    if _needs_weights(plan.backbone):
        words.append(("--weights", plan.backbone.weights))
    said, options = naming_options(words)
    return (
        f"the store names {said}, and a store may be a stranger's, so nothing is read on its word. If these are yours, "
        f"or with the places where they are now: vitrine repair {typed(store)} --rerun {options}"
    )


def _print(rerun: Rerun) -> None:
    verdict = "complete" if rerun.complete else f"not complete: {rerun.reason}"
    console().print(f"{rerun.feature_set}: {counted(rerun.committed, 'shard')} computed again, {verdict}", markup=False)
