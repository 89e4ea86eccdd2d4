"""`vitrine variance`, `prune`, `knn` and `linear`: questions that the store answers alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrine.options import (
    AnyLayer,
    Features,
    Fresh,
    HoldOut,
    Json,
    Layer,
    Partial,
    Scored,
    Seed,
    SelectionName,
    Store,
    TestSplit,
    TokensOn,
    TrainSplit,
)


def variance(
    store: Store,
    features: Features = None,
    tokens: Annotated[str, typer.Option(help="patches, cls or registers.")] = "patches",
    layer: Layer = "last",
    split: Annotated[
        str, typer.Option(help="The rows to take; `auto` is train where there is one; `all` is every row.")
    ] = "auto",
    top: Annotated[int, typer.Option(min=1, help="How many features the table shows.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Write the variance spectrum as a picture to this file.")] = None,
    fresh: Fresh = False,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """The population variance of every feature over the stored tokens, highest first.

    \b
    vitrine variance features
    vitrine variance features --top 20 --plot spectrum.png
    """
    from vitrine.answer_lines import about_answer, print_origin, say_not_kept
    from vitrine.output import console, print_json, print_table
    from vitrine.questions import ask_variance, check_plot

    if plot is not None:
        check_plot(plot)
    found = _open(store, features, partial)
    answer = ask_variance(found, kind=tokens, layer=layer, split=None if split == "all" else split, fresh=fresh)
    if plot is not None:
        from vitrine.pictures import draw_spectrum

        draw_spectrum(answer.result["variance"], title=f"{found.spec.title}, {found.dataset.spec.name}", path=plot)
        console(stderr=True).print(f"wrote {plot}", markup=False)
    say_not_kept([answer])
    if json:
        print_json({**answer.result, **about_answer(answer)})
        return
    order, values = answer.result["order"], answer.result["variance"]
    total = sum(values)
    rows, share = [], 0.0
    for rank, feature in enumerate(order[:top], 1):
        share += values[feature] / total if total else 0.0
        rows.append((rank, feature, values[feature], answer.result["mean"][feature], f"{share:.1%}"))
    print_table(
        f"{found.name}: variance over {answer.result['n_tokens']} tokens of split {answer.result['split'] or '(all)'}",
        ("rank", "feature", "variance", "mean", "share so far"),
        rows,
    )
    print_origin(answer)


def prune(
    store: Store,
    name: Annotated[str, typer.Option(help="What to call the selection.", show_default=False)],
    drop_top_variance: Annotated[
        int | None, typer.Option(help="Drop the M features of highest variance over the training tokens.")
    ] = None,
    drop: Annotated[Path | None, typer.Option(help="Drop the features listed in this file, one number a line.")] = None,
    drop_random: Annotated[int | None, typer.Option(help="Drop M features at random: the control.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of --drop-random.")] = 0,
    features: Features = None,
    tokens: Annotated[
        str,
        typer.Option(
            help="patches, cls or registers: what it is made on, and for. `auto` takes what probes of the dataset use: "
            "patches where there are masks, else cls."
        ),
    ] = "auto",
    layer: Layer = "last",
    json: Json = False,
) -> None:
    """Make a selection: a stored choice of features, for one layer and token kind of all that the same weights made.

    \b
    vitrine prune features --drop-top-variance 200 --name no200
    vitrine prune features --drop-random 200 --seed 1 --name random200
    vitrine knn features --selection no200
    """
    from vitrine.output import console, print_json
    from vitrine.questions import Dropping, make_selection

    found = _open(store, features, partial=False)
    selection = make_selection(
        found,
        Dropping(top_variance=drop_top_variance, listed=drop, random=drop_random, seed=seed),
        name=name,
        kind=tokens,
        layer=layer,
    )
    dropped = sorted(set(range(selection.width)) - set(selection.features))
    if json:
        print_json(
            {
                "name": selection.name,
                "digest": selection.digest,
                "kept": len(selection.features),
                "width": selection.width,
                "layer": selection.layer,
                "tokens": selection.kind,
                "dropped": dropped,
                "made_by": dict(selection.made_by),
            }
        )
        return
    shown = ", ".join(map(str, dropped[:12])) + (", ..." if len(dropped) > 12 else "")
    console().print(
        f"selection {selection.name}: keeps {len(selection.features)} of {selection.width} features "
        f"of {selection.kind}, layer {selection.layer}" + (f", drops {shown}" if dropped else "")
    )


def knn(
    store: Store,
    features: Features = None,
    on: TokensOn = "auto",
    k: Annotated[str, typer.Option(help="Neighbours that vote; several, as in 1,5,20, come from one search.")] = "1",
    metric: Annotated[str, typer.Option(help="cosine, dot or l2.")] = "cosine",
    selection: SelectionName = None,
    any_layer: AnyLayer = False,
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Give every feature mean 0 and variance 1 over the bank first.")
    ] = False,
    layer: Layer = "last",
    train_split: TrainSplit = "train",
    test_split: TestSplit = None,
    hold_out: HoldOut = None,
    score: Scored = None,
    seed: Seed = 0,
    backend: Annotated[str, typer.Option(help="auto, faiss or torch.")] = "auto",
    fresh: Fresh = False,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Classify test patches or images by their nearest training tokens: exact k-NN, majority vote.

    \b
    vitrine knn features
    vitrine knn features --k 1,5,20 --metric dot --selection no200
    vitrine knn features --score road,car,person
    """
    from vitrine.questions import ask_knn, knn_parameters, scored_classes, subject_of

    found = _open(store, features, partial)
    subject = subject_of(on, layer, train_split, test_split, hold_out, seed, scored_classes(found, score))
    ks = _numbers(k, int, "--k")
    start = time.perf_counter()
    answers = ask_knn(
        found,
        knn_parameters(subject, metric=metric, standardise=standardise),
        ks=ks,
        selection=selection,
        any_layer=any_layer,
        backend=backend,
        fresh=fresh,
    )
    _print_probe(answers, json=json, seconds=time.perf_counter() - start)


def linear(
    store: Store,
    features: Features = None,
    on: TokensOn = "auto",
    selection: SelectionName = None,
    any_layer: AnyLayer = False,
    l2: Annotated[
        str | None, typer.Option(help="Strengths of the penalty to choose among, comma-separated; one alone is taken.")
    ] = None,
    layer: Layer = "last",
    train_split: TrainSplit = "train",
    test_split: TestSplit = None,
    hold_out: HoldOut = None,
    score: Scored = None,
    seed: Seed = 0,
    memory: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1e6,
            help="GB that may be used. Patches that need more are a sample of images; whole images are read in passes.",
        ),
    ] = 4.0,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Train on every patch, in passes over the store where memory is short.")
    ] = False,
    max_passes: Annotated[
        int | None, typer.Option(min=2, help="End after so many passes; the record says if the fit had converged.")
    ] = None,
    fresh: Fresh = False,
    partial: Partial = False,
    json: Json = False,
) -> None:
    """Train a linear classifier on the stored training tokens, and score it on the test tokens.

    Multinomial logistic regression on standardised features; the strength of its L2 penalty is chosen on images held
    out of the training split.

    \b
    vitrine linear features
    vitrine linear features --selection no200 --l2 0.001
    vitrine linear features --memory 2 --all-rows --l2 0.003 --max-passes 60
    """
    from vitrine.output import console
    from vitrine.questions import ask_linear, linear_parameters, scored_classes, subject_of

    found = _open(store, features, partial)
    subject = subject_of(on, layer, train_split, test_split, hold_out, seed, scored_classes(found, score))
    l2s = None if l2 is None else _numbers(l2, float, "--l2")
    start = time.perf_counter()
    answer = ask_linear(
        found,
        linear_parameters(subject, l2s=l2s, memory_gb=memory, all_rows=all_rows, max_passes=max_passes),
        selection=selection,
        any_layer=any_layer,
        fresh=fresh,
        say=lambda line: console(stderr=True).print(f"vitrine: {line}", markup=False, soft_wrap=True),
    )
    _print_probe([answer], json=json, seconds=time.perf_counter() - start)


def _open(store: str, features: str | None, partial: bool) -> Any:
    from vitrine.opened import open_features

    return open_features(store, features, partial=partial)


def _numbers(text: str, kind: Callable[[str], Any], option: str) -> tuple[Any, ...]:
    try:
        numbers = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: give numbers separated by commas.") from error
    if not numbers or any(not 0 < number < float("inf") for number in numbers):
        raise typer.BadParameter(f"{option} {text!r}: give finite numbers above 0.")
    return numbers


def _print_probe(answers: list[Any], *, json: bool, seconds: float) -> None:
    from vitrine.answer_lines import (
        about_answer,
        asked_in_words,
        print_absent,
        print_origin,
        print_unconverged,
        say_not_kept,
    )
    from vitrine.output import console, duration, print_json, print_table

    records = [{**answer.result, **about_answer(answer)} for answer in answers]
    say_not_kept(answers)
    if json:
        print_json({**(records[0] if len(records) == 1 else {"results": records}), "seconds": seconds})
        return
    for answer, result in zip(answers, records, strict=True):
        scores: dict[str, Any] = result["class_iou"] if "class_iou" in result else result["class_accuracy"]
        rows: list[tuple[object, ...]] = list(scores.items())
        totals = ("miou", "pixel_accuracy", "patch_accuracy", "ceiling_miou", "accuracy")
        rows += [(name, result[name]) for name in totals if name in result]
        print_table(
            f"{answer.evaluator} on {result['features']}: {asked_in_words(result)}",
            ("", "IoU" if "class_iou" in result else "accuracy"),
            rows,
        )
        print_unconverged(result)
        print_absent(result)
        print_origin(answer)
    train, test, used = (records[0][name] for name in ("n_train", "n_test", "n_features"))
    splits = f"{records[0]['train_split']} / {records[0]['test_split']}"
    console().print(f"{train} train, {test} test tokens ({splits}), {used} features; {duration(seconds)}", markup=False)
