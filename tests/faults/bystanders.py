"""What goes on beside a run, or changes under it: readers, sweepers, another clock, less memory, a changed source."""

import datetime
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import feature_store.runs
import pipelines.run
from feature_store import open_store
from feature_store.errors import StoreError
from feature_store.roots import open_root
from feature_store.upkeep import collect_garbage, verify_store

_YEAR_S = 365.25 * 86400
# The processors are for the runs.
_PAUSE_S = 0.02


def set_clock(years_off: float) -> None:
    """Let Python's clocks in this process be wrong by so many years."""
    right, off = time.time, years_off * _YEAR_S
    time.time = lambda: right() + off

    class WrongDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = WrongDatetime  # type: ignore[misc]
    # They have the right one by name already.
    for module in (pipelines.run, feature_store.runs):
        module.datetime = WrongDatetime  # type: ignore[attr-defined]


def limit_memory(more_bytes: int) -> None:
    """Let this process take so much more memory than it has, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def change_source(change: Mapping[str, str]) -> None:
    """Do to the images what somebody else might: `remove` or `replace` one, or `add` one."""
    if change["kind"] == "remove":
        Path(change["path"]).unlink()
    else:
        shutil.copyfile(change["by"], change["path"])


def read_all_the_time(store: str, until: str, expected: str) -> int:
    """Read committed rows until `until` appears; every one must be what an undisturbed store holds.

    Prints how many blocks it read; the exit code says whether all were right.
    """
    whole = open_store(expected).features()
    right = {kind: whole.read("last", kind) for kind in whole.spec.identity.token_kinds}
    n_blocks = 0
    while not Path(until).exists():
        time.sleep(_PAUSE_S)
        try:
            features = open_store(store).features(whole.name, partial=True)
            for kind, tokens in right.items():
                for rows, block in features.iter_blocks("last", kind):
                    n_blocks += 1
                    if not np.array_equal(block, tokens[rows]):
                        print(f"rows {rows[0]}..{rows[-1]} of {kind} are wrong")
                        return 1
        except StoreError as error:
            # Before there is a store or a feature set, and nothing else.
            if "no store at" not in str(error) and "no feature set" not in str(error):
                print(error)
                return 1
    print(n_blocks)
    return 0


def sweep_all_the_time(store: str, until: str) -> int:
    """Sweep what dead writers left, as every run does when it begins; living ones must not mind."""
    swept = 0
    while not Path(until).exists():
        time.sleep(_PAUSE_S)
        swept += open_root(store).sweep_partials("")
    print(swept)
    return 0


def verify_all_the_time(store: str, until: str) -> int:
    """Verify to the last byte until `until` appears: a store that is being written is sound at every instant."""
    while not Path(until).exists():
        time.sleep(_PAUSE_S)
        if not Path(store, "vitrine.json").exists():
            continue
        problems = verify_store(open_root(store), deep=True).problems
        if problems:
            print(problems)
            return 1
    return 0


def collect_all_the_time(store: str, until: str) -> int:
    """Collect garbage, and remove it, until `until` appears; living runs must not miss anything."""
    n_collections = 0
    while not Path(until).exists():
        time.sleep(_PAUSE_S)
        if Path(store, "vitrine.json").exists():
            collect_garbage(open_root(store), remove=True)
            n_collections += 1
    print(n_collections)
    return 0
