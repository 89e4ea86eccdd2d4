"""Tables that users write by hand or with a script: CSV, TSV and JSON lines, read in bounded memory, wrong lines named.

A cell that is empty, and a JSON null, is a missing value. What is nested in a manifest (tile, transform, objects) is a
JSON text in a CSV cell, and plain JSON in a line of JSON.
"""

import csv
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError, ManifestError

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
MAX_FILE_BYTES = 4 << 30
MAX_ROWS = 5_000_000
MAX_TEXT = 4096
_MAX_LINE_BYTES = 16 << 20
_ROWS_PER_BATCH = 8192
_SHOWN_CHARACTERS = 60
_MOST_NAMES = 1000
# What to write in a column of structures, whose types say little to whoever writes a table by hand.
_EXAMPLES = {
    "tile": '{"x":0,"y":0,"width":120,"height":120}',
    "transform": '{"name":"resize","parameters":"{\\"height\\":120,\\"width\\":120}"}',
    "objects": '[{"box":{"x":4,"y":8,"width":30,"height":20},"instance_id":1,"category":0,"polygon":[4,8,34,8,34,28]}]',
}
# A class is written as its number or as its name, and read as text; see `labels`.
_NUMBER_OR_NAME = ("label",)
_INTEGER_BITS = {pa.int32(): 32, pa.int64(): 64}
Cells = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table, and where each of its rows stands in the file.

    Attributes:
        table: the columns that were asked for and are there.
        lines: the number of each row's line, counted from 1.
        names: the columns of the file, known or not.
    """

    table: pa.Table
    lines: Sequence[int]
    names: Sequence[str]


def read_text_table(path: Path, types: Mapping[str, pa.DataType]) -> TextTable:
    """Read a CSV or TSV file with a header, or a file of JSON lines, by its suffix.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        types: the columns that are known, each with the type that its values must have; others are passed over.

    Raises:
        ManifestError: over the bounds, not UTF-8, a line that is not of the form, a column that stands there twice, or
            a value of the wrong type; with the number of the line.
    """
    size_bytes = path.stat().st_size
    if size_bytes > MAX_FILE_BYTES:
        raise ManifestError(f"{path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read. Split it.")
    reader = _Reader(path, types)
    read = reader.csv_rows if path.suffix.lower() in _SEPARATORS else reader.json_rows
    batches: list[pa.RecordBatch] = []
    lines = array("Q")
    pending: list[Cells] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in read(file):
                lines.append(line)
                pending.append(row)
                if len(lines) > MAX_ROWS:
                    raise ManifestError(f"{path} has more than {MAX_ROWS} rows, and no more are read. Split it.")
                if len(pending) == _ROWS_PER_BATCH:
                    batches.append(reader.batch(pending, lines))
                    pending = []
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8.") from error
    if pending:
        batches.append(reader.batch(pending, lines))
    if not batches:
        raise ManifestError(f"{path} has no rows; it needs at least one below its header.")
    return TextTable(
        table=_present(pa.Table.from_batches(batches), reader.seen), lines=lines, names=tuple(reader.names)
    )


def separator_in_header(names: Sequence[str], wanted: str) -> str | None:
    """The separator that a header was written with, where it was read with another; None where that is not the fault.

    Args:
        names: of the columns, as they were read.
        wanted: a column that would be there if the header were taken apart by that separator.
    """
    if len(names) != 1:
        return None
    return next((mark for mark in ",;\t|" if wanted in map(str.strip, names[0].split(mark)[:_MOST_NAMES])), None)


def _present(table: pa.Table, seen: set[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name in seen])


class _Reader:
    """Turns lines into rows of the known types."""

    def __init__(self, path: Path, types: Mapping[str, pa.DataType]) -> None:
        self._path, self._types = path, types
        self.seen: set[str] = set()
        self.names: dict[str, None] = {}

    def csv_rows(self, file: IO[str]) -> Iterator[tuple[int, Cells]]:
        """The rows below the header, each with the number of its last line."""
        # The limit is the process's own, and others read CSV too: it is only ever raised.
        csv.field_size_limit(max(_MAX_LINE_BYTES, csv.field_size_limit()))
        separator = _SEPARATORS[self._path.suffix.lower()]
        reader = csv.reader(_bounded_lines(self._path, file), delimiter=separator, strict=True)
        names: list[str] = []
        try:
            for cells in reader:
                if not names:
                    names = [name.strip() for name in cells]
                    self._check_names(names, 1)
                elif cells:  # an empty line is no row
                    yield reader.line_num, self._csv_row(names, cells, reader.line_num)
        except csv.Error as error:
            raise self._wrong(
                reader.line_num, f"is not CSV ({error}); quote texts that hold quotes or commas"
            ) from error

    def _csv_row(self, names: list[str], cells: list[str], line: int) -> Cells:
        if len(cells) != len(names):
            raise self._wrong(line, f"has {len(cells)} cells, and the header has {len(names)}; quote commas and tabs")
        row = {}
        for name, cell in zip(names, cells, strict=True):
            if cell and name in self._types:
                row[name] = self._from_text(name, cell, line)
        return row

    def json_rows(self, file: IO[str]) -> Iterator[tuple[int, Cells]]:
        """One row for each line that is not blank."""
        for line, text in enumerate(_bounded_lines(self._path, file), 1):
            if not text.strip():
                continue
            try:
                value = parse_json(text.encode("utf-8", "surrogatepass"), name="it", unique_names=True)
            except CorruptError as error:
                raise self._wrong(line, f"is not one JSON object: {str(error).partition('. ')[0]}") from error
            self._check_names(list(value), line)
            yield (
                line,
                {
                    name: self._typed(name, item, line)
                    for name, item in value.items()
                    if item is not None and name in self._types
                },
            )

    def _check_names(self, names: list[str], line: int) -> None:
        if len(set(names)) != len(names):
            raise self._wrong(line, f"has a column twice among {names[:20]}; name each once")
        self.seen.update(name for name in names if name in self._types)
        if len(self.names) < _MOST_NAMES:  # each line of JSON may bring others
            self.names.update(dict.fromkeys(names))
        self.names.update(dict.fromkeys(name for name in names if name in self._types))

    def _from_text(self, name: str, cell: str, line: int) -> Any:
        wanted = self._types[name]
        if pa.types.is_string(wanted):
            return self._typed(name, cell, line)
        try:
            if pa.types.is_integer(wanted):
                return self._typed(name, int(cell.strip()), line)
            if pa.types.is_floating(wanted):
                return self._typed(name, float(cell.strip()), line)
            # As a member of an object, since a list alone is no record of Vitrine's.
            return parse_json(f'{{"cell":{cell}}}'.encode("utf-8", "surrogatepass"), name="it", unique_names=True)[
                "cell"
            ]
        except (ValueError, KeyError) as error:
            if isinstance(error, ManifestError):
                raise
            raise self._wrong_value(name, cell, line) from error

    def _typed(self, name: str, value: Any, line: int) -> Any:
        """A value as its column's type wants it; nested ones are held to it by Arrow."""
        wanted = self._types[name]
        if pa.types.is_string(wanted):
            if name in _NUMBER_OR_NAME and type(value) is int:
                value = str(value)
            if not isinstance(value, str):
                raise self._wrong_value(name, value, line)
            if len(value.encode("utf-8", "surrogatepass")) > MAX_TEXT:
                raise self._wrong(line, f"has a text of more than {MAX_TEXT} bytes in column {name!r}; shorten it")
        elif pa.types.is_integer(wanted):
            bound = 1 << (_INTEGER_BITS[wanted] - 1)
            if type(value) is not int or not -bound <= value < bound:
                raise self._wrong_value(name, value, line)
        elif pa.types.is_floating(wanted) and (type(value) not in (int, float) or not math.isfinite(value)):
            raise self._wrong_value(name, value, line)
        return value

    def batch(self, rows: list[Cells], lines: Sequence[int]) -> pa.RecordBatch:
        """Rows as Arrow; where it refuses them, the first value that it refuses alone is named."""
        schema = pa.schema(list(self._types.items()))
        first = len(lines) - len(rows)
        try:
            return pa.RecordBatch.from_pylist(rows, schema=schema)
        except MemoryError:
            raise  # Arrow's too: the machine failed, not the data
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            for place, row in enumerate(rows):
                for name, value in row.items():
                    try:
                        pa.array([value], self._types[name])
                    except MemoryError:
                        raise  # Arrow's too: the machine failed, not the data
                    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                        raise self._wrong_value(name, value, lines[first + place]) from error
            raise

    def _wrong_value(self, name: str, value: Any, line: int) -> ManifestError:
        shown = repr(value) if isinstance(value, str) else json.dumps(value)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
        holds = f"values such as {_EXAMPLES[name]}" if name in _EXAMPLES else self._types[name]
        holds = "a class number or a class name" if name in _NUMBER_OR_NAME else holds
        return self._wrong(line, f"has {shown} in column {name!r}, which holds {holds}")

    def _wrong(self, line: int, what: str) -> ManifestError:
        return ManifestError(f"{self._path}, line {line} {what}.")


def _bounded_lines(path: Path, file: IO[str]) -> Iterator[str]:
    """Lines, of which none is longer than is read."""
    number = 0
    while text := file.readline(_MAX_LINE_BYTES):
        number += 1
        if len(text) == _MAX_LINE_BYTES:
            raise ManifestError(f"{path}, line {number} has more than {_MAX_LINE_BYTES} characters. Shorten it.")
        if "\0" in text:
            raise ManifestError(f"{path}, line {number} holds a NUL, so this is no file of text. Remove it.")
        yield text
