"""`vitrine import` and `vitrine export`: vectors of others into a store, and a store's into the formats of others."""

from pathlib import Path
from typing import Annotated

import typer

from vitrine.options import AnyLayer, Features, Json, Layer, SelectionName, Store, TimeLimit


def import_vectors(
    source: Annotated[
        str,
        typer.Argument(
            help="`npy:FILE` or `npy:FOLDER`, `parquet:FILE`, `clip-retrieval:FOLDER` or `pt:FOLDER`.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A name for what made the vectors; part of their identity.", show_default=False)
    ],
    store: Annotated[str, typer.Option(help="The store to write: a folder or an fsspec URL.", show_default=False)],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="The table (.csv, .jsonl or Parquet) with uri, split, label ... of each vector, in their order."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Take a column of the manifest from another one of the table, e.g. uri=path; repeatable."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder of images and masks that paths are relative to; without it none are read."),
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="Of Parquet: the column that holds the vectors.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Height x width of the patches, e.g. 16x16; by default the square that they fill."),
    ] = None,
    prefix_tokens: Annotated[
        int,
        typer.Option(min=0, max=1024, help="So many tokens before the patches are the class token, then registers."),
    ] = 0,
    batched: Annotated[
        bool, typer.Option("--batched", help="Of .pt: each file holds many views along the first axis.")
    ] = False,
    fit: Annotated[
        str, typer.Option(help="`squash` where the patches cover the whole view, `crop` where only its centre.")
    ] = "squash",
    layer: Annotated[int, typer.Option(min=1, max=16384, help="The block after which the vectors were read.")] = 1,
    storage: Annotated[str, typer.Option(help="float16, float32, or auto: as precise as the values are.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the dataset; by default the source's.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names, in the order of their numbers.")
    ] = None,
    void: Annotated[int | None, typer.Option(help="The mask value that carries no class.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check all, say what it would become, and write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring vectors that others made into a store, where every evaluator can use them.

    Run the same command again after an interruption: only what is missing is written.

    \b
    vitrine import npy:vectors.npy --rows rows.csv --model clip-vit-b32 --store features
    vitrine import npy:tokens.npy --rows rows.csv --root photos --prefix-tokens 1 --model mae --store features
    vitrine import parquet:vectors.parquet --vectors embedding --column uri=path --model siglip --store features
    vitrine import clip-retrieval:output_folder --model clip-vit-b32 --store features
    vitrine import pt:tensors --model dinov2 --store features
    """
    from pipelines.imports import ImportStatement
    from vitrine.exchange import ImportWords, run_import

    words = ImportWords(
        source=source,
        rows=rows,
        column=tuple(column or ()),
        root=root,
        vectors=vectors,
        grid=grid,
        prefix_tokens=prefix_tokens,
        batched=batched,
        name=name,
        classes=classes,
        void=void,
    )
    statement = ImportStatement(model=model, layer=layer, grid=words.lattice(), fit=fit, storage=storage)
    code = run_import(words, statement, store=store, dry_run=dry_run, json=json)
    raise typer.Exit(code)


def export(
    store: Store,
    path: Annotated[
        Path, typer.Argument(help="Where to write: a file or a folder of this machine.", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(
            help="`npy` (folder: array, rows.csv), `parquet` (file), `webdataset` (folder of tars), `fiftyone` "
            "(folder) or `atlas` (Parquet file for Embedding Atlas).",
            show_default=False,
        ),
    ],
    features: Features = None,
    kind: Annotated[
        str | None, typer.Option(help="cls, patches, registers, or mean of the patches; by default cls, else mean.")
    ] = None,
    layer: Layer = "last",
    selection: SelectionName = None,
    any_layer: AnyLayer = False,
    where: Annotated[
        str | None, typer.Option(help="Only rows for which this SQL condition over the manifest is true; see `query`.")
    ] = None,
    time_limit: TimeLimit = 30.0,
    rows: Annotated[
        str, typer.Option(help="Of parquet and atlas with --kind patches: a row for each of the `views` or `patches`.")
    ] = "views",
    projection: Annotated[
        str, typer.Option(help="Of atlas: pca, tsne (up to 20,000 points), or none (the vectors themselves).")
    ] = "pca",
    seed: Annotated[int, typer.Option(min=0, max=4294967295, help="Of the projection tsne.")] = 0,
    images: Annotated[
        Path | None, typer.Option(help="Of fiftyone: the folder that the images' paths are relative to.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a plain file, or the folder of an earlier export.")
    ] = False,
    json: Json = False,
) -> None:
    """Write tokens of a feature set in a format of others; it appears whole, or not at all.

    \b
    vitrine export features camvid-npy --to npy --kind patches
    vitrine export features patches.parquet --to parquet --kind patches --rows patches --where "split = 'test'"
    vitrine export features shards --to webdataset --kind patches --selection no200
    vitrine export features for-fiftyone --to fiftyone --images photos
    vitrine export features atlas.parquet --to atlas --projection tsne
    """
    from vitrine.exchange import run_export

    code = run_export(
        store,
        path,
        to=to,
        features=features,
        subject={
            "kind": kind,
            "layer": layer,
            "selection": selection,
            "any_layer": any_layer,
            "where": where,
            "time_limit_s": time_limit,
        },
        options={
            "rows": rows,
            "projection": projection,
            "seed": seed,
            "images": images,
            "overwrite": overwrite,
        },
        json=json,
    )
    raise typer.Exit(code)
