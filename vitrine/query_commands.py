"""`vitrine query`: rows, their columns and their tokens, chosen by a condition or by nearness."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrine.options import AnyLayer, Features, Json, Layer, Partial, SelectionName, Store, TimeLimit


def query(
    store: Store,
    where: Annotated[
        str | None,
        typer.Option(
            help="An SQL condition over the columns of the manifest and row, valid and class_name; all rows without it."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns, separated by commas; by default row, uri, tile (if there are any), split, label, class_name."
        ),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Also the tokens: patches, cls, registers or attention.")] = None,
    layer: Layer = "last",
    patches: Annotated[
        str | None, typer.Option(help="Only these patches of each row, as in 0,1,16-31; row-major over the grid.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write to this .parquet (columns, tokens), .npy (tokens) or .csv (columns)."
        ),
    ] = None,
    time_limit: TimeLimit = 30.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a plain file at --output; never one in a store.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many rows the table shows; files get all.")] = 50,
    nearest: Annotated[
        str | None,
        typer.Option(metavar="ROW[:PATCH]", help="Instead: what is nearest to this patch, or to this whole image."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", "--k", min=1, help="How many --nearest gives; by default 10, or as many as there are."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(help="What --nearest gives: patches for ROW:PATCH; for ROW images by cls (where stored) or mean."),
    ] = None,
    metric: Annotated[str, typer.Option(help="Of --nearest: cosine, dot or l2.")] = "cosine",
    selection: SelectionName = None,
    any_layer: AnyLayer = False,
    removed: Annotated[
        bool, typer.Option("--removed", help="Also the places of views that a dataset that grew has no more.")
    ] = False,
    features: Features = None,
    allow_partial: Partial = False,
    json: Json = False,
) -> None:
    """Ask a store for rows: by a condition, or by nearness to one of them.

    Columns: row, valid, class_name, and the manifest's view_id, image_sha256, uri, tile, transform,
    ground_sample_distance_m, split, label, mask_uri, sequence, frame, objects, source_view_id.

    \b
    vitrine query features --where "split = 'train' AND label IN (3, 5)"
    vitrine query features --where "NOT valid" --columns row,uri --json
    vitrine query features --where "tile.x < 120" --columns uri,tile,label -o rows.csv
    vitrine query features --where "split = 'test'" --tokens cls -o test.npy
    vitrine query features --tokens patches --patches 0-15 --layer last -o top.parquet
    vitrine query features --nearest 12:40 -k 5 --where "split = 'train'" --selection no200
    vitrine query features --nearest 12 --metric l2 -o nearest.csv
    """
    import numpy as np

    from feature_store import FeatureRows
    from vitrine.opened import open_features

    answer: Callable[[Any], None]
    if nearest is not None:
        from vitrine.querying_nearest import NearestRequest, answer_nearest

        unused = {"--tokens": tokens, "--patches": patches, "--columns": columns}
        _refuse([name for name, value in unused.items() if value is not None], "has no meaning with --nearest")
        neighbours = NearestRequest.parse(
            nearest, k=k, on=on, metric=metric, selection=selection, layer=layer, output=output
        )
        answer = partial(answer_nearest, request=replace(neighbours, any_layer=any_layer), output=output, json=json)
    else:
        from vitrine.querying import RowsRequest, answer_rows

        given = {"--selection": selection, "--any-layer": any_layer or None, "--on": on}
        _refuse([name for name, value in given.items() if value is not None], "needs --nearest ROW[:PATCH]")
        chosen = RowsRequest.parse(columns, tokens=tokens, layer=layer, patches=patches, limit=limit, output=output)
        answer = partial(answer_rows, request=chosen, output=output, json=json)
    if output is not None:
        from feature_store.exports import check_place

        check_place(output, folder=False, overwrite=overwrite)
    found = open_features(store, features, partial=allow_partial)
    if where is not None:
        answer(found.where(where, time_limit_s=time_limit, removed=removed))
    elif removed or not found.removed.any():
        answer(found)
    else:
        answer(FeatureRows(found, np.flatnonzero(~found.removed)))


def _refuse(options: list[str], reason: str) -> None:
    if options:
        raise typer.BadParameter(f"{', '.join(options)} {reason}.")
