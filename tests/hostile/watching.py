"""What a process opens and whom it calls, told by Python's own audit events while a block runs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The interpreter, its packages and this project may be read at any time: imports are late.
_OWN = tuple(
    str(Path(folder).resolve())
    for folder in {
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).resolve().parents[2]),
        str(Path(str(os.__file__)).parent),
    }
)
_installed: list["Watched"] = []
_hooked = False


@dataclass
class Watched:
    """Files opened and hosts called."""

    opened: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    def outside(self, *allowed: Path) -> list[str]:
        """What was opened that lies neither under the allowed folders nor in the interpreter and this project."""
        roots = (*(str(folder.resolve()) for folder in allowed), *_OWN)
        return [path for path in self.opened if not any(path == root or path.startswith(f"{root}/") for root in roots)]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _installed:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _installed[-1].opened.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        _installed[-1].called.append(repr(arguments))


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Tell what is opened and called meanwhile; hooks cannot be removed, so one is installed and told to be quiet."""
    global _hooked  # noqa: PLW0603
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    watched = Watched()
    _installed.append(watched)
    try:
        yield watched
    finally:
        _installed.remove(watched)
