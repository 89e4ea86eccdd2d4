"""Processes under a tracer that sees every call on the files of a trial, counts them all, and may let one go wrong.

strace injects faults too, but counts the calls of each thread apart, so that the N-th call of a run cannot be named.
Here a seccomp filter stops the processes at calls on files alone, and everything else runs at full speed.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Linux on x86-64: the numbers of calls on files, and which arguments are paths or descriptors.
_CALLS = {
    2: "open", 257: "openat", 1: "write", 18: "pwrite64", 74: "fsync", 75: "fdatasync", 82: "rename", 264: "renameat",
    316: "renameat2", 86: "link", 265: "linkat", 87: "unlink", 263: "unlinkat", 83: "mkdir", 258: "mkdirat",
    84: "rmdir", 76: "truncate", 77: "ftruncate",
}  # fmt: skip
_PATHS_AT = {
    "open": (0,), "openat": (1,), "rename": (0, 1), "renameat": (1, 3), "renameat2": (1, 3), "link": (0, 1),
    "linkat": (1, 3), "unlink": (0,), "unlinkat": (1,), "mkdir": (0,), "mkdirat": (1,), "rmdir": (0,), "truncate": (0,),
}  # fmt: skip
_PLAIN_NAMES = {
    "openat": "open", "pwrite64": "write", "fdatasync": "fsync", "renameat": "rename", "renameat2": "rename",
    "linkat": "link", "unlinkat": "unlink", "mkdirat": "mkdir",
}  # fmt: skip
FILE_CALLS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir")
_ARGUMENT_REGISTERS = (14, 13, 12, 7, 9, 8)  # rdi rsi rdx r10 r8 r9 in user_regs_struct
_RAX, _ORIG_RAX, _RDX = 10, 15, 12
_N_REGISTERS = 27
_NOT_A_CALL = (1 << 64) - 1
_CONT, _GETREGS, _SETREGS, _SYSCALL, _SEIZE = 7, 12, 13, 24, 0x4206
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x80 | 0x100000  # sysgood, fork, vfork, clone, seccomp, kill with the tracer
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL = 0x40000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_TRACE, _ALLOW = 0x7FF00000, 0x7FFF0000
_PATH_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def why_not() -> str | None:
    """Why processes cannot be traced on this machine, or None where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the tracer knows Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    refused = _libc.ptrace(_SEIZE, child, None, _OPTIONS) != 0
    os.close(go)
    os.waitpid(child, 0)
    return "this machine does not let a process be traced" if refused else None


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def stop_at_file_calls() -> None:
    """Let this process and all its children stop for the tracer at every call on files; it cannot be taken back."""

    def instruction(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    numbers = sorted(_CALLS)
    lines = [instruction(_LOAD, 0, 0, 0)]
    lines += [instruction(_JUMP_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    lines += [instruction(_RETURN, 0, 0, _ALLOW), instruction(_RETURN, 0, 0, _TRACE)]
    text = ctypes.create_string_buffer(b"".join(lines))
    program = _Program(len(lines), ctypes.addressof(text))
    if _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or _libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


@dataclass(frozen=True, kw_only=True)
class FileCall:
    """One call on a file of the trial.

    Attributes:
        number: among all of the trial, from 0.
        name: `open`, `write`, ... whatever its variant.
        paths: absolute; of a descriptor, the file that it was opened as.
        data: what a `write` writes, where the trace asks for it.
        process: the id of the process.
        creates: whether an `open` may make the file.
    """

    number: int
    name: str
    paths: tuple[str, ...]
    data: bytes
    process: int
    creates: bool


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: `kill`, `errno`, `short` (of a write, half is written), `pause` (the call waits for the harness), or
            `none`, which only counts.
        at: the number of the call among those that match.
        names: calls that match; every one by default.
        parts: of their paths, one of which must be in them; the empty text is in all.
        error: the errno that the call gives, for `errno`.
        lasting: whether every later one goes wrong too.
    """

    kind: str
    at: int = 0
    names: Sequence[str] = FILE_CALLS
    parts: Sequence[str] = ("",)
    error: str = "EIO"
    lasting: bool = False

    def hits(self, matching: int) -> bool:
        """Whether the so-manieth matching call goes wrong."""
        return self.kind != "none" and (matching == self.at or (self.lasting and matching > self.at))


@dataclass
class Tracer:
    """Runs a child, which must stop at file calls, to its end.

    Args:
        child: its process id; it waits for the tracer before it begins.
        roots: only calls on files under these count.
        fault: what goes wrong.
        keep_data: whether written bytes are kept.
        on_pause: called, with everything of that process stopped, for the fault `pause`.
    """

    child: int
    roots: Sequence[str]
    fault: Fault
    keep_data: bool = False
    on_pause: Any = None
    calls: list[FileCall] = field(default_factory=list)
    matching: int = 0
    hit: list[FileCall] = field(default_factory=list)
    _restore: dict[int, int] = field(default_factory=dict)

    def attach(self) -> None:
        """Begin to trace; the child is then told to go on."""
        if _libc.ptrace(_SEIZE, self.child, None, _OPTIONS) != 0:
            raise OSError(ctypes.get_errno(), "the child cannot be traced")

    def run(self) -> int:
        """Go on until no traced process is left; gives the child's wait status."""
        status = 0
        for process, found in _waited():
            if os.WIFEXITED(found) or os.WIFSIGNALED(found):
                status = found if process == self.child else status
                continue
            self._answer(process, found)
        return status

    def _answer(self, process: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        request, deliver = _CONT, 0
        if event == _EVENT_SECCOMP:
            request = self._on_call(process)
        elif number == (signal.SIGTRAP | 0x80):
            self._on_return(process)
        elif event == 0:
            deliver = number
        # The process may be gone by now.
        _libc.ptrace(request, process, None, deliver)

    def _on_call(self, process: int) -> int:
        registers = (ctypes.c_ulonglong * _N_REGISTERS)()
        if _libc.ptrace(_GETREGS, process, None, ctypes.addressof(registers)) != 0:
            return _CONT
        call = self._read_call(process, registers)
        if call is None:
            return _CONT
        self.calls.append(call)
        if call.name not in self.fault.names or not any(
            part in path for part in self.fault.parts for path in call.paths
        ):
            return _CONT
        matching, self.matching = self.matching, self.matching + 1
        if not self.fault.hits(matching):
            return _CONT
        self.hit.append(call)
        return self._go_wrong(process, registers, call)

    def _go_wrong(self, process: int, registers: Any, call: FileCall) -> int:
        if self.fault.kind == "kill":
            os.kill(process, signal.SIGKILL)
        elif self.fault.kind == "pause":
            self.on_pause()
        elif self.fault.kind == "errno":
            registers[_ORIG_RAX] = _NOT_A_CALL
            registers[_RAX] = (1 << 64) - getattr(errno, self.fault.error)
            _libc.ptrace(_SETREGS, process, None, ctypes.addressof(registers))
        elif self.fault.kind == "short" and call.name == "write" and registers[_RDX] > 1:
            self._restore[process] = registers[_RDX]
            registers[_RDX] //= 2
            _libc.ptrace(_SETREGS, process, None, ctypes.addressof(registers))
            return _SYSCALL
        return _CONT

    def _on_return(self, process: int) -> None:
        """The caller may rely on its registers: only the result may differ."""
        before = self._restore.pop(process, None)
        registers = (ctypes.c_ulonglong * _N_REGISTERS)()
        if before is not None and _libc.ptrace(_GETREGS, process, None, ctypes.addressof(registers)) == 0:
            registers[_RDX] = before
            _libc.ptrace(_SETREGS, process, None, ctypes.addressof(registers))

    def _read_call(self, process: int, registers: Any) -> FileCall | None:
        exact = _CALLS[registers[_ORIG_RAX]]
        arguments = [registers[place] for place in _ARGUMENT_REGISTERS]
        try:
            if exact in _PATHS_AT:
                paths = tuple(_text_at(process, arguments[place]) for place in _PATHS_AT[exact])
            else:
                paths = (str(Path(f"/proc/{process}/fd/{arguments[0]}").readlink()),)
            if not any(path.startswith(root) for path in paths for root in self.roots):
                return None
            name = _PLAIN_NAMES.get(exact, exact)
            keep = self.keep_data and name == "write"
            data = _bytes_at(process, arguments[1], arguments[2]) if keep else b""
        except OSError:  # a descriptor that is not open, or a process that has just died
            return None
        flags = arguments[2] if exact == "openat" else arguments[1]
        return FileCall(
            number=len(self.calls), name=name, paths=paths, data=data, process=_group_of(process),
            creates=name == "open" and bool(flags & os.O_CREAT),
        )  # fmt: skip


def _waited() -> Iterator[tuple[int, int]]:
    while True:
        try:
            yield os.waitpid(-1, _WALL)
        except ChildProcessError:
            return


def _group_of(thread: int) -> int:
    status = Path(f"/proc/{thread}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Tgid")).split()[1])


def _bytes_at(process: int, address: int, n_bytes: int) -> bytes:
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 -- no buffering by Path.open either
        memory.seek(address)
        return memory.read(n_bytes)


def _text_at(process: int, address: int) -> str:
    page = 4096
    text = b""
    # Up to the end of the page, since the next one may not be there.
    while b"\0" not in text and len(text) < _PATH_BYTES:
        text += _bytes_at(process, address + len(text), page - (address + len(text)) % page)
    return os.fsdecode(text.split(b"\0", 1)[0])


def fault_from(value: Mapping[str, Any]) -> Fault:
    """A fault from JSON."""
    return Fault(**value)
