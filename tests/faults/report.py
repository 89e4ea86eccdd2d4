"""docs/reliability.md, from what was tried. A part of the table may be tried alone; the other lines stay."""

from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness import ROOT, Row

PLACE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- table -->\n", "<!-- end of table -->\n"
_HEAD = ["| fault | times tried | rows lost | rows wrong | what the user saw |", "| --- | --- | --- | --- | --- |"]
_MOST_LINES = 3


def write_report(rows: Sequence[Row], *, place: Path = PLACE) -> None:
    """Put the lines of these faults into the page's table, in place of what stood there for them.

    Args:
        rows: of the table.
        place: the page; its text stands around two marks, and the table between them.
    """
    head, _, rest = place.read_text().partition(_BEGIN)
    table, _, tail = rest.partition(_END)
    lines = {_fault_of(line): line for line in table.splitlines()[len(_HEAD) :] if line.startswith("|")}
    lines |= {row.fault: _line(row) for row in rows}
    total = sum(int(line.split(" | ")[1]) for line in lines.values())
    text = "\n".join([*_HEAD, *sorted(lines.values()), "", f"{total} trials.", ""])
    place.write_text(f"{head}{_BEGIN}{text}{_END}{tail}")


def _line(row: Row) -> str:
    seen = [f"{count} x {_plain(line)}" for line, count in row.saw.most_common(_MOST_LINES)]
    others = sum(count for _, count in row.saw.most_common()[_MOST_LINES:])
    if others:
        seen.append(f"{others} x other lines")
    if row.wrong:
        seen.append(f"**{len(row.wrong)} did not end as they must**")
    return f"| {row.fault} | {row.tried} | {row.rows_lost} | {row.rows_wrong} | {'<br>'.join(seen)} |"


def _fault_of(line: str) -> str:
    return line.split(" | ", maxsplit=1)[0].removeprefix("| ")


def _plain(line: str) -> str:
    return line.replace("|", "/").replace("<", "&lt;")
