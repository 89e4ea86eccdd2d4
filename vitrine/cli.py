"""The command line: parse, call one function, show. Commands import what they need when they are called."""

import typer

from vitrine.demo_command import demo
from vitrine.exchange_commands import import_vectors
from vitrine.extract_command import extract
from vitrine.probe_commands import knn, linear, prune, variance
from vitrine.store_commands import ls, results, show
from vitrine.upkeep_commands import verify

app = typer.Typer(
    help="Frozen ViT features in a crash-proof store: extract once, answer every later question from the store alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (extract, ls, show, variance, prune, knn, linear, results, verify, demo):
    app.command()(command)
app.command("import")(import_vectors)
