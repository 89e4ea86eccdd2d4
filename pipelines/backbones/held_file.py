"""A file held in memory: it is hashed while it is read, and whoever opens it afterwards reads what was hashed."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import BinaryIO

_BLOCK_BYTES = 1 << 24


class HeldFile(PosixPath):
    """The path of a file that is held in memory: whoever opens it reads the copy, and whoever prints it sees its name.

    Attributes:
        sha256: the digest of the bytes in memory, in hexadecimal.
    """

    sha256: str = ""
    # Of an index: the files that it names, each held.
    held_parts: "tuple[HeldFile, ...] | None" = None
    # Paths that are derived from this one, such as its neighbours, have no copy.
    _copy: str | None = None

    def __fspath__(self) -> str:
        return self._copy or str(self)

    @classmethod
    def of_copy(cls, path: Path, *, copy: str, sha256: str) -> "HeldFile":
        """The path of a file whose bytes can also be opened at another place, `copy`."""
        held = cls(path)
        held._copy, held.sha256 = copy, sha256
        return held

    @classmethod
    def of_parts(cls, index: Path, parts: "tuple[HeldFile, ...]", *, sha256: str) -> "HeldFile":
        """The path of an index whose files are held."""
        held = cls(index)
        held.held_parts, held.sha256 = parts, sha256
        return held


@contextlib.contextmanager
def hold(path: Path) -> Iterator[HeldFile]:
    """Copy a file into memory, hash what is copied, and let the block read it.

    What the block maps of the copy stays readable after it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file, _private_file() as copy:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            copy.write(block)
        copy.flush()
        yield HeldFile.of_copy(path, copy=f"/proc/self/fd/{copy.fileno()}", sha256=digest.hexdigest())


def _private_file() -> BinaryIO:
    """A new file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("weights"), "w+b")
    return tempfile.TemporaryFile()
