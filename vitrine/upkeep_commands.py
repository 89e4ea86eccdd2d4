"""`vitrine verify`, `repair`, `diff`, `gc`, `rm` and `cp`: whether a store is sound, what may go, and copies."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrine.options import Features, Json, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feature_store import FeatureSet
    from feature_store.upkeep import Comparison, Finding, RepairReport

Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")]

_SHOWN = 50


def verify(
    store: Store,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, and hold it to its checksum.")] = False,
    sample: Annotated[
        str | None,
        typer.Option(help="Read this share of the data, a different part each time: 1% or 0.01.", show_default=False),
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="Only this feature set and its dataset; repeatable.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Say whether a store holds what its records state; nothing is changed. Exit code 0: sound, 1: not.

    Without options it reads every record and looks at the size of every object, which takes seconds.

    \b
    vitrine verify features
    vitrine verify features --deep
    vitrine verify features --sample 1%
    """
    from feature_store.roots import open_root
    from feature_store.upkeep import verify_store
    from vitrine import exits
    from vitrine.output import console, counted, print_json, size
    from vitrine.progress import reading_bar

    root = _existing(open_root(store))
    with reading_bar(quiet=json) as progress:
        report = verify_store(root, deep=deep, sample=_share(sample), features=features or None, progress=progress)
    code = exits.DONE if report.sound else exits.FAILED
    if json:
        print_json({**report.to_json(), "exit_code": code})
        raise typer.Exit(code)
    _print_findings(report.problems, "bold red")
    _print_findings(report.notes, "dim")
    read = f"{size(report.bytes_read)} of {size(report.bytes_in_all)} held to their checksums"
    if report.share_over_time is not None:
        read += f", {report.share_over_time:.1%} over time"
    verdict = "sound" if report.sound else counted(len(report.problems), "problem")
    in_place = counted(report.objects_checked, "object")
    console().print(f"{report.url}: {verdict}; {in_place} in place, {read}", markup=False)
    raise typer.Exit(code)


def repair(
    store: Store,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not read every byte: repair what sizes and records show.")
    ] = False,
    rerun: Annotated[
        bool,
        typer.Option(
            "--rerun",
            help="Compute the missing shards again, from the plan of the last run, with what --images and --weights "
            "name.",
        ),
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of images that --rerun may read; repeatable.", show_default=False),
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint file that --rerun may read; repeatable.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Move what fails aside, write anew what follows from the rest, and say what to rerun. Nothing is deleted.

    What fails goes to STORE/aside/TIME/..., under its old path. Exit code 0: all is well now; 3: shards are to be
    computed again; 1: something else is left, and is named.

    \b
    vitrine repair features
    vitrine repair features --rerun --images photos --weights mae_pretrain_vit_base.pth
    """
    from feature_store.roots import open_root
    from feature_store.upkeep import repair_store
    from vitrine import exits
    from vitrine.output import print_json
    from vitrine.progress import reading_bar

    if (images or weights) and not rerun:
        raise typer.BadParameter("--images and --weights say what --rerun may read; add --rerun, or leave them out.")
    root = _existing(open_root(store))
    with reading_bar(quiet=json) as progress:
        report = repair_store(root, deep=not fast, progress=progress)
    if not json:
        _print_repair(report)
    reruns = []
    if rerun and report.unfinished:
        from vitrine.rerun import Named, rerun_unfinished

        named = Named(images=tuple(images or ()), weights=tuple(weights or ()))
        reruns = rerun_unfinished(store, report.unfinished, named, quiet=json)
    unfinished = not all(each.complete for each in reruns) or (report.unfinished and not reruns)
    code = exits.FAILED if report.left else exits.INCOMPLETE if unfinished else exits.DONE
    if json:
        print_json({**report.to_json(), "reruns": [each.to_json() for each in reruns], "exit_code": code})
    raise typer.Exit(code)


def _print_repair(report: "RepairReport") -> None:
    from vitrine.output import console, counted

    _print_findings(report.found, "dim")
    out = console()
    if report.moved:
        out.print(f"{report.url}: {counted(len(report.moved), 'file')} moved to {report.aside}", markup=False)
    for path in report.remade:
        out.print(f"written anew: {path}", markup=False)
    _print_findings(report.left, "bold red")
    for each in report.unfinished:
        out.print(
            f"{each.feature_set} lacks {counted(len(each.shards), 'shard')}; run the same `vitrine extract` again, or "
            "`vitrine repair --rerun`",
            markup=False,
        )
    if not report.found and report.done:
        out.print(f"{report.url}: sound, nothing to repair", markup=False)


def diff(
    a: Annotated[str, typer.Argument(help="A store, or STORE#NAME of a feature set.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another, or the same with another name.", show_default=False)],
    features: Features = None,
    json: Json = False,
) -> None:
    """Say how two stores, or two feature sets, differ. Exit code 0: equal, 1: not.

    Of two stores the feature sets of one name are compared. Equal means the same views, arrays, valid rows and values;
    fields of the identity that differ are listed.

    \b
    vitrine diff features-torch-2.11 features-torch-2.12
    vitrine diff features copy --features camvid/demo
    vitrine diff features#camvid/demo-8b349c50 features#camvid/demo-1f00ba77
    """
    from feature_store.upkeep import compare_feature_sets
    from vitrine import exits
    from vitrine.output import print_json

    pairs, alone = _pairs(a, b, features)
    comparisons = [compare_feature_sets(left, right) for left, right in pairs]
    equal = all(each.equal for each in comparisons) and not alone
    code = exits.DONE if equal else exits.FAILED
    if json:
        found = [each.to_json() for each in comparisons]
        print_json({"equal": equal, "comparisons": found, "in_one_alone": alone, "exit_code": code})
    else:
        for each in comparisons:
            _print_comparison(each)
        _print_alone(alone)
    raise typer.Exit(code)


def _pairs(a: str, b: str, features: str | None) -> "tuple[list[tuple[FeatureSet, FeatureSet]], list[str]]":
    from feature_store import open_store
    from feature_store.upkeep import pair_names

    stores, names = [], []
    for each in (a, b):
        url, _, name = each.partition("#")
        stores.append(open_store(url))
        names.append(name or features)
    if names[0] or names[1]:
        chosen = [store.features(name, partial=True) for store, name in zip(stores, names, strict=True)]
        return [(chosen[0], chosen[1])], []
    all_names = [store.names() for store in stores]
    paired = pair_names(*all_names)
    alone = sorted({*all_names[0], *all_names[1]} - {name for pair in paired for name in pair})
    left, right = stores
    return [(left.features(one, partial=True), right.features(two, partial=True)) for one, two in paired], alone


def _print_comparison(found: "Comparison") -> None:
    from vitrine.output import console, print_table

    rows = [
        (
            f"layer {each.layer} {each.kind}",
            each.rows,
            each.rows_differing,
            each.first_row,
            f"{each.max_abs_difference:.3g}",
            f"{each.min_cosine:.6f}",
        )
        for each in found.arrays
    ]
    columns = ("array", "rows compared", "differing", "first", "max abs difference", "min cosine")
    print_table(f"{found.a} and {found.b}: {'equal' if found.equal else 'not equal'}", columns, rows)
    out = console()
    for name, left, right in found.identity:
        out.print(f"{name}: {left!r} and {right!r}", markup=False)
    for side, n_rows, arrays in (
        ("first", found.rows_only_in_a, found.arrays_only_in_a),
        ("second", found.rows_only_in_b, found.arrays_only_in_b),
    ):
        if n_rows or arrays:
            out.print(f"only in the {side}: {n_rows} rows; arrays: {', '.join(arrays) or 'none'}", markup=False)
    if found.n_invalid_differing:
        rows_named = ", ".join(map(str, found.invalid_differing))
        out.print(f"{found.n_invalid_differing} rows are valid in one alone, the first: {rows_named}", markup=False)


def _print_alone(names: "Sequence[str]") -> None:
    from vitrine.output import console

    for name in names:
        console().print(f"{name} is in one store alone", markup=False)


def gc(
    store: Store,
    yes: Yes = False,
    aside: Annotated[bool, typer.Option("--aside", help="Also what `vitrine repair` moved aside.")] = False,
    superseded: Annotated[
        bool,
        typer.Option(
            "--superseded",
            help="Also feature sets that a newer complete one of the same dataset and recipe holds.",
        ),
    ] = False,
    nobody_writes: Annotated[
        bool,
        typer.Option(
            "--nobody-writes",
            help="You know that no process writes to this store; behind a URL nobody else can tell.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Find what nobody needs: old annotations, results of feature sets that are gone, what killed writers left.

    \b
    vitrine gc features          # say what would go
    vitrine gc features --yes    # let it go
    vitrine gc features --superseded --yes    # and the earlier nights of a nightly job
    """
    from feature_store import open_store
    from feature_store.upkeep import collect_garbage
    from vitrine.output import console, counted, print_json, print_table, size

    report = collect_garbage(
        open_store(store).root, remove=yes, aside=aside, superseded=superseded, nobody_writes=nobody_writes
    )
    if json:
        print_json(report.to_json())
        return
    if report.garbage:
        rows = [(each.path, each.reason, each.n_objects, size(each.n_bytes)) for each in report.garbage]
        print_table(report.url, ("path", "why", "objects", "size"), rows)
    out = console()
    if report.held_back:
        out.print(report.held_back, markup=False)
    partials = counted(report.partials_swept, "partial file")
    things = counted(len(report.garbage), "thing")
    frees = _frees(report.n_bytes, report.freed_bytes)
    if yes:
        out.print(f"removed {things}, {size(report.n_bytes)}{frees}, and {partials} of dead writers")
    else:
        out.print(
            f"{things} of {size(report.n_bytes)}{frees} may go, and {partials} unless they are being "
            "written; nothing was removed: pass --yes to do it"
        )


def _frees(n_bytes: int, freed_bytes: int) -> str:
    """What a removal gives back, where that is less than what it takes away."""
    from vitrine.output import size

    if freed_bytes == n_bytes:
        return ""
    return f" (which frees {size(freed_bytes)}: the rest is shared with what stays)"


def rm(
    store: Store,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Feature sets by name, selections/NAME, results/EVALUATOR, results/EVALUATOR/DIGEST, "
            "datasets/NAME or datasets/NAME/DIGESTS.",
            show_default=False,
        ),
    ],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Remove feature sets, datasets, selections or results.

    A removal that was killed is finished by the same command, or by `vitrine gc`.

    \b
    vitrine rm features camvid/demo-8b349c50
    vitrine rm features selections/no200 results/knn --yes
    """
    from feature_store import open_store
    from feature_store.upkeep import find_removable, remove, room_taken, without_writers
    from vitrine import exits
    from vitrine.output import console, counted, print_json, size

    root = open_store(store).root
    with without_writers(root, "remove") if yes else contextlib.nullcontext():
        found = find_removable(root, names)
        room = room_taken(root, found)
        for each in found if yes else []:
            remove(root, each)
    if json:
        listed = [{"name": each.name, "kind": each.kind, "bytes": each.n_bytes} for each in found]
        print_json({"removed": yes, **asdict(room), "found": listed, "exit_code": exits.DONE})
        return
    for each in found:
        what = f"{each.kind} {each.name}, {counted(each.n_objects, 'object')}, {size(each.n_bytes)}"
        console().print(f"{'removed' if yes else 'would remove'} {what}", markup=False)
    # What was said of each thing says the sum too, unless things share files among them or with what stays.
    if room.freed_bytes != sum(each.n_bytes for each in found):
        console().print(f"{size(room.n_bytes)} in all{_frees(room.n_bytes, room.freed_bytes)}", markup=False)
    if not yes:
        console().print("nothing was removed: pass --yes to do it")


def cp(
    source: Annotated[str, typer.Argument(help="The store to copy from: a folder or a URL.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The store to copy to; made where there is none.", show_default=False)],
    features: Annotated[
        list[str] | None,
        typer.Option(help="Only this feature set; repeatable. By default all of them.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Copy feature sets between stores, with their datasets and selections; every object is held to its checksum.

    Run the same command again after an interruption. Exit code 3: some shards could not be copied, and are named.

    \b
    vitrine cp features s3://bucket/features
    vitrine cp features backup --features camvid/demo
    """
    from feature_store import create_store, open_store
    from feature_store.upkeep import copy_store
    from vitrine import exits
    from vitrine.output import console, counted, print_json, size
    from vitrine.progress import reading_bar

    opened = open_store(source)
    # Before the target is made: a name that there is not leaves nothing behind.
    names = [opened.resolve(name) for name in features or ()]
    with reading_bar("copying", quiet=json) as progress:
        report = copy_store(opened.root, create_store(target), features=names or None, progress=progress)
    code = exits.INCOMPLETE if report.failures else exits.DONE
    if json:
        print_json({**report.to_json(), "exit_code": code})
        raise typer.Exit(code)
    out = console()
    for line in (*report.failures, *report.notes):
        out.print(line, markup=False)
    shards = f"{counted(report.shards_copied, 'shard')} copied, {report.shards_standing} stood there"
    lacking = f"{report.shards_failed} failed, {report.shards_missing} not in the source"
    written = f"{counted(report.objects_copied, 'object')}, {size(report.bytes_copied)}"
    out.print(
        f"{report.source} to {report.target}: {counted(len(report.feature_sets), 'feature set')}, {shards}, {lacking}; "
        f"{written}, {counted(len(report.selections), 'selection')}",
        markup=False,
    )
    raise typer.Exit(code)


def _existing(root: Any) -> Any:
    """`root`, when there is something of a store; a damaged vitrine.json is for `verify` to find.

    Raises:
        StoreNotFoundError: nothing of a store stands there.
    """
    from feature_store.layout import DATASETS, FEATURES, STORE_FILE
    from feature_store.writer import no_store

    if not set(root.list("")) & {STORE_FILE, FEATURES, DATASETS}:
        raise no_store(root)
    return root


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise typer.BadParameter(f"--sample {text!r}: give a share above 0 and up to 1, such as 1% or 0.01.")
    return share


def _print_findings(findings: "Sequence[Finding]", style: str) -> None:
    from rich.text import Text

    from vitrine.output import console
    from vitrine.printable import printable

    out = console()
    for line in _lines(findings):
        out.print(Text(printable(line), style=style))


def _lines(findings: "Sequence[Finding]") -> "Iterator[str]":
    for finding in findings[:_SHOWN]:
        yield f"{finding.kind}: {finding.text}"
    if len(findings) > _SHOWN:
        yield f"... and {len(findings) - _SHOWN} more; --json names them all"
