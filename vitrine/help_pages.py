"""What `--help` prints: plain text, as wide as the terminal up to a limit, with nothing in it cut off.

Rich's own pages give the explanations what its columns leave, 23 characters at a width of 80, and read `[/DIGEST]` in
a sentence as markup that was never opened. These have none.
"""

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from vitrine.exits import InterruptedCommandError

# Beyond it lines are long to read, whatever the terminal has.
MOST_COLUMNS = 120
_INDENT = 2
_CONTINUED = " \\"


class Page(TyperCommand):
    """A command whose examples fit the page."""

    def format_help_text(self, _ctx: Any, formatter: Any) -> None:
        """Write the docstring."""
        _write_text(self.help, formatter)


class Pages(TyperGroup):
    """A group whose commands stand under headings, each with its whole first sentence.

    Attributes:
        start_here: lines that a new user can type, with what each does.
        headings: the commands under each heading; those under none come last.
    """

    start_here: Sequence[tuple[str, str]] = ()
    headings: Mapping[str, Sequence[str]] = {}

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C leaves as an error of ours, since Typer ends a KeyboardInterrupt without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            raise InterruptedCommandError("interrupted; run the same command to go on") from stopped

    def format_help_text(self, _ctx: Any, formatter: Any) -> None:
        """Write the docstring, and where to start."""
        _write_text(self.help, formatter)
        if self.start_here:
            with formatter.section("Start here"):
                for line, meaning in self.start_here:
                    formatter.write_text(line)
                    with formatter.indentation():
                        formatter.write_text(meaning)

    def format_commands(self, _ctx: Any, formatter: Any) -> None:
        """Write every command under its heading."""
        named = {name for names in self.headings.values() for name in names}
        rest = [name for name in self.commands if name not in named]
        for heading, names in (*self.headings.items(), ("Commands", rest)):
            rows = [(name, _summary(self.commands[name])) for name in names]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def _summary(command: Any) -> str:
    """The first sentence of a command's help."""
    first = inspect.cleandoc(command.help or "").split("\n\n")[0]
    sentence, _, rest = " ".join(first.split()).partition(". ")
    return f"{sentence}." if rest else sentence


def _write_text(text: str | None, formatter: Any) -> None:
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text("\n\n".join(_fitted(paragraph, formatter.width - _INDENT) for paragraph in paragraphs))


def _fitted(paragraph: str, width: int) -> str:
    """A paragraph of examples, marked by a backspace, with each long line broken as a shell takes it."""
    if not paragraph.startswith("\b"):
        return paragraph
    lines = paragraph.splitlines()[1:]
    return "\n".join(["\b", *(piece for line in lines for piece in example_lines(line, width))])


def example_lines(line: str, width: int) -> Iterator[str]:
    """A command to type on as many lines as it needs, each but the last with a backslash at its end."""
    pieces = textwrap.wrap(
        line, width - len(_CONTINUED), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    if len(line) <= width:
        pieces = [line]
    for index, piece in enumerate(pieces):
        yield piece if index == len(pieces) - 1 else piece + _CONTINUED
