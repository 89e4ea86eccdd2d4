"""`vitrine models bench`: how fast a model runs on this machine, and how much of the machine that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrine.options import Json
from vitrine.sizes import image_size_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.backbones import Backbone
    from pipelines.throughput import Setting, Throughput

_COLUMNS = ("compute", "threads", "layout", "compiled", "images/s", "tokens/s", "GFLOP/s", "of peak", "least cosine")
_DTYPES = ("float32", "bfloat16", "float16")


def bench(
    model: Annotated[
        str,
        typer.Argument(help="`demo`, a ViT of timm, which runs with random weights, or with --weights `auto`."),
    ],
    weights: Annotated[Path | None, typer.Option(help="Run with the weights of this file; speed needs none.")] = None,
    image_size: Annotated[str | None, typer.Option(help="The input, as in 224 or 224x448; by default its own.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Views of one forward pass; by default that of `extract`.")
    ] = None,
    compute: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, max=4096, help="Of torch; by default all cores.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Put the blocks through torch.compile.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Lay images out channels last.")] = False,
    try_all: Annotated[
        bool, typer.Option("--try-all", help="Try dtypes, threads, layouts and torch.compile, by turns.")
    ] = False,
    least_cosine: Annotated[
        float, typer.Option(min=0, max=1, help="How near the tokens of the fastest must stay to those of float32.")
    ] = 0.999,
    seconds: Annotated[float, typer.Option(min=0.01, max=600, help="Of each setting in each of three rounds.")] = 2.0,
    json: Json = False,
) -> None:
    """Time a model's forward pass, beside the largest matrix products of this machine in the same run and dtype.

    The share of the peak says what is left to gain by any other way to run the same network. The cosine is the least of
    any patch token to that of the plain float32 pass.

    \b
    vitrine models bench demo
    vitrine models bench vit_base_patch16_224 --compute bfloat16 --batch-size 32
    vitrine models bench vit_large_patch16_224 --device cuda --compute bfloat16 --compile
    vitrine models bench demo --try-all
    """
    import os

    from pipelines.plan import DEFAULT_BATCH_SIZE
    from pipelines.throughput import Setting, fastest, measure, settings_to_try
    from vitrine.exits import UsageError
    from vitrine.extraction import device_of
    from vitrine.output import print_json

    if compute not in _DTYPES:
        raise UsageError(f"--compute {compute!r}: choose {', '.join(_DTYPES)}.")
    found_device = device_of(device)
    kind = found_device.split(":", maxsplit=1)[0]
    most = threads or len(os.sched_getaffinity(0))
    single = Setting(compute_dtype=compute, threads=most, channels_last=channels_last, compiled=compiled)
    # A CPU computes float16 hundreds of times slower than float32.
    dtypes = _DTYPES if kind == "cuda" else _DTYPES[:2]
    settings = settings_to_try(found_device, most, dtypes) if try_all else [single]
    load = _loader(model, weights, image_size_of(image_size, "--image-size"), found_device)
    batch = batch_size or DEFAULT_BATCH_SIZE[kind]
    found = measure(load, settings, batch_size=batch, seconds=seconds)
    best = fastest(found, least_cosine=least_cosine)
    if json:
        results = [_record(one) for one in found]
        chosen = None if best is None else _record(best)
        print_json({"model": model, "device": found_device, "batch_size": batch, "results": results, "fastest": chosen})
    else:
        _print(f"{load().request.title}, {found_device}, batch {batch}", found, best if try_all else None, least_cosine)
    if any(one.failed is not None for one in found) and not try_all:
        raise typer.Exit(1)


def _loader(
    model: str, weights: Path | None, image_size: tuple[int, int] | None, device: str
) -> "Callable[[], Backbone]":
    from functools import partial

    from pipelines.backbones import BackboneError, load_backbone, resolve_backbone
    from pipelines.backbones.catalogue import AUTO, NULL
    from pipelines.backbones.formats import FAMILIES
    from pipelines.backbones.timm_names import require_known
    from pipelines.backbones.timm_vit import random_timm

    if model == NULL:
        raise BackboneError("model 'null' is no network: there is nothing to time; name another.")
    if weights is None and (model == AUTO or model in FAMILIES):
        raise BackboneError(f"model {model!r} is what a file says; give the file with --weights.")
    if weights is None and model != "demo":
        require_known(model)
        return partial(random_timm, model, image_size=image_size, device=device)
    return partial(load_backbone, resolve_backbone(model, weights=weights, image_size=image_size, device=device))


def _record(one: "Throughput") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(one), "share_of_peak": one.share_of_peak}


def _words(setting: "Setting") -> tuple[object, ...]:
    layout = "channels last" if setting.channels_last else "plain"
    return (setting.compute_dtype, setting.threads, layout, "yes" if setting.compiled else "no")


def _print(title: str, found: "list[Throughput]", best: "Throughput | None", least_cosine: float) -> None:
    from vitrine.output import console, print_table

    rows = [
        (
            *_words(one.setting),
            f"{one.images_per_s:.1f}",
            f"{one.tokens_per_s:.0f}",
            f"{one.flops_per_s / 1e9:.0f}",
            f"{one.share_of_peak:.0%}",
            f"{one.least_cosine:.6f}",
        )
        for one in found
        if one.failed is None
    ]
    print_table(title, _COLUMNS, rows)
    out = console()
    for one in found:
        if one.failed is not None:
            out.print(f"cannot be run: {', '.join(map(str, _words(one.setting)))}: {one.failed}", markup=False)
    if best is not None:
        words = ", ".join(map(str, _words(best.setting)))
        out.print(f"fastest with a cosine of at least {least_cosine}: {words}", markup=False)
