"""A process that writes, for tests that trace it or starve it.

python -m tests.feature_store.writing_process fill STORE
python -m tests.feature_store.writing_process put FOLDER NAME N_BYTES
python -m tests.feature_store.writing_process race FOLDER N_WRITERS N_ROUNDS
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from feature_store.roots import open_root
from tests.feature_store.samples import fill_store

INVALID = (2, 17)
ROOT = Path(__file__).resolve().parents[2]


def _fill(store: str) -> None:
    fill_store(store, invalid=INVALID)


def _put(folder: str, name: str, n_bytes: str) -> None:
    open_root(folder).put(name, [b"a" * int(n_bytes), b"z"])


def _race(folder: str, n_writers: str, n_rounds: str) -> None:
    """Writers that all try to create the same names; prints how many of them won each."""
    wins = []
    for number in range(int(n_rounds)):
        ready, go = os.pipe()
        children = []
        for writer in range(int(n_writers)):
            child = os.fork()
            if child == 0:
                os.close(go)
                os.read(ready, 1)  # returns when the parent closes its end, for all at once
                won = open_root(folder).put_new(f"sub/{number}", f"writer {writer}".encode())
                os._exit(100 if won else 0)
            children.append(child)
        os.close(ready)
        os.close(go)
        wins.append(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 100 for child in children))
    print(*wins)


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs this module; its working directory is `ROOT`."""
    return [sys.executable, "-m", "tests.feature_store.writing_process", *map(str, arguments)]


_ACTIONS: dict[str, Callable[..., None]] = {"fill": _fill, "put": _put, "race": _race}

if __name__ == "__main__":
    _ACTIONS[sys.argv[1]](*sys.argv[2:])
