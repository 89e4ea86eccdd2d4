"""The bar of a running extraction: read from the workers' counter files and the receipts, never asked of them."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from pipelines.meter import STAGES, read_counts
from vitrine.output import console, duration

_POLL_S = 0.25
# Without a terminal a line now and then says as much as a bar.
_LINE_EVERY_S = 30.0


@contextlib.contextmanager
def extraction_bar(folder: Path, n_rows: int, n_reused: int, *, quiet: bool) -> Iterator[None]:
    """Show how far the run in `folder` is while the block runs.

    Args:
        folder: of the workers' counter files.
        n_rows: rows to compute.
        n_reused: rows to copy.
        quiet: show nothing.
    """
    if quiet:
        yield
        return
    out = console(stderr=True)
    done = threading.Event()
    target = _draw_bar if out.is_terminal else _print_lines
    thread = threading.Thread(target=target, args=(folder, n_rows, n_reused, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def counting_bar(words: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar of work that this process does: the block gets a function that takes how much is done, of how much."""
    out = console(stderr=True)
    if quiet or not out.is_terminal:
        yield lambda _done, _total: None
        return
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _draw_bar(folder: Path, n_rows: int, n_reused: int, done: threading.Event) -> None:
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[split]}", style="dim"),
    )
    start = time.monotonic()
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_rows + n_reused, rate="starting", split="")
        finished = False
        while not finished:
            finished = done.wait(_POLL_S)
            rows, rate, split = _state(folder, n_rows, n_reused, start)
            bar.update(task, completed=rows, rate=rate, split=split)


def _print_lines(folder: Path, n_rows: int, n_reused: int, done: threading.Event) -> None:
    start = time.monotonic()
    while not done.wait(_LINE_EVERY_S):
        rows, rate, split = _state(folder, n_rows, n_reused, start)
        console(stderr=True).print(f"extracting {rows}/{n_rows + n_reused}  {rate}  {split}")


def _state(folder: Path, n_rows: int, n_reused: int, start: float) -> tuple[int, str, str]:
    """Rows done, computed or copied; how fast; and where the seconds go."""
    counts = read_counts(folder)
    computed, copied = sum(count.rows for count in counts), sum(count.reused for count in counts)
    done = min(n_rows + n_reused, computed + copied)
    reused = f", {copied} reused" if copied else ""
    began = min((c.computing_since for c in counts if c.computing_since is not None), default=None)
    if not computed or began is None:
        return done, f"starting ({duration(time.monotonic() - start)}){reused}", ""
    rate = computed / max(1e-6, time.time() - began)
    seconds = {name: sum(count.seconds[name] for count in counts) for name in STAGES}
    total = max(1e-9, sum(seconds.values()))
    split = " ".join(f"{name} {value / total:.0%}" for name, value in seconds.items() if value)
    left = max(0, n_rows - computed) / rate
    return done, f"{rate:.1f} images/s, {duration(left)} left{reused}", split


@contextlib.contextmanager
def reading_bar(label: str = "reading", *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on a terminal; nothing elsewhere.

    Yields:
        What to call with the bytes just done and how many there will be.
    """
    out = console(stderr=True)
    columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=quiet or not out.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def advance(n_bytes: int, bytes_in_all: int) -> None:
            bar.update(task, advance=n_bytes, total=bytes_in_all)

        yield advance
