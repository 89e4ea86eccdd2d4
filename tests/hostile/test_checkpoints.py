"""Pickles written by hand against the reader that takes tensors beside objects: nothing runs, and memory is bounded."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.backbones import inert_pickle
from pipelines.backbones.checkpoint import read_checkpoint, read_state
from pipelines.backbones.inert_pickle import InertPickleError, InertUnpickler, Stub, TensorRecord
from pipelines.backbones.torch_archives import open_torch_file
from pipelines.backbones.weight_files import BackboneError


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A zip archive as torch writes one, with any pickle and any storages in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            file.writestr(f"archive/data/{key}", content)
    return path


def unpickle(pickled: bytes) -> Any:
    return InertUnpickler(io.BytesIO(pickled)).load()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def storage(numel: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Opcodes that leave a storage on the stack."""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(numel) + b"tQ"


def number(value: int) -> bytes:
    return b"\x8a" + bytes([len(raw := pickle.encode_long(value))]) + raw  # LONG1


def tensor(offset: int, shape: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, key: str = "0") -> bytes:
    """Opcodes that leave a tensor on the stack."""
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride)]
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    arguments = b"(" + storage(numel, key) + number(offset) + numbers[0] + numbers[1] + b"\x89Nt"
    return rebuild + arguments + b"R"


def state_with(opcodes: bytes) -> bytes:
    """A pickle of {"odd": what the opcodes leave, "args": Namespace()}."""
    return b"\x80\x02}(" + text("odd") + opcodes + text("args") + name("argparse", "Namespace") + b")Ru."


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


# Attacks on what stands for torch's functions: BUILD sets attributes, GLOBAL and STACK_GLOBAL look names up.
ATTACKS: dict[str, Callable[[str], bytes]] = {
    "build on a function": lambda _path: state_with(
        name("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("__defaults__") + b"(Ntsb\x86b"
    ),
    "build on the stub's class": lambda _path: state_with(
        name("os", "system") + b"N}" + text("__call__") + name("os", "system") + b"s\x86b"
    ),
    "call a stub": lambda path: state_with(name("os", "system") + b"(" + text(f"touch {path}") + b"tR"),
    "stack global": lambda path: (
        b"\x80\x04" + text("posix") + text("system") + b"\x93(" + text(f"touch {path}") + b"tR."
    ),
    "dotted name": lambda path: state_with(
        name("builtins", "__import__('os').system") + b"(" + text(f"touch {path}") + b"tR"
    ),
    "new object": lambda path: state_with(name("subprocess", "Popen") + b"(" + text(f"touch {path}") + b"t\x81"),
    "instance": lambda path: state_with(b"(" + text(f"touch {path}") + b"ios\nsystem\n"),
    "object": lambda path: state_with(b"(" + name("os", "system") + text(f"touch {path}") + b"o"),
    "parameter of a call": lambda path: state_with(
        name("torch._utils", "_rebuild_parameter")
        + b"("
        + name("os", "system")
        + b"("
        + text(f"touch {path}")
        + b"tR\x88NtR"
    ),
    "key of a mapping": lambda path: state_with(
        name("collections", "OrderedDict") + b"(]" + b"(" + name("os", "system") + text("a") + b"tatR"
    ),
    "extension": lambda _path: state_with(b"\x82\x01"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_handwritten_pickle_runs_nothing(attack: str, canary: Path, tmp_path: Path) -> None:
    before = {name: vars(inert_pickle)[name] for name in ("_tensor", "_parameter", "Stub")}
    defaults, methods = inert_pickle._tensor.__defaults__, dict(vars(Stub))
    path = archive(tmp_path / "weights.pth", ATTACKS[attack](str(canary)))
    try:
        checkpoint = read_checkpoint(path)
    except BackboneError:
        pass
    else:
        assert all(isinstance(value, torch.Tensor) for value in checkpoint.tensors.values())
    assert not canary.exists()
    assert {name: vars(inert_pickle)[name] for name in before} == before
    assert inert_pickle._tensor.__defaults__ == defaults
    assert dict(vars(Stub)) == methods


def test_tensors_are_read_from_a_handwritten_pickle(tmp_path: Path) -> None:
    content = struct.pack("<4f", 1, 2, 3, 4)
    path = archive(tmp_path / "weights.pth", state_with(tensor(1, (2,), (2,))), {"0": content})
    assert read_state(path)["odd"].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        (tensor(0, (5,), (1,)), "reaches beyond its storage"),
        (tensor(4, (1,), (1,)), "reaches beyond its storage"),
        (tensor(0, (2, 2), (4, 1)), "reaches beyond its storage"),
        (tensor(-1, (1,), (1,)), "not made of whole numbers"),
        (tensor(0, (1,), (-1,)), "not made of whole numbers"),
        (tensor(0, (2,), (1, 1)), "differ in length"),
        (tensor(0, (1,) * 17, (1,) * 17), "without a shape"),
        (tensor(0, (1_000_000, 1_000_000), (0, 0)), r"a form that is not \[1000000, 1000000\] plain numbers"),
        (tensor(0, (4,), (1,), key="../../etc/passwd"), "There is no item named"),
        (tensor(0, (8,), (1,), numel=8), "a storage that ends early"),
        (tensor(0, (1 << 40,), (1,), numel=1 << 40), "a storage that ends early"),
    ],
)
def test_tensors_that_lie_about_themselves_are_refused(tmp_path: Path, opcodes: bytes, said: str) -> None:
    path = archive(tmp_path / "weights.pth", state_with(opcodes), {"0": bytes(16)})
    with pytest.raises((InertPickleError, KeyError), match=said), open_torch_file(path) as file:
        file.read(file.content["odd"])
    with pytest.raises(BackboneError):
        read_state(path)


def test_records_cannot_be_changed_after_they_were_checked() -> None:
    changed = tensor(0, (4,), (1,)) + b"}" + text("shape") + b"(" + number(1 << 40) + b"tsb"
    record = unpickle(b"\x80\x02" + changed + b".")
    assert isinstance(record, TensorRecord)
    assert record.shape == (4,)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02" + b"}q\x00" * 2 + b"(" + b"h\x00" * (inert_pickle.MAX_PICKLE_BYTES // 2) + b"l.",
        b"\x80\x02](" + b"N" * inert_pickle.MAX_PICKLE_BYTES + b"e.",
    ],
    ids=["references", "values"],
)
def test_a_pickle_of_any_length_is_read_so_far_and_no_further(pickled: bytes) -> None:
    with pytest.raises(InertPickleError, match="a pickle of more than 16 MiB"):
        unpickle(pickled)


def test_mappings_copied_from_mappings_end(tmp_path: Path) -> None:
    many = b"(" + b"".join(number(n) + b"N" for n in range(100_000)) + b"u"
    copies = (name("collections", "OrderedDict") + b"(h\x00tR") * 200
    with pytest.raises(InertPickleError, match="without end"):
        unpickle(b"\x80\x02}q\x00" + many + b"(" + copies + b"l.")


BOMBS: dict[str, Callable[[Path], Path]] = {
    # A memo index of four billion: the unpickler in C would make room for it.
    "memo": lambda path: archive(path, b"\x80\x02}r\xff\xff\xff\xff" + text("a") + name("os", "system") + b"s."),
    "long string": lambda path: archive(path, b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a."),
    "frame": lambda path: archive(path, b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N."),
    "legacy storage": lambda path: _legacy(path, count=1 << 40),
    "legacy negative": lambda path: _legacy(path, count=-8),
    "a mapping in itself": lambda path: archive(path, b"\x80\x02}q\x00(" + text("model") + b"h\x00u."),
}


def _legacy(path: Path, *, count: int) -> Path:
    """A checkpoint in the form before archives, beside an object, whose storage claims `count` numbers."""
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps(["0"], 2)
    path.write_bytes(head + state_with(tensor(0, (4,), (1,))) + keys + struct.pack("<q", count) + bytes(16))
    return path


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    paths = [str(bomb(tmp_path / f"{index}.pth")) for index, bomb in enumerate(BOMBS.values())]
    program = """
import resource, sys
from pathlib import Path
from pipelines.backbones.checkpoint import read_checkpoint
from pipelines.backbones.weight_files import BackboneError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_checkpoint(Path(path))
    except BackboneError as error:
        print("refused")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert said[::2] == ["refused"] * len(paths)
    grown_kb = dict(zip(BOMBS, map(int, said[1::2]), strict=True))
    assert max(grown_kb.values()) < 200 << 10, grown_kb


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "weights.pth", state_with(tensor(0, (4,), (1,))), {"0": bytes(1 << 20)})
    raw = bytearray(path.read_bytes())
    # The directory's entry of the storage, a hundred times.
    directory = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entries, at = [], directory
    while at < end:
        n_name, n_extra, n_comment = struct.unpack_from("<HHH", raw, at + 28)
        entries.append(bytes(raw[at : at + 46 + n_name + n_extra + n_comment]))
        at += len(entries[-1])
    copies = [entries[-1].replace(b"data/0", f"data/{index}".encode()) for index in range(1, 10)]
    table = b"".join(entries + copies)
    tail = bytearray(raw[end:])
    struct.pack_into("<HHI", tail, 8, len(entries) + 9, len(entries) + 9, len(table))
    path.write_bytes(bytes(raw[:directory]) + table + bytes(tail))
    with pytest.raises(BackboneError, match=r"entries are larger than itself|Overlapped|not a readable checkpoint"):
        read_state(path)
