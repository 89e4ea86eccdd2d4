"""`vitrine reconstruct`: stored tokens back to pixels, with and without some of their features."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vitrine.options import AnyLayer, Features, Fresh, Json, Partial, Store


def reconstruct(
    store: Store,
    weights: Annotated[
        Path,
        typer.Option(
            help="MAE's checkpoint with its decoder, such as mae_visualize_vit_base.pth; the tokens must be of the "
            "same file.",
            show_default=False,
        ),
    ],
    features: Features = None,
    drop_top_variance: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take the M features of highest variance away; by default the paper's share, 200 of 768.",
            show_default=False,
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(help="Take the features away that this selection leaves out.", show_default=False),
    ] = None,
    any_layer: AnyLayer = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Decode only so many views, spread evenly.", show_default="all")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Of the views; `auto` is test or val where there is one; `all` is every row.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random features.")] = 0,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="The folder of the images, which the store's word does not open; again for a folder outside it that "
            "links lead into. An answer that is kept needs none.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the images side by side into this folder.", show_default=False)
    ] = None,
    any_weights: Annotated[
        bool, typer.Option("--any-weights", help="Decode tokens of another checkpoint than this one.")
    ] = False,
    fresh: Fresh = False,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Decode stored MAE tokens to images, with the features of highest variance and without them.

    They are set to zero, to their mean, and as many random ones to zero instead; the errors say what they hold.

    \b
    vitrine extract images:photos --model auto --weights mae_visualize_vit_base.pth --store features
    vitrine reconstruct features --weights mae_visualize_vit_base.pth --root photos --out pictures
    vitrine reconstruct features --weights mae_visualize_vit_base.pth --root photos --selection no200
    """
    from vitrine.opened import open_features
    from vitrine.output import console
    from vitrine.progress import counting_bar
    from vitrine.reconstruction import Asked, Reconstruction

    _check_out(out)
    reconstruction = Reconstruction(
        open_features(store, features, partial=partial),
        Asked(
            weights=weights,
            any_weights=any_weights,
            n_dropped=drop_top_variance,
            selection=selection,
            any_layer=any_layer,
            n_views=images,
            split=None if split == "all" else split,
            seed=seed,
            roots=tuple(root or ()),
        ),
    )
    if out is not None:
        reconstruction.open_images()
    with counting_bar("decoding", quiet=json) as progress:
        answer = reconstruction.ask(fresh=fresh, progress=progress)
    picture = None if out is None else reconstruction.draw(out)
    if picture is not None:
        console(stderr=True).print(f"wrote {picture}", markup=False)
    _print(answer, picture, json=json)


def _check_out(out: Path | None) -> None:
    """Refuse a folder that cannot be, before anything is computed."""
    from vitrine.exits import UsageError

    if out is not None and (not out.absolute().parent.is_dir() or (out.exists() and not out.is_dir())):
        raise UsageError(f"--out {out}: name a folder, new or not, in a folder that exists.")


def _print(answer: Any, picture: Path | None, *, json: bool) -> None:
    from vitrine.answer_lines import about_answer, print_origin, say_not_kept
    from vitrine.output import console, print_json, print_table
    from vitrine.reconstruction import arm_words

    result = answer.result
    say_not_kept([answer])
    if json:
        print_json({**result, **about_answer(answer), "picture": None if picture is None else str(picture)})
        return
    n_taken, arms = result["n_taken"], result["arms"]
    print_table(
        f"{result['features']}: {result['n_views']} views of split {result['split'] or '(all)'} decoded; "
        f"{n_taken} of {result['n_features']} features taken away",
        ("features", "MSE", "SSIM", "loss"),
        [
            (words, *(arms[name][score] for score in ("mse", "ssim", "loss")))
            for name, words in arm_words(n_taken).items()
        ],
    )
    print_origin(answer)
    base, zero, random = (arms[name]["ssim"] for name in ("untouched", "zero", "random zero"))
    console().print(
        f"SSIM changes by {zero - base:+.3f} without them, and by {random - base:+.3f} without as many random ones.",
        markup=False,
    )
