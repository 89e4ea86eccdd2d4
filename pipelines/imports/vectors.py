"""What a layout gives: vectors by token kind, and a row of manifest columns for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

from feature_store.identity import FEATURE_KINDS, TokenKind
from feature_store.manifest import MANIFEST_SCHEMA
from pipelines.datasets.assemble import Row
from pipelines.imports.source_arrays import ImportRefusedError, SliceOfTokens, SourceArray

_VECTOR_AXES, _TOKEN_AXES = 1, 2


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How a source is to be read.

    Attributes:
        rows: the table that says what each vector is; None for the layout's own.
        columns: the table's column for a column of the manifest, e.g. {"uri": "image_path"}.
        vectors: of Parquet, the column of vectors.
        prefix_tokens: how many tokens before the patches are the class token (the first) and registers.
        batched: of `.pt` files, whether each holds many views.
        root: the folder of images and masks that paths are relative to; None where there is none at hand.
    """

    rows: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    vectors: str | None = None
    prefix_tokens: int = 0
    batched: bool = False
    root: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in MANIFEST_SCHEMA.names]
        if unknown:
            raise ImportRefusedError(
                f"--column {unknown[0][:60]}={self.columns[unknown[0]][:60]}: a manifest has no column "
                f"{unknown[0][:60]!r}; it has {', '.join(MANIFEST_SCHEMA.names)}. Write the manifest's column first."
            )


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Vectors that somebody else made, in the order of their source.

    Attributes:
        layout: `npy`, `parquet`, `clip-retrieval` or `pt`.
        arrays: one a token kind.
        rows: columns of the manifest by name, one dictionary a vector; `label` may be a class name.
        classes: names of the classes where the layout itself lists them.
        name: what to call the dataset when nobody says.
        dataset: the name of the dataset where the layout itself states it, as Vitrine's exports do.
    """

    layout: str
    arrays: Mapping[TokenKind, SourceArray]
    rows: Sequence[Row]
    classes: tuple[str, ...] | None = None
    name: str = "imported"
    dataset: str | None = None

    def __post_init__(self) -> None:
        for kind, array in self.arrays.items():
            if array.n_rows != len(self.rows):
                raise ImportRefusedError(
                    f"{array.name} has {array.n_rows} rows of {kind}, and {len(self.rows)} rows say what they are; "
                    "give one row for each vector, in the same order."
                )
        widths = {kind: array.row_shape[-1] for kind, array in self.arrays.items()}
        if len(set(widths.values())) > 1:
            raise ImportRefusedError(
                f"token kinds of different widths {widths}; a feature set has tokens of one model."
            )

    @property
    def kinds(self) -> tuple[TokenKind, ...]:
        """The token kinds in their order."""
        return tuple(kind for kind in FEATURE_KINDS if kind in self.arrays)

    @property
    def n_features(self) -> int:
        """Width of a vector."""
        return self.arrays[self.kinds[0]].row_shape[-1]

    @property
    def n_registers(self) -> int:
        """Register tokens of a row."""
        return self.arrays["registers"].row_shape[0] if "registers" in self.arrays else 0

    def grid(self, stated: tuple[int, int] | None) -> tuple[int, int]:
        """The (height, width) of the patch lattice: as stated, or the square that the patches fill; (1, 1) without any.

        Raises:
            ImportRefusedError: the patches do not fill it, or one is stated where there are no patches.
        """
        if "patches" not in self.arrays:
            if stated is not None:
                raise ImportRefusedError(
                    f"--grid {stated[0]}x{stated[1]} has no meaning here: {self.arrays[self.kinds[0]].name} has no "
                    "patches. Leave it out."
                )
            return 1, 1
        n_patches = self.arrays["patches"].row_shape[0]
        side = isqrt(n_patches)
        height, width = stated or (side, side)
        if height * width != n_patches:
            way = f"a grid of {height} x {width}" if stated else "a square"
            raise ImportRefusedError(
                f"{self.arrays['patches'].name} has {n_patches} patches a row, which do not fill {way}; state "
                "--grid HEIGHTxWIDTH, and with --prefix-tokens how many tokens before them are no patches."
            )
        return height, width


def kinds_of(array: SourceArray, *, prefix_tokens: int = 0) -> dict[TokenKind, SourceArray]:
    """Tell token kinds by the shape of a row: [features] is cls, [tokens, features] patches.

    Args:
        array: any rows.
        prefix_tokens: of [tokens, features], the first so many are the class token and registers.

    Raises:
        ImportRefusedError: another number of axes, or fewer tokens than the prefix takes.
    """
    axes = len(array.row_shape)
    if axes == _VECTOR_AXES and not prefix_tokens:
        return {"cls": array}
    if axes != _TOKEN_AXES:
        raise ImportRefusedError(
            f"{array.name} has shape {[array.n_rows, *array.row_shape]}; vectors are [rows, features], tokens [rows, "
            "patches, features]" + (" (--prefix-tokens needs these)." if prefix_tokens else ".")
        )
    n_tokens = array.row_shape[0]
    if n_tokens <= prefix_tokens:
        raise ImportRefusedError(
            f"{array.name} has {n_tokens} tokens a row; --prefix-tokens {prefix_tokens} leaves none."
        )
    kinds: dict[TokenKind, SourceArray] = {"patches": array}
    if prefix_tokens:
        kinds = {"patches": SliceOfTokens(array, slice(prefix_tokens, None)), "cls": SliceOfTokens(array, 0)}
    if prefix_tokens > 1:
        kinds["registers"] = SliceOfTokens(array, slice(1, prefix_tokens))
    return kinds


def stated_text(record: Mapping[str, Any], name: str) -> str | None:
    """What an export's record says under a name, where that is a text."""
    value = record.get(name)
    return value if isinstance(value, str) and value else None
