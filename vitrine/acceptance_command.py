"""`vitrine acceptance`: a checkpoint held to the numbers of its paper."""

from pathlib import Path
from typing import Annotated

import typer

from vitrine.options import Json


def acceptance(
    experiment: Annotated[
        str, typer.Argument(help="`mae-b`: MAE ViT-B on 72 and 30 images of Cityscapes.", show_default=False)
    ],
    weights: Annotated[
        Path, typer.Option(help="The checkpoint, such as mae_pretrain_vit_base.pth.", show_default=False)
    ],
    cityscapes: Annotated[Path, typer.Option(help="The folder with leftImg8bit/ and gtFine/.", show_default=False)],
    store: Annotated[str, typer.Option(help="The store to keep features and answers in.")] = "vitrine-acceptance",
    limit_per_split: Annotated[
        int | None,
        typer.Option(min=2, help="Take only so many images of each split, to try it out.", show_default="all"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Worker processes of the extraction.")] = 1,
    json: Json = False,
) -> None:
    """Hold a checkpoint to its paper: extract the paper's images, and put every number of its table beside ours.

    Says how many of the published features of high variance are found, and 1-NN and linear mIoU without the features of
    highest variance. Some hours on two cores; run it again after an interruption, and only what is missing is computed.

    \b
    vitrine acceptance mae-b --weights mae_pretrain_vit_base.pth --cityscapes cityscapes
    vitrine acceptance mae-b --weights mae_pretrain_vit_base.pth --cityscapes cityscapes --limit-per-split 2
    """
    from vitrine.acceptance import run_acceptance
    from vitrine.acceptance_published import published

    code = run_acceptance(
        published(experiment),
        weights=weights,
        cityscapes=cityscapes,
        store=store,
        limit_per_split=limit_per_split,
        workers=workers,
        json=json,
    )
    raise typer.Exit(code)
