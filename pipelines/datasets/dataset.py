"""What an adapter makes: a manifest, what the dataset says of itself, and where its files stand."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Literal

import pyarrow as pa

from feature_store.errors import ManifestError
from feature_store.manifest import DatasetSpec
from pipelines.datasets.findings import Finding
from pipelines.datasets.mask_values import MAX_MASK_VALUE, MaskValues
from pipelines.datasets.masks import Mask, cut_mask, read_mask, values_in
from pipelines.image_files import DEFAULT_RULES, MAX_IMAGE_PIXELS, MOST_IMAGE_PIXELS, ReadingRules

TileFit = Literal["refuse", "pad", "resize"]
ContentKey = Literal["sha256", "stat"]
_ROWS_PER_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What a user may ask of every adapter.

    Attributes:
        name: how to call the dataset; None for the name in its `dataset.json`, else that of its folder.
        tile: side in pixels of the square tiles to cut each image into; None keeps images whole.
        tile_fit: what to do with an image that tiles do not divide: `refuse` it, `pad` it with black at the right and
            bottom, or `resize` it to the nearest multiple.
        content_key: what stands for an image's content: `sha256` of its bytes, or `stat`, its size and time of change.
        classes: names of the classes, in the order of their numbers; None for those the dataset states.
        void: the mask values without a class, one or several; None for those that the dataset states.
        limit_per_split: keep only so many images a split, spread evenly over their labels.
        max_pixels: of an image; one with more is not decoded, and its row is invalid (`too_large`).
        link_roots: folders outside the dataset's root that links in it may lead into.
        root: for `manifest:FILE`, the folder that its paths are relative to; None for the file's own.
        cache: for `demo`, the folder to write the scenes in; None for the user's cache folder.
    """

    name: str | None = None
    tile: int | None = None
    tile_fit: TileFit = "refuse"
    content_key: ContentKey = "sha256"
    classes: tuple[str, ...] | None = None
    void: int | tuple[int, ...] | None = None
    limit_per_split: int | None = None
    max_pixels: int = MAX_IMAGE_PIXELS
    link_roots: tuple[Path, ...] = ()
    root: Path | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("tile", "limit_per_split"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ManifestError(f"{name}={value}: it must be at least 1; leave it out for no {name}.")
        if self.tile_fit not in ("refuse", "pad", "resize"):
            raise ManifestError(f"tile_fit={self.tile_fit!r}: use 'refuse', 'pad' or 'resize'.")
        if self.content_key not in ("sha256", "stat"):
            raise ManifestError(f"content_key={self.content_key!r}: use 'sha256' or 'stat'.")
        for value in self.void_values or ():
            if not 0 <= value <= MAX_MASK_VALUE:
                raise ManifestError(f"void={value}: a mask holds values from 0 to {MAX_MASK_VALUE}; name one of them.")
        if not 1 <= self.max_pixels <= MOST_IMAGE_PIXELS:
            raise ManifestError(
                f"max_pixels={self.max_pixels}: it must be from 1 to {MOST_IMAGE_PIXELS}; the default is "
                f"{MAX_IMAGE_PIXELS}."
            )
        strange = [path for path in self.link_roots if not path.is_dir()]
        if strange:
            raise ManifestError(f"links may lead into {str(strange[0])!r}, which is no folder. Name a folder.")

    @property
    def void_values(self) -> tuple[int, ...] | None:
        """The mask values without a class; None for those that the dataset states."""
        return (self.void,) if isinstance(self.void, int) else self.void

    @property
    def rules(self) -> ReadingRules:
        """How images are read."""
        return ReadingRules(
            max_pixels=self.max_pixels, link_roots=tuple(path.resolve(strict=True) for path in self.link_roots)
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A manifest with what is needed to read what it names.

    Attributes:
        spec: name, classes, void label, license.
        table: the manifest, in row order.
        root: the folder that every path in the manifest is relative to.
        rules: how its images are read.
        stated_values: what the values in mask files mean, or None where they are class numbers.
        findings: what was noticed on the way and a user should hear of.
        keys_stated: whether any content key is a user's word, which nobody has held to the image yet.
    """

    spec: DatasetSpec
    table: pa.Table
    root: Path
    rules: ReadingRules = DEFAULT_RULES
    findings: tuple[Finding, ...] = ()
    stated_values: MaskValues | None = None
    keys_stated: bool = False

    @property
    def mask_values(self) -> MaskValues:
        """What the values in mask files mean; as long as nobody states it, they are class numbers and void."""
        return self.stated_values or MaskValues(classes=self.spec.classes, void=self.spec.void)

    def iter_masks(self, seen: set[int] | None = None) -> Iterator[Mask | None]:
        """The masks in row order, each cut to its view; None for a row without one.

        Values are class numbers and the dataset's void, whatever the file has for them. Each file is decoded once per
        run of rows that share it, and one mask is held at a time.

        Args:
            seen: gets every value that a mask holds.

        Raises:
            ManifestError: a mask that cannot be read, or holds a value that is neither a class nor void.
        """
        held: tuple[str, Mask] | None = None
        for batch in self.table.select(["mask_uri", "tile", "transform"]).to_batches(max_chunksize=_ROWS_PER_BATCH):
            if batch["mask_uri"].null_count == batch.num_rows:
                yield from repeat(None, batch.num_rows)
                continue
            for row in batch.to_pylist():
                uri = row["mask_uri"]
                if uri is None:
                    yield None
                    continue
                if held is None or held[0] != uri:
                    mask = read_mask(self.root, uri, self.rules, colours=bool(self.mask_values.colours))
                    held = (uri, self.mask_values.stored(mask, uri))
                # A copy: whoever changes one row's mask must not change the next row's.
                cut = cut_mask(held[1], row["tile"], row["transform"], void=self.spec.void).copy()
                if seen is not None:
                    seen.update(values_in(cut))
                yield cut
