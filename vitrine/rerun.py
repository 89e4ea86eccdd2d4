"""Computing again what a repair took out, from the plan that the last run left in the store."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feature_store import StoreError
from feature_store.roots import open_root
from feature_store.runs import stored_plan
from feature_store.upkeep import Unfinished
from pipelines.beam_engine import BeamEngine
from pipelines.plan import ExtractionPlan, PlanError
from pipelines.run import prepare_rerun, run_extraction
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


def rerun_unfinished(store: str, unfinished: Sequence[Unfinished], *, quiet: bool) -> list[Rerun]:
    """Extract the missing shards of feature sets, one after another; one that cannot be is named, the others go on."""
    reruns = []
    for each in unfinished:
        try:
            reruns.append(_rerun(store, each.feature_set, quiet=quiet))
        except (StoreError, ValueError, OSError) as error:
            reruns.append(Rerun(feature_set=each.feature_set, committed=0, complete=False, reason=str(error)))
        if not quiet:
            _print(reruns[-1])
    return reruns


def _rerun(store: str, name: str, *, quiet: bool) -> Rerun:
    prepared = prepare_rerun(_plan(store, f"features/{name}"), store=store)
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
        return ExtractionPlan.from_json(json.dumps(record))
    except (KeyError, TypeError) as error:
        raise PlanError(f"the plan for {folder} is none ({error!r}); run the same `vitrine extract` again.") from error


def _print(rerun: Rerun) -> None:
    verdict = "complete" if rerun.complete else f"not complete: {rerun.reason}"
    console().print(f"{rerun.feature_set}: {counted(rerun.committed, 'shard')} computed again, {verdict}", markup=False)
