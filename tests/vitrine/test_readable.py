"""What a person sees: every page and table at 80 and at 200 columns, and names from files that are not plain text."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrine.cli import COMMANDS, FirstPage, app
from vitrine.help_pages import example_lines
from vitrine.output import column_widths
from vitrine.printable import printable, printable_json

from .conftest import Ran, Run, run_vitrine

WIDTHS = (80, 200)
NASTY = "a\x1b[31m\n\u202e[bold]" + "x" * 180 + ".png"


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, and every command of a group."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, each in getattr(command, "commands", {}).items():
            yield from walk(each, (*words, name))

    return walk(typer.main.get_command(app), ())


def at_width(width: int, *arguments: object) -> Ran:
    """A command at so many columns, in a process of this test."""
    return run_vitrine(*arguments, columns=width)


def require_readable(text: str, width: int) -> None:
    """No line is longer than the width, no character moves the cursor, and no column is one or two letters wide."""
    for line in text.splitlines():
        assert len(line) <= width, line
    assert not [each for each in text if unicodedata.category(each) in {"Cc", "Cf", "Cs"} and each != "\n"]
    pieces = [re.split("[│┃]", line) for line in text.splitlines()]
    assert not [cells for cells in pieces if any(len(cell) < 4 for cell in cells[1:-1])]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(*each, id=" ".join(("vitrine", *each[0]))) for each in commands()]
)
def test_every_help_page_fits_and_says_everything(words: tuple[str, ...], command: Any, width: int) -> None:
    ran = at_width(width, *words, "--help")
    assert (ran.code, ran.err) == (0, "")
    require_readable(ran.out, width)
    # Nothing is cut: each explanation stands there whole, from its first word to its last.
    shown = "".join(ran.out.split())
    for parameter in command.params:
        assert "".join((parameter.help or "").split()) in shown
    for each in getattr(command, "commands", {}).values():
        sentence = " ".join(inspect.cleandoc(each.help).split("\n\n")[0].split()).partition(". ")[0]
        assert sentence.replace(" ", "") in shown
    # And has half of the page for itself, so that a sentence is not a column of single words.
    starts = [match.end() for line in ran.out.splitlines() if (match := re.match(r" {2}-[^ ].*?  +(?=\S)", line))]
    assert all(start <= width // 2 for start in starts)


def test_every_command_stands_under_one_heading() -> None:
    listed = [name for names in FirstPage.headings.values() for name in names]
    assert sorted(listed) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_vitrine_alone_says_where_to_start(vitrine: Run, arguments: tuple[str, ...]) -> None:
    ran = vitrine(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "Start here:\n  vitrine demo\n" in ran.out


def test_version_is_that_of_the_distribution(vitrine: Run) -> None:
    assert re.fullmatch(r"vitrine \d+\.\d+\.\d+\n", vitrine("--version").out)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("words", [("ls",), ("show",), ("results",), ("knn",), ("variance",), ("models",), ("verify",)])
def test_every_table_is_readable(words: tuple[str, ...], width: int, tiny_store: Path) -> None:
    ran = at_width(width, *words, *([] if words == ("models",) else [tiny_store]))
    assert ran.code == 0, ran.err
    # The store's own path in a title may be longer than a line, and is broken there.
    require_readable(ran.out, width)


def test_models_says_where_each_file_is(vitrine: Run) -> None:
    listed = vitrine("models", "--json").json["models"]
    shown = at_width(200, "models").out
    assert all(entry["where"] in shown for entry in listed)


def test_a_terminal_of_80_columns_gets_lines_of_80(tiny_store: Path) -> None:
    command = ["script", "-qec", f"stty cols 80; {sys.executable} -m vitrine ls {tiny_store}", "/dev/null"]
    if shutil.which("script") is None:
        pytest.skip("there is no script(1) to make a terminal with")
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace("\r", "").splitlines()
    assert lines
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_of_files_do_nothing_to_the_terminal(
    width: int, tmp_path: Path, tiny_model: str, tiny_weights: Path
) -> None:
    folder = tmp_path / "images" / "one\x1b[1mclass"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "whole.png")
    (folder / NASTY).write_bytes(b"no image")
    store = tmp_path / "store"
    made = at_width(
        *(width, "extract", f"images:{tmp_path / 'images'}", "--model", tiny_model, "--weights", tiny_weights),
        *("--store", store),
    )
    assert made.code == 3, made.err
    shown = at_width(width, "show", store)
    assert r"a\x1b[31m\n\u202e[bold]xxx" in shown.out.replace("\n", "") or "..." in shown.out
    for ran in (made, shown, at_width(width, "query", store), at_width(width, "show", store, "--json")):
        require_readable(ran.out, 10_000 if ran.out.startswith("{") else width)
        require_readable(ran.err, 10_000)


def test_a_name_on_the_command_line_is_printed_as_text(vitrine: Run) -> None:
    ran = vitrine("ls", "store\x1b[2J")
    assert ran.code == 1
    assert r"store\x1b[2J" in ran.err
    assert "\x1b" not in ran.err


# --- with --json, an error is JSON too --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ls", "absent"), 1, "no store at"),
        (("knn", "absent", "--k", "x"), 1, "no store at"),
        (("knnn",), 2, "No such command 'knnn'. Did you mean 'knn'?"),
        (("knn", "s", "--metrc", "l2"), 2, "No such option: --metrc (Possible options: --metric)"),
        (("prune", "s"), 2, "Missing option '--name'"),
    ],
)
def test_an_error_is_one_json_object_where_json_was_asked_for(
    vitrine: Run, arguments: tuple[str, ...], code: int, said: str
) -> None:
    ran = vitrine(*arguments, "--json")
    assert (ran.code, ran.json["exit_code"]) == (code, code)
    assert said in ran.json["error"]
    assert ran.err == f"vitrine: error: {ran.json['error']}\n"


# --- the parts --------------------------------------------------------------------------------------------------------


@given(st.text())
def test_printable_text_is_one_line_of_visible_characters(text: str) -> None:
    shown = printable(text)
    assert not [each for each in shown if unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    assert len(printable(text, 20)) <= 20


def test_long_text_is_shortened_in_the_middle() -> None:
    assert printable("0123456789" * 3, 11) == "0123...6789"
    assert printable("short", 11) == "short"


@given(st.text())
def test_printable_json_is_the_same_value(text: str) -> None:
    shown = printable_json(json.dumps({"name": text}, ensure_ascii=False, indent=1))
    assert json.loads(shown) == {"name": text}
    assert not [each for each in shown if unicodedata.category(each) in {"Cc", "Cf", "Cs"} and each != "\n"]


@given(st.lists(st.lists(st.text("ab ", max_size=30), min_size=3, max_size=3)), st.integers(10, 120))
def test_columns_fit_or_there_is_no_table(cells: list[list[str]], total: int) -> None:
    widths = column_widths(("name", "b", "c"), cells, total)
    if widths is None:
        return
    assert sum(widths) + 3 * 2 <= total
    for row in cells:
        assert all(len(word) <= width for cell, width in zip(row, widths, strict=True) for word in cell.split())


def test_a_long_example_is_broken_as_a_shell_takes_it() -> None:
    line = "vitrine extract images:photos --model auto --weights mae_pretrain_vit_base.pth --store features"
    pieces = list(example_lines(line, 60))
    assert all(len(piece) <= 60 for piece in pieces)
    assert "".join(piece.removesuffix("\\") for piece in pieces).split() == line.split()
    assert all(piece.endswith(" \\") for piece in pieces[:-1])
