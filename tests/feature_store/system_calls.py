"""What a traced process did to files, from strace."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.feature_store.writing_process import ROOT

_FILE_CALLS = "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat"
_LINE = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<rest>.*)$")
# A call during which another thread's began is told in two lines; it counts where it ended.
_BEGUN = re.compile(r"^(?P<thread>\d+) +(?P<call>.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(?P<thread>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"|<(/[^>]*)>')


@dataclass(frozen=True, kw_only=True)
class Call:
    """One system call: its name, the absolute paths in its arguments, its result."""

    name: str
    paths: tuple[str, ...]
    result: int
    injected: bool


def trace(
    strace: str, command: Sequence[str], log: Path, *, inject: str | None = None
) -> tuple[list[Call], "subprocess.CompletedProcess[str]"]:
    """Run a command under strace, perhaps with an injected fault, and return its calls on files in order."""
    options = ["-f", "-y", "-qq", "-s", "4096", "-o", str(log), "-e", f"trace={_FILE_CALLS}", "-e", "signal=none"]
    if inject is not None:
        options += ["-e", f"inject={inject}"]
    done = subprocess.run([strace, *options, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    calls = []
    for line in _whole_lines(log.read_text().splitlines()):
        match = _LINE.match(line)
        if match is not None:
            found = tuple(quoted or described for quoted, described in _PATH.findall(match["arguments"]))
            paths = tuple(path.removesuffix("(deleted)") for path in found if path.startswith("/"))
            injected = "(INJECTED)" in match["rest"]
            calls.append(Call(name=match["name"], paths=paths, result=int(match["result"]), injected=injected))
    return calls, done


def _whole_lines(lines: Sequence[str]) -> Iterator[str]:
    begun: dict[str, str] = {}
    for line in lines:
        if beginning := _BEGUN.match(line):
            begun[beginning["thread"]] = beginning["call"]
        elif end := _ENDED.match(line):
            yield f"{end['thread']} {begun.pop(end['thread'])}{end['rest']}"
        else:
            yield line
