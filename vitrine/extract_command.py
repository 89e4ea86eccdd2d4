"""`vitrine extract`: a dataset through a frozen ViT into a store."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitrine.options import Json, comma_separated
from vitrine.sizes import image_size_of, windows_of

if TYPE_CHECKING:
    from feature_store import TokenKind


def extract(
    dataset: Annotated[
        str,
        typer.Argument(
            help="`images:FOLDER` (class folders, also split/class), `segmentation:FOLDER` (train/ and "
            "trainannot/ ...), `manifest:FILE` (your own Parquet, CSV, TSV or JSON lines) or `demo`.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="`demo`, the name of any ViT of timm, e.g. vit_base_patch16_224.dino, `auto`: what the file given by "
            "--weights is (`vitrine models` lists families and files), or `null`: a fixed linear map of pixels, to try "
            "storage and pipelines with.",
            show_default=False,
        ),
    ],
    store: Annotated[str, typer.Option(help="The store to write: a folder or an fsspec URL.", show_default=False)],
    weights: Annotated[
        Path | None, typer.Option(help="A local .pth or .safetensors file; without it the hub's weights are used.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Cut each image into tiles of N x N pixels, every tile a row.")
    ] = None,
    tile_fit: Annotated[
        str, typer.Option(help="What to do with an image that tiles do not divide: refuse, pad or resize.")
    ] = "refuse",
    image_size: Annotated[
        str | None,
        typer.Option(
            help="The model's input in pixels, the side of a square or HEIGHTxWIDTH, e.g. 224 or 224x448; by default "
            "its own."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Run the model on windows of so many pixels that slide over --image-size, and average the tokens "
            "where windows overlap."
        ),
    ] = None,
    stride: Annotated[
        str | None, typer.Option(help="Pixels from one window to the next; by default a window, without overlap.")
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="How a view becomes the input: `squash` it whole, `crop` its centre, or `auto`: squash where there "
            "are masks, else as the model's authors evaluate it (a table in docs/models.md)."
        ),
    ] = "auto",
    position_embedding: Annotated[
        str | None,
        typer.Option(
            help="How the position embedding comes to another input size: `timm`, `mae`, `dino`, `dinov2`, "
            "`dinov2-registers`, `torchvision` or `transformers`; by default as the family's own code does it, and "
            "timm's way for timm's names."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            "--prefix",
            help="Which network of a file that holds several, such as `student` or `model.teacher.backbone`: its name "
            "or a part of it, as `vitrine models inspect` lists them. By default a running average or a teacher.",
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(
            help="State what the file does not say of its network, as NAME=VALUE, such as num_heads=12, "
            "act_layer=quick_gelu or mean=0.5,0.5,0.5; repeatable."
        ),
    ] = None,
    layers: Annotated[str, typer.Option(help="Comma-separated block numbers counted from 1, or `last`.")] = "last",
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated among patches, cls, registers, attention (of the class token to the patches); by "
            "default patches, and cls where the model has one."
        ),
    ] = None,
    compute: Annotated[str, typer.Option(help="float32, bfloat16 or float16: the forward pass.")] = "float32",
    storage: Annotated[str, typer.Option(help="float16 or float32: the stored tokens.")] = "float16",
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Views of one forward pass; by default the device's.")
    ] = None,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=8, max=16_777_216, help="Rows that are committed together; a multiple of 8.")
    ] = None,
    order: Annotated[
        str,
        typer.Option(
            help="`grown`: where the store has this dataset through this recipe, its rows keep their numbers and new "
            "ones follow; `uri`: in the order of paths, as a new dataset."
        ),
    ] = "grown",
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Worker processes; they share the cores.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the dataset; by default its own or its folder's.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names, for a dataset without them.")
    ] = None,
    void: Annotated[list[int] | None, typer.Option(help="A mask value that carries no class; repeatable.")] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="For `manifest:FILE`, the folder that its paths are relative to; by default the file's own."),
    ] = None,
    limit_per_split: Annotated[int | None, typer.Option(help="Take only so many images of each split.")] = None,
    max_pixels: Annotated[
        int, typer.Option(help="Decode images of at most so many pixels; the rows of larger ones are invalid.")
    ] = 100_000_000,
    follow_links: Annotated[
        list[Path] | None,
        typer.Option(help="A folder outside the dataset's that links in it may lead into; repeatable."),
    ] = None,
    content_key: Annotated[
        str,
        typer.Option(help="How an image is known again: sha256 of its bytes, or stat (size and time, for huge sets)."),
    ] = "sha256",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it will cost, and stop: nothing is written."),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="With --dry-run: load the model, and measure memory and time by one batch."),
    ] = False,
    allow_mixed_environment: Annotated[
        bool, typer.Option("--allow-mixed-environment", help="Go on though torch, timm or the device changed.")
    ] = False,
    beam_option: Annotated[
        list[str] | None,
        typer.Option(help="An option of Beam's own, e.g. --beam-option=--runner=FlinkRunner; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Push a dataset through a frozen ViT, and keep its tokens in a store.

    Run the same command again after an interruption: only what is missing is computed.

    \b
    vitrine extract segmentation:camvid --model demo --tile 120 --store features
    vitrine extract images:photos --model auto --weights mae_pretrain_vit_base.pth --store features
    vitrine extract segmentation:roads --model demo --image-size 448x896 --window 224 --stride 112 --store features
    """
    from pipelines.datasets import DatasetOptions, open_dataset
    from vitrine.exits import UsageError
    from vitrine.extract_checks import refuse_early, refuse_idle
    from vitrine.interruption import saying_that_nothing_was_written

    if calibrate and not dry_run:
        raise UsageError("--calibrate goes with --dry-run; a run measures one batch anyway.")
    settings = replace(_settings(layers, tokens, storage, batch_size, rows_per_shard), order=order)
    input_size, windows = image_size_of(image_size, "--image-size"), windows_of(window, stride)
    refuse_early(settings, model=model, weights=weights, fit=fit, device=device, compute=compute)
    options = DatasetOptions(
        name=name,
        tile=tile,
        tile_fit=tile_fit,  # type: ignore[arg-type]  # checked by DatasetOptions
        content_key=content_key,  # type: ignore[arg-type]
        classes=None if classes is None else comma_separated(classes, "--classes"),
        void=tuple(void) if void else None,
        limit_per_split=limit_per_split,
        root=root,
        max_pixels=max_pixels,
        link_roots=tuple(path.expanduser() for path in follow_links or ()),
    )
    refuse_idle(dataset, options)
    with saying_that_nothing_was_written():
        opened = open_dataset(dataset, options=options)
        # These load torch and timm: only now is there something for a model to do.
        from vitrine.extraction import ModelWords, RunOptions, extract_dataset, resolve_model

        words = ModelWords(
            model=model,
            weights=weights,
            image_size=input_size,
            windows=windows,
            fit=fit,
            compute_dtype=compute,
            device=device,
            position_embedding=position_embedding,
            network=network,
            arguments=tuple(arg or ()),
        )
        code = extract_dataset(
            opened,
            resolve_model(words, opened),
            settings,
            store=store,
            options=RunOptions(
                workers=workers,
                dry_run=dry_run,
                calibrate=calibrate,
                allow_mixed_environment=allow_mixed_environment,
                beam_options=tuple(beam_option or ()),
                json=json,
            ),
        )
    raise typer.Exit(code)


def _settings(layers: str, tokens: str | None, storage: str, batch_size: int | None, rows_per_shard: int | None) -> Any:
    from pipelines.plan import ExtractionSettings

    return ExtractionSettings(
        layers=comma_separated(layers, "--layers"),
        token_kinds=None if tokens is None else cast("tuple[TokenKind, ...]", comma_separated(tokens, "--tokens")),
        storage_dtype=storage,
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
    )
