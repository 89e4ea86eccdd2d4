"""`vitrine demo`: the whole job on scenes composed of real photographs."""

from pathlib import Path
from typing import Annotated

import typer

from vitrine.options import Json


def demo(
    folder: Annotated[Path, typer.Option(help="Where scenes, store and pictures go.")] = Path("vitrine-demo"),
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of the extraction.")] = 1,
    json: Json = False,
) -> None:
    """Run the whole job on the demo scenes: extract once, then prune, k-NN and linear probe from the store alone.

    Writes one picture for each result worth looking at, and prints one table. Run again, all comes from the store.
    """
    from vitrine.demo import run_demo

    raise typer.Exit(run_demo(folder, workers=workers, json=json))
