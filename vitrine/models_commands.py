"""`vitrine models`: which models there are, and what a checkpoint file is."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrine.help_pages import Page, Pages
from vitrine.models_bench_command import bench
from vitrine.options import Json

if TYPE_CHECKING:
    from pipelines.backbones.inspection import CheckpointReport

models = typer.Typer(cls=Pages, invoke_without_command=True, rich_markup_mode=None)
models.command("bench", cls=Page)(bench)
_NAMES_SHOWN = 5
_DIGITS_SHOWN = 8


@models.callback()
def list_models(context: typer.Context, json: Json = False) -> None:
    """List the known checkpoints: family, size, resolution, normalisation, license, and where to get the file.

    Any of these files loads with `--model auto --weights FILE`, or by its name here, and so does a folder of
    transformers; other ViTs of timm load by timm's name.

    \b
    vitrine models
    vitrine models inspect mae_pretrain_vit_base.pth
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from pipelines.backbones.catalogue import CATALOGUE
    from pipelines.backbones.formats.evaluation import EVALUATIONS
    from vitrine.output import console, counted, print_indented, print_json, print_table

    if json:
        models = [
            {
                **asdict(entry),
                "normalisation": entry.normalisation,
                "evaluation": None if entry.evaluation is None else asdict(entry.evaluation),
            }
            for entry in CATALOGUE
        ]
        print_json({"models": models})
        return
    out = console()
    out.print(counted(len(CATALOGUE), "known checkpoint"), style="bold")
    for entry in CATALOGUE:
        digest = _short(entry.digest)
        words = (
            f"{entry.family}: patch {entry.patch}, width {entry.width}, depth {entry.depth}",
            f"{entry.native_size} pixels, normalised by {entry.normalisation}",
            *([] if digest is None else [digest]),
            f"{entry.source}, license {entry.license or 'not stated'}",
        )
        out.print(entry.name, style="bold")
        print_indented("; ".join(words), entry.where)
    evaluations = [(family, how.text, how.source or "not published") for family, how in EVALUATIONS.items()]
    print_table("how authors evaluate, and --fit auto without masks", ("family", "input", "source"), evaluations)


@models.command("inspect", cls=Page)
def inspect(
    file: Annotated[
        Path,
        typer.Argument(help="A .pth, .pt, .bin or .safetensors file, or a folder of transformers.", show_default=False),
    ],
    network: Annotated[
        str | None,
        typer.Option("--network", "--prefix", help="Which network of the file, by its name or a part of it."),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(help="State what the file does not say of its network, as NAME=VALUE; repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Say which family and size a file or a folder is, and how it will be loaded. Nothing in it is executed.

    Exit code 0 when names and shapes fit; numbers are looked at when it is loaded. 1 when tensors are missing,
    unexpected, of other shapes or of other types; 2 when it is no checkpoint of a known family.

    \b
    vitrine models inspect mae_visualize_vit_base.pth
    vitrine models inspect simmim_pretrain__vit_base__img224__800ep.pth --json
    """
    from pipelines.backbones.catalogue import of_file
    from pipelines.backbones.inspection import inspect_checkpoint
    from vitrine import exits
    from vitrine.output import print_json, print_pairs

    report = inspect_checkpoint(file, network=network, arguments=tuple(arg or ()))
    known = of_file(report.path) if report.path.is_file() else None
    title = (known.title if known is not None else None) or report.form.title
    known_as = None if known is None else known.name
    if json:
        print_json({**report.to_json(), "title": title, "known_as": known_as})
    else:
        known_text = known_as or "no known file by its digest"
        print_pairs(f"{file}: {title}", {**_pairs(report), "known as": known_text})
    raise typer.Exit(exits.DONE if report.loads else exits.FAILED)


def _pairs(report: "CheckpointReport") -> dict[str, object]:
    from pipelines.backbones.stated import assumptions
    from vitrine.output import assumed_pairs

    form = report.form
    decoder = form.decoder
    pairs: dict[str, Any] = {
        "family": form.family,
        "name": form.name,
        "size": f"{form.width} features, {form.depth} blocks, {form.heads} heads, patches of {form.patch} pixels",
        "native input": f"{form.image_size[0]} x {form.image_size[1]} pixels, grid {form.grid[0]} x {form.grid[1]}",
        "class token": "yes" if form.class_token else "no",
        "registers": form.registers,
        "decoder": f"{decoder['depth']} blocks of {decoder['width']} features, not run" if decoder else "none",
        "final norm": form.norm
        + (", which its authors give the mean of the patches alone" if form.norm != "norm" else ""),
        "evaluated by its authors": f"{form.evaluation.text} ({form.evaluation.source or 'not published'})",
        "normalisation": f"mean {', '.join(map(str, form.mean))}; std {', '.join(map(str, form.std))}",
        "positions": form.positions,
        "runs as": "timm's VisionTransformer, with positions in metres"
        if form.network == "ScaleMae"
        else f"timm's {form.network}",
        "network taken": _taken(report),
        "passed over": _counted(report.passed_over),
        "left out": _told(report.left_out),
        "left unread": _told(report.left_unread),
        "missing": _told(report.missing),
        "unexpected": _told(report.unexpected),
        "other shapes": _told(report.other_shapes),
        "other types": _told(report.other_types),
        **({"trouble": report.trouble} if report.trouble is not None else {}),
        "loads": _loads(report),
        **assumed_pairs(assumptions(form)),
    }
    for name, (differ, *examples) in form.undecided.items():
        ways = " or ".join(f"--arg {name}={example}" for example in examples)
        pairs["not said"] = f"{name}, in which published models differ ({differ}): give {ways}"
    return pairs


def _short(digest: str | None) -> str | None:
    """The kind of a digest and its first digits."""
    kind, _, digits = (digest or "").partition(":")
    return f"{kind}:{digits[:_DIGITS_SHOWN]}" if digits else None


def _taken(report: "CheckpointReport") -> str:
    """The network that is read, and how to take another."""
    if len(report.networks) == 1:
        return "the only one" + ("" if report.network == "." else f", {report.network}")
    others = ", ".join(name for name in report.networks if name != report.network)
    return f"{report.network}, of {len(report.networks)}; --network takes another: {others}"


def _loads(report: "CheckpointReport") -> str:
    if report.loads:
        return "yes, with --model auto --weights"
    return "no, as long as something is not said" if report.form.undecided else "no"


def _counted(passed_over: Mapping[str, int]) -> str:
    """What is not taken, each group with the number of its tensors."""
    from vitrine.output import counted

    groups = sorted(passed_over.items(), key=lambda group: -group[1])
    more = f" and {len(groups) - _NAMES_SHOWN} more groups" if len(groups) > _NAMES_SHOWN else ""
    return (
        ", ".join(f"{name} ({counted(count, 'tensor')})" for name, count in groups[:_NAMES_SHOWN]) + more or "nothing"
    )


def _told(names: tuple[str, ...]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
