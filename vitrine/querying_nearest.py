"""What `vitrine query --nearest` does: parse the words, search the store, and show or write the neighbours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from evaluators import NearestRows, nearest, stored_query
from evaluators.parameters import Metric
from evaluators.subject import KIND_READ
from evaluators.token_stream import TokensOn
from feature_store import QueryError, RowQueries, made_elsewhere, read_selection
from feature_store.query.columns import COLUMNS
from vitrine.exits import UsageError
from vitrine.output import print_json, print_table
from vitrine.querying import checked_output, is_number, say_written, shown_value, write_csv, write_parquet

_DEFAULT_K = 10
_NEIGHBORS = pa.schema(
    [
        pa.field("rank", pa.int64()),
        COLUMNS.field("row"),
        pa.field("patch", pa.int64()),
        pa.field("score", pa.float32()),
        COLUMNS.field("uri"),
        COLUMNS.field("tile"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class NearestRequest:
    """What is nearest to a stored token.

    Attributes:
        row, patch: the query; without a patch it is the whole image.
        k: how many; None for ten, or as many as there are.
        on: `patches`, `cls`, `mean`; None for the natural one.
        metric, selection, layer: of the comparison.
        any_layer: take a selection that was made on other tokens.
    """

    row: int
    patch: int | None
    k: int | None
    on: TokensOn | None
    metric: Metric
    selection: str | None
    layer: str
    any_layer: bool = False

    @classmethod
    def parse(
        cls,
        place: str,
        *,
        k: int | None,
        on: str | None,
        metric: str,
        selection: str | None,
        layer: str,
        output: Path | None,
    ) -> "NearestRequest":
        """The request that the options name.

        Raises:
            UsageError: an unknown word, no ROW[:PATCH], or an output that holds no columns.
        """
        if output is not None and checked_output(output) == ".npy":
            raise UsageError(f"--output {output}: neighbours are rows of columns; write .csv or .parquet.")
        row, colon, patch = place.partition(":")
        if not is_number(row) or (colon and not is_number(patch)):
            raise UsageError(f"--nearest {place!r}: give a row number, or row and patch as in 12:40.")
        allowed = ("patches",) if colon else ("cls", "mean")
        if on is not None and on not in allowed:
            raise UsageError(f"--on {on!r} with --nearest {place}: choose {' or '.join(allowed)}.")
        if metric not in get_args(Metric):
            raise UsageError(f"--metric {metric!r}: choose {', '.join(get_args(Metric))}.")
        words: Any = {"on": on, "metric": metric}
        return cls(row=int(row), patch=int(patch) if colon else None, k=k, selection=selection, layer=layer, **words)


def answer_nearest(rows: RowQueries, request: NearestRequest, *, output: Path | None, json: bool) -> None:
    """Show what is nearest, or write it."""
    features = rows.features
    on: TokensOn = request.on or (
        "patches" if request.patch is not None else "cls" if "cls" in features.spec.identity.token_kinds else "mean"
    )
    n_patches = features.spec.n_patches
    if request.patch is not None and request.patch >= n_patches:
        raise UsageError(
            f"--nearest {request.row}:{request.patch}: a row has patches 0 to {n_patches - 1}, row-major over the "
            "grid; name one of them."
        )
    vector = stored_query(features, request.row, request.patch, on=on, layer=request.layer)
    selection = (
        None
        if request.selection is None
        else read_selection(features.root, request.selection, any_layer=request.any_layer)
    )
    k = _how_many(rows, request.k, on)
    found = nearest(rows, vector, k, on=on, layer=request.layer, metric=request.metric, selection=selection)
    (entries,) = found.to_json()
    layer = features.layer_number(request.layer)
    about = {
        "on": on,
        "layer": layer,
        "metric": request.metric,
        "row": request.row,
        "patch": request.patch,
        **made_elsewhere(selection, layer, KIND_READ[on]),
    }
    if output is not None:
        _write_neighbors(found, output)
    if json:
        print_json({"features": features.name, **about, "selection": request.selection, "nearest": entries})
    elif output is not None:
        say_written(output, {"rows_written": len(entries)}, of=len(entries))
    else:
        place = f"row {request.row}" + ("" if request.patch is None else f", patch {request.patch}")
        print_table(
            f"{features.name}: nearest to {place} on {on}, {request.metric}",
            ("rank", "row", "patch", "score", "uri", "tile"),
            [tuple(shown_value(value) for value in entry.values()) for entry in entries],
        )


def _how_many(rows: RowQueries, k: int | None, on: TokensOn) -> int:
    """What was asked for; else ten, or as many tokens as there are.

    Raises:
        QueryError: there is no row to search.
    """
    n_rows = int(rows.features.valid[rows.rows].sum())
    if not n_rows:
        raise QueryError(
            f"nothing is nearest among the {len(rows.rows)} rows that the condition leaves, of which none has tokens; "
            "give a --where that leaves more."
            if len(rows.rows)
            else "nothing is nearest: the condition leaves no row; give a --where that leaves some."
        )
    return k or min(_DEFAULT_K, n_rows * (rows.features.spec.n_patches if on == "patches" else 1))


def _write_neighbors(found: NearestRows, output: Path) -> None:
    table = pa.Table.from_pylist(found.to_json()[0], schema=_NEIGHBORS)
    write = write_csv if output.suffix == ".csv" else write_parquet
    write(table.to_reader(), output)
