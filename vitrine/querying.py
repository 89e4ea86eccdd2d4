"""What `vitrine query` does: parse the words, ask the store, and show or write the answer."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluators import NearestRows, nearest, stored_query
from evaluators.neighbors import Metric
from evaluators.token_stream import TokensOn
from feature_store import FeatureRows, QueryError, RowQueries, StoreError, TokenKind, read_selection
from feature_store.canonical import canonical_json
from feature_store.identity import TOKEN_KINDS
from feature_store.query.columns import column_schema
from vitrine.output import console, print_json, print_table
from vitrine.questions import UsageError

_COLUMNS = ("row", "uri", "split", "label", "class_name")
_FORMATS = (".parquet", ".npy", ".csv")


@dataclass(frozen=True, kw_only=True)
class RowsRequest:
    """Rows, and what of them.

    Attributes:
        columns: of the manifest, and those that come with the rows.
        tokens: the token kind, or None for the columns alone.
        layer: of the tokens.
        patches: patch numbers, or None for all.
        limit: rows that a table or JSON shows.
    """

    columns: tuple[str, ...]
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
        names = _COLUMNS if columns is None else tuple(name.strip() for name in columns.split(",") if name.strip())
        column_schema(names)
        if not names:
            raise UsageError("--columns names none; separate names by commas.")
        kind: Any = tokens
        return cls(
            columns=names,
            tokens=kind,
            layer=layer,
            patches=None if patches is None else _ranges(patches),
            limit=limit,
        )


@dataclass(frozen=True, kw_only=True)
class NearestRequest:
    """What is nearest to a stored token.

    Attributes:
        row, patch: the query; without a patch it is the whole image.
        k: how many.
        on: `patches`, `cls`, `mean`; None for the natural one.
        metric, selection, layer: of the comparison.
    """

    row: int
    patch: int | None
    k: int
    on: TokensOn | None
    metric: Metric
    selection: str | None
    layer: str

    @classmethod
    def parse(
        cls, place: str, *, k: int, on: str | None, metric: str, selection: str | None, layer: str
    ) -> "NearestRequest":
        """The request that the options name.

        Raises:
            UsageError: an unknown word, or no ROW[:PATCH].
        """
        row, colon, patch = place.partition(":")
        if not _is_number(row) or (colon and not _is_number(patch)):
            raise UsageError(f"--nearest {place!r}: give a row number, or row and patch as in 12:40.")
        allowed = ("patches",) if colon else ("cls", "mean")
        if on is not None and on not in allowed:
            raise UsageError(f"--on {on!r} with --nearest {place}: choose {' or '.join(allowed)}.")
        if metric not in get_args(Metric):
            raise UsageError(f"--metric {metric!r}: choose {', '.join(get_args(Metric))}.")
        words: Any = {"on": on, "metric": metric}
        return cls(row=int(row), patch=int(patch) if colon else None, k=k, selection=selection, layer=layer, **words)


def answer_rows(rows: RowQueries, request: RowsRequest, *, output: Path | None, json: bool) -> None:
    """Show rows, or write them."""
    features = rows.features
    record = {"features": features.name, "n_rows": len(rows.rows)}
    if output is not None:
        written = _write_rows(rows, request, output)
        if json:
            print_json({**record, "output": str(output), **written})
        else:
            _say_written(output, written, of=len(rows.rows))
        return
    shown = FeatureRows(features, rows.rows[: request.limit]).columns(request.columns)
    if json:
        print_json({**record, "rows": shown.to_pylist()})
        return
    values = [tuple(_shown(value) for value in row.values()) for row in shown.to_pylist()]
    print_table(f"{features.name}: {len(rows.rows)} of {features.spec.n_rows} rows", request.columns, values)
    if len(values) < len(rows.rows):
        console().print(f"the first {len(values)}; --limit shows more, --output FILE writes all")


def _write_rows(rows: RowQueries, request: RowsRequest, output: Path) -> dict[str, int]:
    """Write, and say how many rows, and how many of them have no tokens."""
    n_rows = len(rows.rows)
    if request.tokens is None:
        reader = rows.to_arrow(kind=None, columns=request.columns)
        write = _write_csv if output.suffix == ".csv" else _write_parquet
        write(reader, output)
        return {"rows_written": n_rows}
    without = int((~rows.features.valid[rows.rows]).sum())
    if output.suffix == ".npy":
        _write_npy(rows, request, output)
        return {"rows_written": n_rows - without, "rows_without_tokens": without}
    reader = rows.to_arrow(request.layer, request.tokens, patches=request.patches, columns=request.columns)
    _write_parquet(reader, output)
    return {"rows_written": n_rows, "rows_without_tokens": without}


def _say_written(output: Path, written: Mapping[str, int], *, of: int) -> None:
    line = f"wrote {output}: {written['rows_written']} of {of} rows"
    without = written.get("rows_without_tokens", 0)
    if without:
        fate = "left out" if output.suffix == ".npy" else "null"
        line += f"; {without} without tokens are {fate} (--where 'NOT valid' lists them)"
    console().print(line, markup=False, soft_wrap=True)


def answer_nearest(rows: RowQueries, request: NearestRequest, *, output: Path | None, json: bool) -> None:
    """Show what is nearest, or write it."""
    if output is not None and checked_output(output) == ".npy":
        raise UsageError(f"--output {output}: neighbours are rows of columns; write .csv or .parquet.")
    features = rows.features
    on: TokensOn = request.on or (
        "patches" if request.patch is not None else "cls" if "cls" in features.spec.identity.token_kinds else "mean"
    )
    vector = stored_query(features, request.row, request.patch, on=on, layer=request.layer)
    selection = None if request.selection is None else read_selection(features.root, request.selection)
    found = nearest(rows, vector, request.k, on=on, layer=request.layer, metric=request.metric, selection=selection)
    (entries,) = found.to_json()
    about = {"on": on, "metric": request.metric, "row": request.row, "patch": request.patch}
    if output is not None:
        _write_neighbors(found, output)
    if json:
        print_json({"features": features.name, **about, "selection": request.selection, "nearest": entries})
    elif output is not None:
        _say_written(output, {"rows_written": len(entries)}, of=len(entries))
    else:
        place = f"row {request.row}" + ("" if request.patch is None else f", patch {request.patch}")
        print_table(
            f"{features.name}: nearest to {place} on {on}, {request.metric}",
            ("rank", "row", "patch", "score", "uri", "tile"),
            [tuple(_shown(value) for value in entry.values()) for entry in entries],
        )


def _write_neighbors(found: NearestRows, output: Path) -> None:
    entries = found.to_json()[0]
    table = pa.Table.from_pylist(
        entries,
        schema=pa.schema(
            [
                ("rank", pa.int64()),
                *((name, column_schema([name]).field(0).type) for name in ("row",)),
                ("patch", pa.int64()),
                ("score", pa.float32()),
                *((name, column_schema([name]).field(0).type) for name in ("uri", "tile")),
            ]
        ),
    )
    write = _write_csv if output.suffix == ".csv" else _write_parquet
    write(table.to_reader(), output)


def checked_output(output: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        UsageError: another one, or a place that no file can be written to.
    """
    if output.suffix not in _FORMATS or output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: name a {', '.join(_FORMATS)} file in a folder that exists.")
    return output.suffix


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A file beside `output` to write to, which takes its place when it is whole and goes when it is not."""
    partial = output.with_name(f".{output.name}.partial")
    try:
        yield partial
        partial.replace(output)
    except OSError as error:
        raise StoreError(f"{output} cannot be written ({error.strerror or error}); name another place.") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_parquet(reader: pa.RecordBatchReader, output: Path) -> None:
    with _replacing(output) as partial, pq.ParquetWriter(partial, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def _write_csv(reader: pa.RecordBatchReader, output: Path) -> None:
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
    shape = features.read(request.layer, request.tokens, [], request.patches).shape[1:]
    dtype = features.read(request.layer, request.tokens, [], request.patches).dtype
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(numbers), *shape)}
    )
    with _replacing(output) as partial, partial.open("wb") as file:
        file.write(header.getvalue())
        blocks = features.iter_blocks(request.layer, request.tokens, rows=numbers, patches=request.patches)
        for _, block in blocks:
            file.write(np.ascontiguousarray(block).data)


def _cell(value: Any) -> Any:
    return canonical_json(value) if isinstance(value, dict | list) else value


def _shown(value: Any) -> Any:
    """A cell of a table: a tile as x,y,width,height, other structures as JSON."""
    if isinstance(value, dict) and set(value) == {"x", "y", "width", "height"}:
        return ",".join(str(value[axis]) for axis in ("x", "y", "width", "height"))
    return _cell(value)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 12


def _ranges(text: str) -> tuple[int, ...]:
    """Numbers and ranges, both ends included: `0,1,16-31`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)) or (dash and int(last) - int(first) > 1 << 20):
            raise QueryError(f"--patches {text!r}: give patch numbers and ranges, as in 0,1,16-31.")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(numbers)
