"""Imports and exports as a user sees them: a bar while they run, and a line that says what came of it."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_store import read_selection
from feature_store.exports import ExportOptions, ExportSubject, export_features
from pipelines.datasets import DatasetOptions
from pipelines.imports import (
    ImportOptions,
    ImportOutcome,
    ImportStatement,
    import_vectors,
    imported_dataset,
    open_vectors,
)
from vitrine import exits
from vitrine.exits import UsageError
from vitrine.opened import open_features
from vitrine.options import comma_separated
from vitrine.output import console, counted, print_json, size

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ImportWords:
    """What a user wrote of a source; see `vitrine import --help`."""

    source: str
    rows: Path | None
    column: tuple[str, ...]
    root: Path | None
    vectors: str | None
    grid: str | None
    prefix_tokens: int
    batched: bool
    name: str | None
    classes: str | None
    void: int | None

    def options(self) -> ImportOptions:
        """How the source is to be read.

        Raises:
            UsageError: a --column that is not NAME=OTHER.
        """
        pairs = [word.partition("=") for word in self.column]
        wrong = [word for word, (left, _, right) in zip(self.column, pairs, strict=True) if not left or not right]
        if wrong:
            raise UsageError(f"--column {wrong[0]!r}: write a manifest's column, =, and the table's, e.g. uri=path.")
        return ImportOptions(
            rows=self.rows,
            columns={left: right for left, _, right in pairs},
            vectors=self.vectors,
            prefix_tokens=self.prefix_tokens,
            batched=self.batched,
            root=self.root,
        )

    def lattice(self) -> tuple[int, int] | None:
        """The stated grid.

        Raises:
            UsageError: not HEIGHTxWIDTH.
        """
        if self.grid is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", self.grid)
        if match is None:
            raise UsageError(f"--grid {self.grid!r}: write height x width in patches, e.g. 16x16.")
        return int(match[1]), int(match[2])


def run_import(words: ImportWords, statement: ImportStatement, *, store: str, dry_run: bool, json: bool) -> int:
    """Read, check, store and report; returns the exit code."""
    options = DatasetOptions(
        name=words.name,
        classes=None if words.classes is None else comma_separated(words.classes, "--classes"),
        void=words.void,
    )
    with bar(quiet=json) as told:
        vectors = open_vectors(words.source, words.options())
        imported = imported_dataset(
            vectors, options, root=words.root, progress=lambda done, total: told("images", done, total)
        )
        outcome = import_vectors(vectors, imported, statement, store=store, dry_run=dry_run, progress=told)
    code = exits.DONE if dry_run and not outcome.interrupted else _code_of(outcome)
    if json:
        print_json({**outcome.to_json(), **({"dry_run": True} if dry_run else {}), "exit_code": code})
    elif not outcome.interrupted:
        _print_import(outcome, dry_run=dry_run)
    if outcome.interrupted:
        stands = (
            f"{outcome.committed + outcome.already} of {counted(outcome.total, 'shard')}"
            if outcome.total
            else "no shard"
        )
        print(f"vitrine: interrupted, {stands} committed; run the same command to go on", file=sys.stderr)
    return code


def _code_of(outcome: ImportOutcome) -> int:
    if outcome.interrupted:
        return 128 + outcome.interrupted
    return exits.INCOMPLETE if outcome.invalid else exits.DONE


def _print_import(outcome: ImportOutcome, *, dry_run: bool) -> None:
    out = console()
    if outcome.invalid:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(outcome.invalid.items()))
        out.print(f"invalid rows: {counts}, the first is {outcome.first_invalid!r}", markup=False)
    if dry_run:
        out.print(
            f"{outcome.feature_set}: {counted(outcome.rows, 'row')} of {counted(outcome.n_features, 'feature')}, "
            f"{outcome.total - outcome.already} of {counted(outcome.total, 'shard')} to write, "
            f"{size(outcome.stored_bytes)} in all; a dry run, so nothing was written",
            markup=False,
        )
        return
    done = "done already, nothing to write" if not outcome.committed else f"{outcome.committed} now"
    out.print(
        f"{outcome.feature_set}: {counted(outcome.rows, 'row')}, {outcome.committed + outcome.already} of "
        f"{counted(outcome.total, 'shard')} committed ({done}), {size(outcome.stored_bytes)}",
        markup=False,
    )


@contextlib.contextmanager
def bar(*, quiet: bool) -> Iterator[Told]:
    """A bar on a terminal's standard error, which follows what it is told; nothing elsewhere."""
    err = console(stderr=True)
    if quiet or not err.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as shown:
        task = shown.add_task("reading", total=None)
        yield lambda stage, done, total: shown.update(task, description=stage, completed=done, total=total)


def run_export(
    store: str,
    path: Path,
    *,
    to: str,
    features: str | None,
    subject: Mapping[str, Any],
    options: Mapping[str, Any],
    json: bool,
) -> int:
    """Choose, write and report; returns the exit code."""
    if "://" in str(path) or re.match(r"^[a-z0-9]+:/[^/]", str(path)):
        raise UsageError(f"{str(path)!r} is a URL; export to a path of this machine, and copy it from there.")
    if options["rows"] not in {"views", "patches"}:
        raise UsageError(f"--rows {options['rows']!r}: choose views or patches.")
    found = open_features(store, features)
    chosen, where = subject["selection"], subject["where"]
    exported = ExportSubject(
        found,
        kind=subject["kind"],
        layer=subject["layer"],
        selection=None if chosen is None else read_selection(found.root, chosen, any_layer=subject["any_layer"]),
        rows=None if where is None else found.where(where, time_limit_s=subject["time_limit_s"]).rows,
    )
    how = ExportOptions(
        overwrite=options["overwrite"],
        patches=options["rows"] == "patches",
        projection=options["projection"],
        seed=options["seed"],
        images=options["images"],
    )
    written = export_features(exported, to, path.expanduser(), how)
    if json:
        print_json({**exported.record(to), "path": str(path), "bytes": written})
        return exits.DONE
    left_out = f"; {exported.n_invalid} invalid rows left out" if exported.n_invalid else ""
    shape = " x ".join(map(str, (len(exported.rows), *exported.row_shape)))
    console().print(f"{path}: {to} of {found.name}, {exported.kind} {shape}, {size(written)}{left_out}", markup=False)
    return exits.DONE
