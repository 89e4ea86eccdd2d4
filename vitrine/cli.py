"""The command line: parse, call one function, show. Commands import what they need when they are called."""

from collections.abc import Callable
from typing import Annotated

import typer

from vitrine.acceptance_command import acceptance
from vitrine.compress_commands import compress
from vitrine.demo_command import demo
from vitrine.doctor_command import doctor
from vitrine.exchange_commands import export, import_vectors
from vitrine.extract_command import extract
from vitrine.help_pages import MOST_COLUMNS, Page, Pages
from vitrine.models_commands import models
from vitrine.probe_commands import knn, linear, prune, variance
from vitrine.query_commands import query
from vitrine.reconstruct_command import reconstruct
from vitrine.store_commands import ls, results, show
from vitrine.upkeep_commands import cp, diff, gc, repair, rm, verify

# Under the heading of the help page, by what a user wants to do.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Fill a store": {
        "extract": extract,
        "import": import_vectors,
        "compress": compress,
        "demo": demo,
        "acceptance": acceptance,
    },
    "Ask a store": {
        "ls": ls,
        "show": show,
        "query": query,
        "variance": variance,
        "prune": prune,
        "knn": knn,
        "linear": linear,
        "reconstruct": reconstruct,
        "results": results,
    },
    "Share": {"export": export, "cp": cp, "diff": diff},
    "Keep it sound": {"verify": verify, "repair": repair, "gc": gc, "rm": rm, "doctor": doctor},
}


class FirstPage(Pages):
    """What `vitrine` alone and `vitrine --help` print."""

    start_here = (
        ("vitrine demo", "The whole job on small scenes, from images to scores."),
        ("vitrine extract images:FOLDER --model demo --store STORE", "Your own images, once, into a store."),
        ("vitrine knn STORE", "What the tokens know, from the store alone."),
    )
    headings = {heading: tuple(commands) for heading, commands in COMMANDS.items()} | {"Models": ("models",)}


app = typer.Typer(
    cls=FirstPage,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MOST_COLUMNS},
)


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version, and stop.")] = False,
) -> None:
    """Frozen ViT features in a crash-proof store: extract once, answer every later question from the store alone."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"vitrine {version_of('vitrine')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for commands in COMMANDS.values():
    for name, command in commands.items():
        app.command(name, cls=Page)(command)
app.add_typer(models, name="models")
