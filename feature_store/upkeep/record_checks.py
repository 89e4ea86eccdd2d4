"""What stands alone in a file of its own: the store's record, selections, results, and the records of runs."""

from feature_store import layout
from feature_store.errors import StoreError
from feature_store.results import result_digest
from feature_store.runs import RUN_FILE, is_id_of_run
from feature_store.selections import read_selection
from feature_store.upkeep.inspection import Inspection
from feature_store.writer import check_store


def check_store_record(inspection: Inspection) -> None:
    """`vitrine.json`."""
    remedy = "`vitrine repair` writes it anew."
    if inspection.record(layout.STORE_FILE, remedy) is not None:
        try:
            check_store(inspection.root)
        except StoreError as error:
            inspection.problem(layout.STORE_FILE, "record", str(error), suspects=())
    elif layout.STORE_FILE not in inspection.sizes:
        inspection.problem(layout.STORE_FILE, "missing", f"{layout.STORE_FILE} is missing. {remedy}")


def check_selections(inspection: Inspection) -> None:
    """Every selection."""
    remedy = "`vitrine repair` moves it aside; make it again with `vitrine prune`."
    for path in inspection.under(layout.SELECTIONS):
        folder, _, name = path.rpartition("/")
        if folder != layout.SELECTIONS or not name.endswith(".json"):
            continue
        content = inspection.record(path, remedy)
        if content is None:
            continue
        stem = name.removesuffix(".json")
        try:
            read_selection(inspection.root, stem)
        except StoreError as error:
            inspection.problem(path, "record", str(error))
            continue
        if content.get("name") != stem:
            text = f"{path} is the record of a selection {content.get('name')!r}. {remedy}"
            inspection.problem(path, "record", text)


def check_results(inspection: Inspection) -> None:
    """Every result stands under the digest of its key."""
    remedy = "`vitrine repair` moves it aside; ask the same question again."
    for path in inspection.under(layout.RESULTS):
        parts = path.split("/")
        if len(parts) != 3 or not path.endswith(".json"):
            continue
        content = inspection.record(path, remedy)
        if content is None:
            continue
        key, result = content.get("key"), content.get("result")
        stem = parts[2].removesuffix(".json")
        if not isinstance(key, dict) or not isinstance(result, dict) or result_digest(key) != stem:
            inspection.problem(path, "record", f"{path} is not the result that its name says. {remedy}")


def check_runs(inspection: Inspection) -> None:
    """Every record of a run."""
    remedy = "`vitrine repair` moves it aside; nothing but the history of runs depends on it."
    for path in inspection.under(layout.RUNS):
        parts = path.split("/")
        if len(parts) != 3 or not path.endswith(".json"):
            continue
        content = inspection.record(path, remedy)
        if content is not None and parts[2] == RUN_FILE and not is_id_of_run(parts[1], content):
            text = f"{path} is the record of a run that its folder's name does not tell. {remedy}"
            inspection.problem(path, "record", text)


def check_aside(inspection: Inspection) -> None:
    """What earlier repairs moved aside is nobody's, and is counted."""
    there = inspection.under(layout.ASIDE)
    inspection.know(*there)
    if there:
        n_bytes = sum(inspection.sizes[path] for path in there)
        text = (
            f"`vitrine repair` moved {len(there)} file{'s' * (len(there) != 1)} of {n_bytes} bytes aside; "
            "`vitrine gc --aside` removes them."
        )
        inspection.note(layout.ASIDE, "aside", text)
