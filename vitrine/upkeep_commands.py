"""`vitrine verify` and its kin: whether a store is sound, and what may go."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrine.options import Json, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from feature_store.upkeep import Finding

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
    from vitrine.output import console, print_json, size
    from vitrine.progress import reading_bar

    root = existing_root(open_root(store))
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
    verdict = "sound" if report.sound else f"{len(report.problems)} problems"
    console().print(f"{report.url}: {verdict}; {report.objects_checked} objects in place, {read}", markup=False)
    raise typer.Exit(code)


def existing_root(root: Any) -> Any:
    """`root`, when there is something of a store; a damaged vitrine.json is for `verify` to find.

    Raises:
        StoreNotFoundError: nothing of a store stands there.
    """
    from feature_store import StoreNotFoundError
    from feature_store.layout import DATASETS, FEATURES, STORE_FILE

    if not set(root.list("")) & {STORE_FILE, FEATURES, DATASETS}:
        raise StoreNotFoundError(f"no store at {root.url}; `vitrine extract ... --store {root.url}` makes one.")
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

    out = console()
    for line in _lines(findings):
        out.print(Text(line, style=style))


def _lines(findings: "Sequence[Finding]") -> "Iterator[str]":
    for finding in findings[:_SHOWN]:
        yield f"{finding.kind}: {finding.text}"
    if len(findings) > _SHOWN:
        yield f"... and {len(findings) - _SHOWN} more; --json names them all"
