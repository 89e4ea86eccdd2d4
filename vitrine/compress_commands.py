"""`vitrine compress`: a smaller feature set made from a stored one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrine.options import Features, Json, Store, comma_separated

if TYPE_CHECKING:
    from vitrine.compression import Compressed


def compress(
    store: Store,
    features: Features = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="int8 (an offset and a scale for each feature), or, with --pca, float16 (its default) or float32.",
            show_default=False,
        ),
    ] = None,
    pca: Annotated[
        int | None,
        typer.Option(min=1, help="Keep the N components of highest variance, in their order.", show_default=False),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated among patches, cls, registers; by default all of these that are stored. Attention "
            "has no features, and stays behind."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Rows to fit on: a split; `auto` takes train where there is one, else all.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Make a smaller feature set from a stored one, with neither model nor images.

    Every evaluator reads it as any other. What it costs in accuracy stands in docs/storage.md.

    \b
    vitrine compress features --features camvid/demo --storage int8
    vitrine compress features --features camvid/demo --pca 128
    vitrine compress features --features camvid/demo --pca 64 --storage int8 --tokens patches
    """
    from vitrine import exits
    from vitrine.compression import CompressionRequest, compress
    from vitrine.exits import UsageError
    from vitrine.opened import open_features
    from vitrine.output import print_json
    from vitrine.progress import counting_bar

    if storage is None and pca is None:
        raise UsageError("name --storage int8, --pca N, or both.")
    request = CompressionRequest(
        storage=storage or "float16",
        n_components=pca,
        kinds=None if tokens is None else comma_separated(tokens, "--tokens"),
        split=split,
    )
    source = open_features(store, features)
    with counting_bar("compressing", quiet=json) as progress:
        done = compress(source, request, progress=progress)
    code = exits.of_invalid(entry.reason for entry in done.features.invalid_rows)
    if json:
        print_json({**done.to_json(), "exit_code": code})
    else:
        _print_outcome(done)
    raise typer.Exit(code)


def _print_outcome(done: "Compressed") -> None:
    from vitrine.output import console, counted, size

    record: dict[str, Any] = done.to_json()
    out = console()
    if record["already_done"]:
        out.print(f"{record['feature_set']}: done already, nothing to compress", markup=False)
        return
    if record["left_out"]:
        out.print(f"{', '.join(record['left_out'])} left out: read it from {record['source']}", markup=False)
    for name, share in record["kept_variance"].items():
        out.print(f"layer {name}: {share:.1%} of the variance kept", markup=False)
    invalid = f", {counted(record['invalid'], 'invalid row')}" if record["invalid"] else ""
    out.print(
        f"{record['feature_set']}: {counted(record['committed'], 'shard')} committed, {size(record['stored_bytes'])} "
        f"({record['stored_bytes'] / record['source_bytes']:.0%} of {record['source']}){invalid}",
        markup=False,
    )
