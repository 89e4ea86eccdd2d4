"""Vectors of somebody else's making as arrays that can be asked for any rows: npy files, or a spool of what was read.

No array is ever held in memory whole. An npy file is mapped. What cannot be asked for single rows (Parquet, batches in
.pt files) is written once to a temporary file without a name, which the kernel frees however the process ends.
"""

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np

from feature_store.errors import StoreError

Positions: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Values: TypeAlias = np.ndarray[Any, Any]
FLOATS = ("float16", "float32", "float64")


class ImportRefusedError(StoreError, ValueError):
    """Vectors that cannot become a feature set, with the reason and the way out."""


class SourceArray(Protocol):
    """Rows of numbers in the order of their source.

    Attributes:
        name: of the file, for errors.
        n_rows: how many.
        row_shape: of one row.
        dtype: of the values, one of `FLOATS`.
    """

    name: str
    n_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def take(self, positions: Positions) -> Values:
        """Some rows, in any order, as a new array [positions, *row_shape]."""
        ...


class NpyFile:
    """An npy file of [rows, ...], mapped.

    Raises:
        ImportRefusedError: no such file, not an npy file, cut short, of objects or whole numbers, or without rows.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._values: Values = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise ImportRefusedError(f"{path} does not exist; give an .npy file that numpy.save wrote.") from error
        except (ValueError, OSError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ImportRefusedError(
                f"{path} cannot be read as an npy file of numbers ({reason}); save it with numpy.save."
            ) from error
        if not isinstance(self._values, np.ndarray) or not self._values.ndim or not self._values.size:
            shape = getattr(self._values, "shape", "an archive of arrays")
            raise ImportRefusedError(f"{path} has shape {shape}, and must be [rows, features] or more, not empty.")
        require_floats(self._values.dtype, self.name)
        self.n_rows, self.row_shape = len(self._values), self._values.shape[1:]
        self.dtype = self._values.dtype.newbyteorder("=")

    def take(self, positions: Positions) -> Values:
        """See `SourceArray.take`."""
        return np.asarray(self._values[positions])


class Joined:
    """Several arrays as one, one after another.

    Raises:
        ImportRefusedError: they differ in the shape of a row or in dtype.
    """

    def __init__(self, parts: Sequence[SourceArray]) -> None:
        first = parts[0]
        for part in parts:
            if part.row_shape != first.row_shape or part.dtype != first.dtype:
                raise ImportRefusedError(
                    f"{part.name} has rows of {list(part.row_shape)} {part.dtype}, and {first.name} of "
                    f"{list(first.row_shape)} {first.dtype}; one feature set has one model's vectors."
                )
        self.name, self.row_shape, self.dtype = first.name, first.row_shape, first.dtype
        self._parts = parts
        self._ends = np.cumsum([part.n_rows for part in parts])
        self.n_rows = int(self._ends[-1])

    def take(self, positions: Positions) -> Values:
        """See `SourceArray.take`."""
        found = np.empty((len(positions), *self.row_shape), dtype=self.dtype)
        owners = np.searchsorted(self._ends, positions, side="right")
        for owner in np.unique(owners).tolist():
            here = owners == owner
            part = self._parts[owner]
            found[here] = part.take(positions[here] - (self._ends[owner] - part.n_rows))
        return found


class SliceOfTokens:
    """Some tokens of each row of an array [rows, tokens, features]; a single one loses its axis."""

    def __init__(self, source: SourceArray, tokens: slice | int) -> None:
        self._source, self._tokens = source, tokens
        self.name, self.n_rows, self.dtype = source.name, source.n_rows, source.dtype
        n_tokens, width = source.row_shape
        before = () if isinstance(tokens, int) else (len(range(n_tokens)[tokens]),)
        self.row_shape: tuple[int, ...] = (*before, width)

    def take(self, positions: Positions) -> Values:
        """See `SourceArray.take`."""
        return self._source.take(positions)[:, self._tokens]


class Spool:
    """Rows written once to a temporary file without a name, then asked for in any order.

    Args:
        name: of the source, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_rows = 0
        self.row_shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype("float32")
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="vitrine-import-")  # noqa: SIM115, lives as long as this
        # Before the file object itself is collected, which would warn of a file left open.
        weakref.finalize(self, self._file.close)
        self._map: Values | None = None

    def append(self, rows: Values, *, name: str) -> None:
        """Add rows [rows, ...] of the same shape and dtype as those before.

        Raises:
            ImportRefusedError: another shape or dtype, or no floating-point numbers; `name` says where.
        """
        require_floats(rows.dtype, name)
        if not self.n_rows:
            self.row_shape, self.dtype = rows.shape[1:], rows.dtype.newbyteorder("=")
        if rows.shape[1:] != self.row_shape or rows.dtype.newbyteorder("=") != self.dtype:
            raise ImportRefusedError(
                f"{name} has rows of {list(rows.shape[1:])} {rows.dtype}, and those before it of "
                f"{list(self.row_shape)} {self.dtype}; one feature set has one model's vectors."
            )
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
        self.n_rows += len(rows)

    def take(self, positions: Positions) -> Values:
        """See `SourceArray.take`."""
        if self._map is None:
            self._file.flush()
            shape = (self.n_rows, *self.row_shape)
            self._map = np.memmap(self._file, dtype=self.dtype, mode="r", shape=shape)
        return np.asarray(self._map[positions])


def require_floats(dtype: np.dtype[Any], name: str) -> None:
    """Refuse what is no floating-point number of a common size.

    Raises:
        ImportRefusedError: another dtype.
    """
    if dtype.newbyteorder("=").name not in FLOATS:
        raise ImportRefusedError(f"{name} holds {dtype}; vectors are {', '.join(FLOATS)}. Convert it with astype.")
