"""What a command prints: one JSON object for machines, or a table for people."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON cannot say become null."""
    print(json.dumps(_sayable(value), indent=1, ensure_ascii=False))


def _sayable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _sayable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; the first column is text, the others are right-aligned."""
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out = console()
    out.print(title, style="bold", markup=False)
    out.print(table)


def print_pairs(title: str, pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(f"[dim]{name}[/dim]", _cell(value))
    out = console()
    out.print(f"[bold]{title}[/bold]")
    out.print(table)


def assumed_pairs(assumed: Sequence[str]) -> dict[str, object]:
    """What neither a model's file nor its user said, and how to say it; nothing where all was said."""
    return {"assumed": f"{'; '.join(assumed)} (the file does not say; --arg NAME=VALUE does)"} if assumed else {}


def console(*, stderr: bool = False) -> Console:
    """Rich's console; a pipe gets wide lines instead of cut ones."""
    plain = Console(stderr=stderr, highlight=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=160)


def counted(number: int, noun: str) -> str:
    """A number with what it counts, such as "1 shard" or "2 shards"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        # Adding 0.0 takes the sign off a zero, which is what is left of a small negative number.
        return "-" if math.isnan(value) else f"{round(value, 4) + 0.0:.4f}"
    # Names come from users' files: what looks like Rich's markup in them must stay text.
    return str(value).replace("[", r"\[")
