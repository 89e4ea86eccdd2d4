"""The command line: parse, call one function, show. Commands import what they need when they are called."""

from collections.abc import Callable

import typer

from vitrine.acceptance_command import acceptance
from vitrine.compress_commands import compress
from vitrine.demo_command import demo
from vitrine.doctor_command import doctor
from vitrine.exchange_commands import export, import_vectors
from vitrine.extract_command import extract
from vitrine.models_commands import models
from vitrine.probe_commands import knn, linear, prune, variance
from vitrine.query_commands import query
from vitrine.reconstruct_command import reconstruct
from vitrine.store_commands import ls, results, show
from vitrine.upkeep_commands import cp, diff, gc, repair, rm, verify

app = typer.Typer(
    help="Frozen ViT features in a crash-proof store: extract once, answer every later question from the store alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "extract": extract,
    "compress": compress,
    "import": import_vectors,
    "export": export,
    "ls": ls,
    "show": show,
    "query": query,
    "variance": variance,
    "prune": prune,
    "knn": knn,
    "linear": linear,
    "reconstruct": reconstruct,
    "results": results,
    "verify": verify,
    "repair": repair,
    "diff": diff,
    "gc": gc,
    "rm": rm,
    "cp": cp,
    "doctor": doctor,
    "demo": demo,
    "acceptance": acceptance,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(models, name="models")
