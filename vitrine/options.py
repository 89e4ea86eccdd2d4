"""The options that several commands share, said once."""

from typing import Annotated

import typer

from vitrine.exits import UsageError

Store = Annotated[
    str, typer.Argument(help="The store: a folder or a URL such as s3://bucket/store.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]
Features = Annotated[
    str | None,
    typer.Option(
        "--features",
        help="Which feature set, where the store has several: its name, DATASET/MODEL, DATASET, MODEL, or the first "
        "digits of its digest. Of several states of one dataset the newest complete one is taken; NAME@DIGITS takes "
        "another. `vitrine ls STORE` lists them.",
    ),
]
Layer = Annotated[str, typer.Option(help="The layer: a block number counted from 1, or `last`.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute even where the answer is stored, and say if it changed.")]
Partial = Annotated[
    bool, typer.Option("--partial", help="Answer from a feature set that lacks shards; such an answer is not kept.")
]
SelectionName = Annotated[
    str | None, typer.Option("--selection", help="Use only the features of this selection; `vitrine prune` makes one.")
]
AnyLayer = Annotated[
    bool,
    typer.Option(
        "--any-layer",
        help="Take the selection even where it was made on another layer or token kind; the record says so.",
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", min=0.001, max=86_400, help="Seconds after which --where is given up."),
]
TokensOn = Annotated[
    str,
    typer.Option(
        "--on",
        help="What to classify: `patches` (by their masks), whole images by `cls` or by the `mean` of their patches; "
        "`auto` takes patches where there are masks.",
    ),
]
TrainSplit = Annotated[str, typer.Option(help="The split that the bank or training set is taken from.")]
TestSplit = Annotated[str | None, typer.Option(help="The split to test on; by default test, val or validation.")]
HoldOut = Annotated[
    float | None,
    typer.Option(
        help="Test on this share of the training images instead, whole ones, drawn with --seed; of all images where "
        "the dataset has no splits."
    ),
]
Scored = Annotated[
    str | None,
    typer.Option(
        "--score",
        help="Score only these classes, by their names, comma-separated; the others stay in the bank or training set.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the images held out.")]


def comma_separated(text: str, option: str) -> tuple[str, ...]:
    """The words between commas, without the space around them.

    Args:
        text: as the user wrote it.
        option: what it was given to, for the error.

    Raises:
        UsageError: nothing stands before, between or after commas, where a word may have been lost.
    """
    words = tuple(part.strip() for part in text.split(","))
    if not all(words):
        raise UsageError(
            f"{option} {text!r} has an empty part; write words with one comma between two, or leave it out."
        )
    return words
