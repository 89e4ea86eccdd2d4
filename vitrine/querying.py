"""What `vitrine query` does with rows: parse the words, ask the store, and show or write the answer; without torch."""

import csv
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import FeatureRows, FeatureSet, QueryError, RowQueries, TokenKind
from feature_store.canonical import canonical_json
from feature_store.exports import appearing_file
from feature_store.identity import TOKEN_KINDS
from feature_store.manifest import TILE_AXES
from feature_store.query.columns import column_batches, column_schema
from vitrine.exits import UsageError
from vitrine.options import comma_separated
from vitrine.output import console, count_of_rows, print_json, print_table

_LABELLING = ("split", "label", "class_name")
_FORMATS = (".parquet", ".npy", ".csv")


@dataclass(frozen=True, kw_only=True)
class RowsRequest:
    """Rows, and what of them.

    Attributes:
        columns: of the manifest, and those that come with the rows; None for the usual ones.
        tokens: the token kind, or None for the columns alone.
        layer: of the tokens.
        patches: patch numbers, or None for all.
        limit: rows that a table or JSON shows.
    """

    columns: tuple[str, ...] | None
    tokens: TokenKind | None
    layer: str
    patches: tuple[int, ...] | None
    limit: int

    @classmethod
    def parse(
        cls,
        columns: str | None,
        *,
        tokens: str | None,
        layer: str,
        patches: str | None,
        limit: int,
        output: Path | None,
    ) -> "RowsRequest":
        """The request that the options name.

        Raises:
            UsageError: an unknown word, or options that do not go together.
            QueryError: an unknown column.
        """
        if tokens is not None and tokens not in TOKEN_KINDS:
            raise UsageError(f"--tokens {tokens!r}: choose {', '.join(TOKEN_KINDS)}.")
        suffix = None if output is None else checked_output(output)
        if tokens is None and (patches is not None or suffix == ".npy"):
            raise UsageError("--patches and .npy are about tokens; say which with --tokens.")
        if tokens is not None and suffix in {None, ".csv"}:
            raise UsageError(
                f"--tokens {tokens} needs --output FILE.parquet or FILE.npy; a table or csv holds columns."
            )
        if suffix == ".npy" and columns is not None:
            raise UsageError("--columns do not fit into .npy, which holds tokens alone; write .parquet.")
        names = None if columns is None else comma_separated(columns, "--columns")
        column_schema(names or ())
        kind: Any = tokens
        return cls(
            columns=names,
            tokens=kind,
            layer=layer,
            patches=None if patches is None else _ranges(patches),
            limit=limit,
        )


def answer_rows(rows: RowQueries, request: RowsRequest, *, output: Path | None, json: bool) -> None:
    """Show rows, or write them."""
    features = rows.features
    columns = _default_columns(features) if request.columns is None else request.columns
    record = {"features": features.name, "n_rows": len(rows.rows)}
    if output is not None:
        written = _write_rows(rows, request, output, columns=columns)
        if json:
            print_json({**record, "output": str(output), **written})
        else:
            say_written(output, written, of=len(rows.rows))
        return
    shown = FeatureRows(features, rows.rows[: request.limit]).columns(columns)
    if json:
        print_json({**record, "rows": shown.to_pylist()})
        return
    values = [tuple(shown_value(value) for value in row.values()) for row in shown.to_pylist()]
    print_table(f"{features.name}: {len(rows.rows)} of {count_of_rows(features)} rows", columns, values)
    if len(values) < len(rows.rows):
        console().print(f"the first {len(values)}; --limit shows more, --output FILE writes all")


def _default_columns(features: FeatureSet) -> tuple[str, ...]:
    """What tells the rows apart: the tiles of an image share its uri."""
    tiles = column_batches(features, ["tile"])
    tiled = any(batch.column("tile").null_count < batch.num_rows for batch in tiles)
    return ("row", "uri", *(("tile",) if tiled else ()), *_LABELLING)


def _write_rows(rows: RowQueries, request: RowsRequest, output: Path, *, columns: tuple[str, ...]) -> dict[str, int]:
    """Write, and say how many rows, and how many of them have no tokens."""
    n_rows = len(rows.rows)
    if request.tokens is None:
        reader = rows.to_arrow(kind=None, columns=columns)
        write = write_csv if output.suffix == ".csv" else write_parquet
        write(reader, output)
        return {"rows_written": n_rows}
    if output.suffix == ".npy":
        _write_npy(rows, request, output)
    else:
        reader = rows.to_arrow(request.layer, request.tokens, patches=request.patches, columns=columns)
        write_parquet(reader, output)
    without = int((~rows.features.valid[rows.rows]).sum())
    return {"rows_written": n_rows - without, "rows_without_tokens": without}


def say_written(output: Path, written: Mapping[str, int], *, of: int) -> None:
    """One line about a file that was written."""
    line = f"wrote {output}: {written['rows_written']} of {of} rows"
    without = written.get("rows_without_tokens", 0)
    if without:
        line += f"; {without} without tokens left out (--where 'NOT valid' lists them)"
    console().print(line, markup=False, soft_wrap=True)


def checked_output(output: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        UsageError: another one, or a place that no file can be written to.
    """
    if output.suffix not in _FORMATS or output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: name a {', '.join(_FORMATS)} file in a folder that exists.")
    return output.suffix


def _replacing(output: Path) -> AbstractContextManager[Path]:
    """A file beside `output` to write to, which takes its place when it is whole and goes when it is not."""
    # Whether something there gives way was asked before the work began.
    return appearing_file(output, overwrite=True)


def write_parquet(reader: pa.RecordBatchReader, output: Path) -> None:
    """Batch by batch."""
    with _replacing(output) as partial, pq.ParquetWriter(partial, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def write_csv(reader: pa.RecordBatchReader, output: Path) -> None:
    """Columns as text; structures and lists as JSON."""
    with _replacing(output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(reader.schema.names)
        for batch in reader:
            columns = [[_cell(value) for value in column.to_pylist()] for column in batch.columns]
            writer.writerows(zip(*columns, strict=True))


def _write_npy(rows: RowQueries, request: RowsRequest, output: Path) -> None:
    """The tokens of the rows that have some, block by block."""
    assert request.tokens is not None
    features = rows.features
    numbers = rows.rows[features.valid[rows.rows]]
    empty = features.read(request.layer, request.tokens, [], request.patches)
    description = {
        "descr": np.lib.format.dtype_to_descr(empty.dtype),
        "fortran_order": False,
        "shape": (len(numbers), *empty.shape[1:]),
    }
    with _replacing(output) as partial, partial.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, description)
        blocks = features.iter_blocks(request.layer, request.tokens, rows=numbers, patches=request.patches)
        for _, block in blocks:
            file.write(np.ascontiguousarray(block).data)


def _cell(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value


def shown_value(value: Any) -> Any:
    """A cell of a table: a tile as x,y,width,height, other structures as JSON."""
    if isinstance(value, dict) and set(value) == set(TILE_AXES):
        return ",".join(str(value[axis]) for axis in TILE_AXES)
    return _cell(value)


def is_number(text: str) -> bool:
    """Whether a word is a plain number that fits."""
    return text.isascii() and text.isdecimal() and len(text) < 12


def _ranges(text: str) -> tuple[int, ...]:
    """Numbers and ranges, both ends included: `0,1,16-31`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not is_number(first) or (dash and not is_number(last)) or (dash and int(last) - int(first) > 1 << 20):
            raise QueryError(f"--patches {text!r}: give patch numbers and ranges, as in 0,1,16-31.")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(numbers)
