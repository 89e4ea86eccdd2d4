"""From images and their annotations to a manifest: keys, sizes, tiles, and the checks that all adapters share."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from feature_store.canonical import canonical_json
from feature_store.errors import ManifestError
from feature_store.manifest import DatasetSpec, check_relative_uri, manifest_table
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.findings import Finding, classes_without_images, copies, finding
from pipelines.datasets.mask_values import MaskValues
from pipelines.datasets.masks import mask_size
from pipelines.datasets.scan import ImageFacts, Progress, inspect_images
from pipelines.stat_key import key_under
from pipelines.views import is_outside, resize_target, tile_box

MAX_TILES_PER_IMAGE = 65_536
Row = dict[str, Any]
Size = tuple[int, int]


def assemble_dataset(
    root: Path,
    rows: Sequence[Row],
    spec: DatasetSpec,
    options: DatasetOptions,
    progress: Progress | None = None,
    *,
    mask_values: MaskValues | None = None,
) -> Dataset:
    """Make a dataset of rows that name images.

    Args:
        root: the folder that paths are relative to.
        rows: columns of the manifest by name; `uri` is needed, the content key is filled in, and a row without tile and
            transform is cut as the options ask.
        spec: what the dataset says of itself.
        options: the user's.
        progress: called with (images done, images in all).
        mask_values: what the values in mask files mean; None where they are class numbers.

    Raises:
        ManifestError: a row breaks a rule, every image is missing, tiles do not divide an image, a row's own tile lies
            outside its image, or a mask's size is not that of its image.
    """
    for row in rows:
        for column in ("uri", "mask_uri"):
            if row.get(column) is not None:
                check_relative_uri(row[column])
    if options.limit_per_split is not None:
        rows = limit_images(rows, options.limit_per_split)
    facts = _inspect(root, rows, options, progress)
    _check_tiles_divide(rows, facts, options)
    checked_masks: dict[tuple[str, str], Size] = {}
    dataset = Dataset(spec=spec, table=pa.table({}), root=root, rules=options.rules, stated_values=mask_values)
    views = []
    for stated in rows:
        key = stated.get("image_sha256")
        row = {**stated, "image_sha256": key_under(root, key)} if key else stated
        fact = facts.get(row["uri"])
        if fact is None:
            views.append(row)
            continue
        keyed = {**row, "image_sha256": row.get("image_sha256") or fact.content_key}
        if fact.code is not None:
            # One row that keeps its place, whatever becomes of the file; nothing is known that could cut a mask to it.
            views.append({**keyed, "tile": None, "transform": None, "mask_uri": None})
            continue
        check_tile(row, fact.size)
        for view in _cut(keyed, fact, options):
            _check_mask(dataset, view, fact, checked_masks)
            views.append(view)
    return with_findings(replace(dataset, table=manifest_table(views)), facts)


def with_findings(dataset: Dataset, facts: Mapping[str, ImageFacts] = MappingProxyType({})) -> Dataset:
    """A dataset with what is noticed of its images and classes.

    Args:
        dataset: just made.
        facts: of the images that were looked at, by their paths.
    """
    table = dataset.table
    unreadable = {uri for uri, fact in facts.items() if fact.code is not None}
    found = (*_unreadable(facts), *copies(table, unreadable), *classes_without_images(table, dataset.spec))
    return replace(dataset, findings=(*dataset.findings, *found))


def _unreadable(facts: Mapping[str, ImageFacts]) -> tuple[Finding, ...]:
    """The images whose rows will be invalid, by reason."""
    by_code: dict[str, list[str]] = defaultdict(list)
    for uri, fact in facts.items():
        if fact.code is not None:
            by_code[fact.code].append(uri)
    found: tuple[Finding, ...] = ()
    for code, uris in sorted(by_code.items()):
        detail = facts[min(uris, key=str.encode)].detail
        found += finding("unreadable", f"images recorded as {code}", uris, detail=detail)
    return found


def check_tile(row: Row, size: Size | None) -> None:
    """Refuse a tile that has no pixel of its image, as far as is known.

    Args:
        row: of a manifest.
        size: of the image, (width, height); None where nobody has looked.

    Raises:
        ManifestError: the tile or the transform is impossible, or the tile lies outside.
    """
    size = resize_target(row.get("transform")) or size
    if row.get("tile") is None or not is_outside(tile_box(row["tile"]), size or (math.inf, math.inf)):
        return
    of_size = f" of {size[0]} x {size[1]}" if size else ""
    raise ManifestError(
        f"tile {row['tile']} has no pixel of its image {row['uri']!r}{of_size}. Correct its x and y, which count from "
        "the upper left corner after the transform, or remove the row."
    )


def limit_images(rows: Sequence[Row], images_per_split: int) -> list[Row]:
    """The rows of the first images of each split, taking labels in turn so that none is lost to the alphabet.

    Args:
        rows: in any order; all rows of an image stay or go together.
        images_per_split: how many images of each split to keep.

    Returns:
        The kept rows, in the order given.
    """
    groups: dict[Any, dict[Any, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(rows, key=lambda row: row["uri"].encode()):
        groups[row.get("split")][row.get("label")][row["uri"]] = None
    kept: set[tuple[Any, str]] = set()
    for split, labels in groups.items():
        turns = sorted((turn, rank, uri) for rank, uris in enumerate(labels.values()) for turn, uri in enumerate(uris))
        kept.update((split, uri) for _, _, uri in turns[:images_per_split])
    return [row for row in rows if (row.get("split"), row["uri"]) in kept]


def _inspect(
    root: Path, rows: Sequence[Row], options: DatasetOptions, progress: Progress | None
) -> dict[str, ImageFacts]:
    """Facts of every image that lacks its key, or whose size decides something."""
    tiled = options.tile is not None
    wanted = {row["uri"]: None for row in rows if tiled or row.get("mask_uri") or not row.get("image_sha256")}
    with_size = tiled or options.content_key == "sha256" or any(row.get("mask_uri") for row in rows)
    uris = list(wanted)
    found = inspect_images(
        root, uris, content_key=options.content_key, with_size=with_size, rules=options.rules, progress=progress
    )
    if found and len(wanted) == len({row["uri"] for row in rows}) and all(fact.code == "missing" for fact in found):
        raise ManifestError(
            f"none of the {len(found)} images is there; the first is {uris[0]!r} under {str(root)!r}. {_way_to(uris)}"
        )
    return dict(zip(uris, found, strict=True))


def _way_to(uris: Sequence[str]) -> str:
    """What to do where no image is found under its path."""
    if any("\\" in uri for uri in uris):
        return (
            "Paths are written with backslashes, as on Windows, and here a backslash is a letter of a name: write '/' "
            "instead, relative to the folder of the table or to --root."
        )
    return "Give the folder that their paths are relative to (--root for a manifest)."


def _is_whole(row: Mapping[str, Any]) -> bool:
    return row.get("tile") is None and row.get("transform") is None


def _check_tiles_divide(rows: Sequence[Row], facts: Mapping[str, ImageFacts], options: DatasetOptions) -> None:
    side = options.tile
    if side is None or options.tile_fit != "refuse":
        return
    sizes = {row["uri"]: fact.size for row in rows if _is_whole(row) and (fact := facts[row["uri"]]).size is not None}
    misfits = [(uri, size) for uri, size in sizes.items() if size and (size[0] % side or size[1] % side)]
    if not misfits:
        return
    uri, (width, height) = misfits[0]
    common = math.gcd(*(length for size in sizes.values() if size for length in size))
    another = f"another tile, such as {common}, which divides every image" if common >= 16 else "another tile"
    raise ManifestError(
        f"image {uri!r} is {width} x {height}, which tiles of {side} do not divide"
        f"{f' ({len(misfits)} of {len(sizes)} images)' if len(misfits) > 1 else ''}. Use --tile-fit pad (black at the "
        f"right and bottom), --tile-fit resize (to the nearest multiple), or {another}."
    )


def _cut(row: Row, fact: ImageFacts, options: DatasetOptions) -> Iterator[Row]:
    if options.tile is None or fact.size is None or not _is_whole(row):
        yield row
        return
    target = fact.size
    if options.tile_fit == "resize":
        target = (_nearest_multiple(target[0], options.tile), _nearest_multiple(target[1], options.tile))
    transform = None
    if target != fact.size:
        parameters = canonical_json({"width": target[0], "height": target[1]})
        transform = {"name": "resize", "parameters": parameters}
    columns, rows = -(-target[0] // options.tile), -(-target[1] // options.tile)
    if columns * rows > MAX_TILES_PER_IMAGE:
        raise ManifestError(
            f"image {row['uri']!r} would give {columns * rows} tiles of {options.tile}; at most {MAX_TILES_PER_IMAGE} "
            "an image are cut. Use a larger tile."
        )
    for index in range(columns * rows):
        x, y = index % columns * options.tile, index // columns * options.tile
        yield {**row, "tile": {"x": x, "y": y, "width": options.tile, "height": options.tile}, "transform": transform}


def _nearest_multiple(length: int, side: int) -> int:
    """The multiple of `side` nearest to `length`, the larger of two that are as near; never 0."""
    return max(1, (2 * length + side) // (2 * side)) * side


def _check_mask(dataset: Dataset, view: Row, fact: ImageFacts, checked: dict[tuple[str, str], Size]) -> None:
    """Refuse a mask of another size than its image, and padding that would have no label."""
    if view.get("mask_uri") is None or fact.size is None:
        return
    pair = (view["uri"], view["mask_uri"])
    if pair not in checked:
        checked[pair] = mask_size(
            dataset.root, view["mask_uri"], dataset.rules, colours=bool(dataset.mask_values.colours)
        )
        if checked[pair] != fact.size:
            (width, height), (mask_width, mask_height) = fact.size, checked[pair]
            raise ManifestError(
                f"mask {view['mask_uri']!r} is {mask_width} x {mask_height}, but its image {view['uri']!r} is "
                f"{width} x {height}{_way_to_fit(checked[pair] == (height, width))}"
            )
    width, height = resize_target(view.get("transform")) or fact.size
    if view.get("tile") is not None and dataset.spec.void is None:
        left, top, right, bottom = tile_box(view["tile"])
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ManifestError(
                f"tile {view['tile']} leaves image {view['uri']!r} of {width} x {height}, and its mask has no class "
                "for what lies outside. State a void value with --void or dataset.json, or use --tile-fit resize."
            )


def _way_to_fit(turned: bool) -> str:
    if turned:
        return " with its EXIF orientation applied. Save the mask as the image is shown."
    return (
        ". A mask has one value for each pixel of its image: cut or resize it to the image's size (to the nearest "
        "pixel, without smoothing), or remove both."
    )
