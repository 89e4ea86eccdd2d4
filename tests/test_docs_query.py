"""docs/query.md: its blocks run in order on a small store, and print what the page says."""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.feature_store.samples import fill_store
from tests.vitrine.conftest import run_vitrine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "query.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store that the page speaks of, in the current folder."""
    fill_store(str(tmp_path / "features"), invalid=[3])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "features"


@pytest.mark.usefixtures("store")
def test_every_block_of_the_page_prints_what_stands_behind_it() -> None:
    pytest.importorskip("xarray")
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    printed, said = [], []
    for number, (language, content) in enumerate(blocks):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(content, f"{PAGE.name}, block {number}", "exec"), names)
            printed.append(out.getvalue())
        elif language == "text":
            said.append(content)
    assert printed == said
    assert len(said) >= 9


@pytest.mark.usefixtures("store")
def test_every_command_of_the_page_prints_what_stands_behind_it() -> None:
    (session,) = [content for language, content in _BLOCK.findall(PAGE.read_text("utf-8")) if language == "console"]
    commands = re.split(r"^\$ vitrine ", session, flags=re.MULTILINE)[1:]
    for command in commands:
        line, _, said = command.partition("\n")
        ran = run_vitrine(*shlex.split(line))
        assert ran.code == 0, ran.err
        assert ran.out == said
    assert len(commands) == 5
