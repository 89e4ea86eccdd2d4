"""What is exported: which tokens of which rows, streamed block by block, with what the manifest says of each row."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from feature_store.canonical import canonical_json
from feature_store.datasets import read_manifest
from feature_store.exports.places import ExportRefusedError
from feature_store.identity import TokenKind
from feature_store.manifest import MANIFEST_SCHEMA
from feature_store.reader import FeatureSet
from feature_store.selections import Selection, made_elsewhere
from feature_store.token_reader import RowNumbers

Kind = Literal["cls", "patches", "registers", "mean"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Values: TypeAlias = np.ndarray[Any, Any]
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some consecutive rows of an export.

    Attributes:
        rows: their numbers in the feature set, ascending.
        values: [rows, *row shape].
        manifest: their rows of the manifest, in the same order.
    """

    rows: RowNumbers
    values: Values
    manifest: pa.Table


class ExportSubject:
    """The tokens of one layer and kind, of the valid rows among those asked for.

    Args:
        features: a complete feature set.
        kind: a stored token kind, or `mean` of the patches; None for cls, or the mean where no cls is stored.
        layer: a block number or `last`.
        selection: which features of a token; None for all.
        rows: row numbers, ascending; None for all.

    Raises:
        ExportRefusedError: an unknown kind, or no valid row.
        StoreError: a layer or kind that is not stored, or shards are missing.
        SelectionError: the selection was made for other weights, or on other tokens.
    """

    def __init__(
        self,
        features: FeatureSet,
        *,
        kind: str | None = None,
        layer: int | str = "last",
        selection: Selection | None = None,
        rows: RowNumbers | None = None,
    ) -> None:
        features.require_complete()
        stored = features.spec.identity.token_kinds
        chosen = kind or ("cls" if "cls" in stored else "mean")
        if chosen not in KINDS:
            raise ExportRefusedError(f"--kind {chosen!r}: choose among {', '.join(KINDS)}.")
        self.features = features
        self.kind: Kind = chosen
        self.layer = features.layer_number(layer)
        if selection is not None:
            selection.check_fits(features.spec, layer=self.layer, kind=self.stored_kind)
        self.selection = selection
        wanted = np.arange(features.spec.n_rows) if rows is None else rows
        self.rows: RowNumbers = wanted[features.valid[wanted]]
        self.n_invalid = len(wanted) - len(self.rows)
        if not len(self.rows):
            raise ExportRefusedError(f"{features.name} has no valid row among those asked for; nothing to export.")

    @property
    def stored_kind(self) -> TokenKind:
        """The kind that is read."""
        return "patches" if self.kind == "mean" else self.kind

    @property
    def n_features(self) -> int:
        """Features of a token after the selection."""
        return self.features.spec.n_features if self.selection is None else len(self.selection.features)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row's values."""
        if self.kind == "mean":
            return (self.n_features,)
        return (*self.features.spec.row_shape(self.stored_kind)[:-1], self.n_features)

    @property
    def dtype(self) -> str:
        """Of the values: the stored one, int8 as float32, and float32 for means."""
        return "float32" if self.kind == "mean" else self.features.spec.identity.value_dtype

    @cached_property
    def manifest(self) -> pa.Table:
        """The manifest's rows of the export, in order."""
        return read_manifest(self.features.root, self.features.dataset).take(pa.array(self.rows))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.features.dataset.spec.classes

    def class_name(self, label: int | None) -> str | None:
        """The name of a class number; None for no label and for void."""
        return self.classes[label] if label is not None and 0 <= label < len(self.classes) else None

    def blocks(self) -> Iterator[Block]:
        """Every row once, ascending, in blocks of bounded size."""
        columns = None if self.selection is None else np.asarray(self.selection.features, dtype=np.int64)
        found = self.features.iter_blocks(self.layer, self.stored_kind, rows=self.rows, block_bytes=_BLOCK_BYTES)
        done = 0
        for rows, tokens in found:
            values = tokens if columns is None else tokens[..., columns]
            if self.kind == "mean":
                values = values.astype(np.float32).mean(axis=1)
            yield Block(rows=rows, values=values, manifest=self.manifest.slice(done, len(rows)))
            done += len(rows)

    def record(self, to: str) -> dict[str, Any]:
        """What an export says of itself, wherever its format has room for it."""
        features, dataset = self.features, self.features.dataset
        return {
            "written_by": "vitrine",
            "format": to,
            "dataset": dataset.spec.name,
            "feature_set": features.name,
            "digest": features.digest,
            "annotations_digest": dataset.annotations_digest,
            "model": features.spec.title,
            "layer": self.layer,
            "kind": self.kind,
            "grid": list(features.spec.grid),
            "selection": None if self.selection is None else self.selection.name,
            **made_elsewhere(self.selection, self.layer, self.stored_kind),
            "features": None if self.selection is None else list(self.selection.features),
            "classes": list(dataset.spec.classes),
            "void": dataset.spec.void,
            "license": dataset.spec.license,
            "rows": len(self.rows),
            "invalid_rows_left_out": self.n_invalid,
        }


def plain_rows(block: Block) -> list[dict[str, Any]]:
    """The manifest's rows of a block as JSON values, nulls left out, with the row numbers."""
    rows = block.manifest.to_pylist()
    return [
        {"row": int(number), **{name: value for name, value in row.items() if value is not None}}
        for number, row in zip(block.rows, rows, strict=True)
    ]


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the manifest as lines of CSV; what is nested as canonical JSON. `vitrine import` reads them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in CSV_COLUMNS])
    return buffer.getvalue()


CSV_COLUMNS = ("row", *MANIFEST_SCHEMA.names)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return canonical_json(value) if isinstance(value, dict | list) else str(value)
