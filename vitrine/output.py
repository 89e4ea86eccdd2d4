"""What a command prints: one JSON object for machines, or a table for people."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitrine.printable import printable, printable_json

if TYPE_CHECKING:
    from feature_store import FeatureSet

# A pipe that says nothing of its width gets lines of so many characters.
_PIPE_COLUMNS = 160
# A column is not made narrower than its heading or its longest word, of which more than this may be broken.
_LONGEST_WORD = 40
# Of a path or a URI; what is longer says nothing more to a reader and pushes other columns out of the table.
MOST_CHARACTERS = 120
_BETWEEN = 3


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON cannot say become null."""
    print(printable_json(json.dumps(_sayable(value), indent=1, ensure_ascii=False)))


def _sayable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _sayable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; the first column is text, the others are right-aligned.

    Where its columns would become too narrow to read, each row is printed as lines of names and values instead.
    """
    out = console()
    cells = [[_cell(value) for value in row] for row in rows]
    out.print(Text(printable(title), style="bold"))
    widths = column_widths(columns, cells, out.width)
    if widths is None:
        for row in cells:
            _print_record(out, columns, row)
        return
    table = Table(show_edge=False, pad_edge=False, box=box.HEAVY_HEAD)
    for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
        table.add_column(column, justify="left" if index == 0 else "right", width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    out.print(table)


def column_widths(columns: Sequence[str], cells: Sequence[Sequence[str]], total: int) -> list[int] | None:
    """How many characters each column gets, or None where the table does not fit in a readable way.

    Args:
        columns: the headings.
        cells: the rows.
        total: characters of a line.
    """
    wanted = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    words = [[word for cell in column for word in cell.split()] for column in zip(columns, *cells, strict=True)]
    least = [max(min(len(word), _LONGEST_WORD) for word in column) for column in ([*each, ""] for each in words)]
    spare = total - _BETWEEN * (len(columns) - 1) - sum(least)
    if spare < 0:
        return None
    widths = list(least)
    # The narrowest needs are met first, so that as few columns as can be are broken.
    for index in sorted(range(len(wanted)), key=lambda index: wanted[index]):
        more = min(spare, wanted[index] - widths[index])
        widths[index] += more
        spare -= more
    return widths


def _print_record(out: Console, columns: Sequence[str], row: Sequence[str]) -> None:
    """One row as its first cell, and below it the others, each with its name."""
    out.print(Text(row[0], style="bold", overflow="fold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, cell in zip(columns[1:], row[1:], strict=True):
        if cell != "-":
            table.add_row(Text(name, style="dim"), Text(cell))
    out.print(Padding(table, (0, 0, 0, 2)))


def print_pairs(title: str, pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(printable(name), style="dim"), Text(_cell(value, most=None)))
    out = console()
    out.print(Text(printable(title), style="bold", overflow="fold"))
    out.print(table)


def assumed_pairs(assumed: Sequence[str]) -> dict[str, object]:
    """What neither a model's file nor its user said, and how to say it; nothing where all was said."""
    return {"assumed": f"{'; '.join(assumed)} (the file does not say; --arg NAME=VALUE does)"} if assumed else {}


def print_indented(*lines: str) -> None:
    """What belongs to the line before, each on as many lines as it needs."""
    out = console()
    for line in lines:
        out.print(Padding(Text(printable(line), overflow="fold"), (0, 0, 0, 2)))


class _PlainConsole(Console):
    """A console that takes text for text: neither markup nor control characters in it do anything."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`, with every string made printable; line breaks that we write ourselves stay."""
        shown = ("\n".join(map(printable, each.split("\n"))) if isinstance(each, str) else each for each in objects)
        super().print(*shown, **options)


def console(*, stderr: bool = False) -> Console:
    """Rich's console; a pipe gets wide lines instead of cut ones, unless COLUMNS says how wide they may be."""
    plain = _PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if plain.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return plain
    return _PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False, width=_PIPE_COLUMNS)


def counted(number: int, noun: str) -> str:
    """A number with what it counts, such as "1 shard" or "2 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def count_of_rows(features: "FeatureSet") -> str:
    """How many rows a feature set has; those that are only places of removed views are counted apart."""
    n_removed = features.n_removed
    live = str(features.spec.n_rows - n_removed)
    return f"{live} + {n_removed} removed" if n_removed else live


def size(n_bytes: float | None) -> str:
    """Bytes for people."""
    if n_bytes is None:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _cell(value: object, *, most: int | None = MOST_CHARACTERS) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        # Adding 0.0 takes the sign off a zero, which is what is left of a small negative number.
        return "-" if math.isnan(value) else f"{round(value, 4) + 0.0:.4f}"
    return printable(str(value), most)
