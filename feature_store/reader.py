"""One feature set of a store, to ask it something: its tokens, labels and masks. No backbone, no images."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from math import prod
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool

from feature_store import layout
from feature_store.arrays import row_bytes, token_layout, valid_layout
from feature_store.compression import Codec, DecodingReader, read_codecs
from feature_store.datasets import StoredDataset, dataset_in_force, open_masks, read_manifest
from feature_store.errors import CorruptError, IncompleteError, UnknownNameError
from feature_store.identity import FeatureSetSpec, TokenKind
from feature_store.intact import has_checksum, object_crc32c
from feature_store.manifest import removed_rows
from feature_store.masks import MaskReader
from feature_store.nearest_name import did_you_mean
from feature_store.objects import ObjectRoot
from feature_store.query.patches import PatchChoice, n_chosen, patch_numbers
from feature_store.query.rows import BLOCK_BYTES, RowQueries
from feature_store.receipts import REMOVED_ROW, InvalidRow, Receipt
from feature_store.receipts_index import read_index
from feature_store.shards import Shard, missing_shards, shards_of
from feature_store.storage import INT8
from feature_store.token_reader import RowNumbers, Rows, StatedChecksums, TokenReader, missing_object
from feature_store.writer import committed_receipts, read_spec, standing_shards

# A checksum is of a whole object. Rows picked out of a larger one would wait for bytes that nobody asked for.
_CHECKED_PER_READ = 8
_CHECKED_ALWAYS_BYTES = 1 << 20


class FeatureSet(RowQueries):
    """Everything that one (dataset, model, settings) run produced.

    Attributes:
        root: the store.
        name: `dataset-views8/model-digest8`.
        folder: its place in the store.
        spec: the content of `feature_set.json`.
        partial: whether evaluators may answer from the committed shards alone.
        older: the names of older states of the same dataset that the user's words fitted too, newest first.
    """

    def __init__(self, root: ObjectRoot, name: str, *, partial: bool = False, older: tuple[str, ...] = ()) -> None:
        self.root = root
        self.older = older
        self.partial = partial
        self.name = name
        self.folder = f"{layout.FEATURES}/{name}"
        self.spec: FeatureSetSpec = read_spec(root, self.folder)
        self._readers: dict[tuple[int, TokenKind], TokenReader | DecodingReader] = {}

    @property
    def digest(self) -> str:
        """The identity's digest."""
        return self.spec.identity.digest

    @property
    def dataset_name(self) -> str:
        """The dataset's name, as in the store's paths."""
        return layout.dataset_of(self.name)

    @cached_property
    def dataset(self) -> StoredDataset:
        """The dataset with the annotations in force.

        Raises:
            StoreNotFoundError: it is not in the store.
            CorruptError: it cannot be read, or has other rows.
        """
        found = dataset_in_force(self.root, self.dataset_name, self.spec.identity.views_digest)
        if found.n_rows != self.spec.n_rows:
            raise CorruptError(
                f"{found.folder} has {found.n_rows} rows, and {self.name} has {self.spec.n_rows}. Move the wrong one "
                "away and run the same `vitrine extract` again."
            )
        return found

    @cached_property
    def receipts(self) -> dict[int, Receipt]:
        """The valid receipts by shard index, as they stood when first asked for.

        Of a finished feature set they come out of the index, so that no object is looked at; what is missing then
        shows when it is read.
        """
        indexed = read_index(self.root, self.folder, self.spec)
        return committed_receipts(self.root, self.folder, self.spec) if indexed is None else indexed

    @cached_property
    def standing(self) -> tuple[Shard, ...]:
        """The committed shards by listings alone, however many there are; receipts that were changed count here."""
        stated = read_index(self.root, self.folder, self.spec)
        return self.shards if stated is not None else standing_shards(self.root, self.folder, self.spec)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards of the feature set."""
        return shards_of(self.spec.n_rows, self.spec.rows_per_shard)

    @property
    def missing(self) -> tuple[Shard, ...]:
        """The shards that are not committed."""
        return missing_shards(self.shards, self.receipts)

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return not self.missing

    @property
    def invalid_rows(self) -> tuple[InvalidRow, ...]:
        """The rows without tokens, with their reasons."""
        return tuple(entry for index in sorted(self.receipts) for entry in self.receipts[index].invalid)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all committed token rows."""
        return row_bytes(self.spec) * sum(receipt.stop - receipt.start for receipt in self.receipts.values())

    def require_complete(self) -> None:
        """Refuse to answer from a part.

        Raises:
            IncompleteError: shards are missing.
        """
        if self.missing and not self.partial:
            raise IncompleteError(
                f"{self.name} has {len(self.receipts)} of {len(self.shards)} shards; run the same `vitrine extract` "
                "again to finish it, or pass --partial to answer from what is there."
            )

    @cached_property
    def valid(self) -> Bool[np.ndarray, " rows"]:
        """Whether the row has tokens, as the receipts say; False in shards that are missing."""
        valid = np.zeros(self.spec.n_rows, dtype=bool)
        for receipt in self.receipts.values():
            valid[receipt.start : receipt.stop] = True
        valid[[entry.row for entry in self.invalid_rows]] = False
        return valid

    @cached_property
    def removed(self) -> Bool[np.ndarray, " rows"]:
        """Whether the row is only the place of a view that its dataset has no more; such a row counts nowhere."""
        removed = np.zeros(self.spec.n_rows, dtype=bool)
        if self.spec.identity.grown_from is None:
            return removed  # only a dataset that grew has such rows
        if not self.complete:
            return removed_rows(read_manifest(self.root, self.dataset, ["image_sha256"]))
        removed[[entry.row for entry in self.invalid_rows if entry.reason == REMOVED_ROW]] = True
        return removed

    @property
    def n_removed(self) -> int:
        """How many rows are only places of views that are gone, as far as shards are committed."""
        if self.spec.identity.grown_from is None:
            return 0
        return sum(entry.reason == REMOVED_ROW for entry in self.invalid_rows)

    def stored_valid(self) -> Bool[np.ndarray, " rows"]:
        """What the array of valid rows says, which is for other readers; `verify` holds it to the receipts."""
        valid = np.zeros(self.spec.n_rows, dtype=bool)
        if not self.receipts:
            return valid  # a run that has just begun may not have made the array yet
        array = layout.valid_array(self.folder)
        reader = TokenReader(self.root, array, valid_layout(self.spec), partial(self._checksum_of, array))
        for receipt in self.receipts.values():
            blocks = reader.blocks(np.arange(receipt.start, receipt.stop), receipt.stop - receipt.start)
            for rows, block in self._intact(blocks, array):
                valid[rows] = block
        return valid

    @cached_property
    def masks(self) -> MaskReader:
        """The masks of the views."""
        return open_masks(self.root, self.dataset)

    @property
    def features(self) -> "FeatureSet":
        """Itself: every row is asked; see `where` for some of them."""
        return self

    @property
    def rows(self) -> RowNumbers:
        """All row numbers, those without tokens among them."""
        return np.arange(self.spec.n_rows)

    def __len__(self) -> int:
        return self.spec.n_rows

    def rows_of_split(self, split: str | None) -> RowNumbers:
        """The valid rows of a split, ascending; of the whole feature set for None.

        Raises:
            UnknownNameError: the dataset has no such split.
        """
        if split is None:
            return np.flatnonzero(self.valid)
        belongs = self.in_split(split)
        if not belongs.any():
            question = did_you_mean(split, self.splits)
            raise UnknownNameError(
                f"split {split!r} is not in {self.name}{question}; splits there: {', '.join(self.splits) or 'none'}."
            )
        return np.flatnonzero(belongs & self.valid)

    def in_split(self, split: str) -> Bool[np.ndarray, " rows"]:
        """Whether each row belongs to a split."""
        belongs = pc.fill_null(pc.equal(self.columns(["split"])["split"], split), False)
        return np.asarray(belongs.to_numpy(), dtype=bool)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that rows belong to, sorted."""
        return tuple(sorted(pc.unique(self.columns(["split"])["split"]).drop_null().to_pylist()))

    def layer_number(self, layer: int | str) -> int:
        """A layer as a number: `last` is the highest that is stored.

        Raises:
            UnknownNameError: the layer is not stored.
        """
        layers = self.spec.identity.layers
        number = layers[-1] if layer == "last" else int(layer) if str(layer).isdecimal() else None
        if number not in layers:
            there = f"it has {', '.join(map(str, layers))}"
            if not str(layer).removeprefix("-").isdecimal():
                question = did_you_mean(str(layer), ["last"])
                raise UnknownNameError(f"layer {layer!r} is not in {self.name}{question}; {there}.")
            depth = self.spec.identity.architecture.get("depth")
            if int(layer) < 1 or (isinstance(depth, int) and int(layer) > depth):
                blocks = "" if depth is None else f" to {depth}, the blocks of the model"
                raise UnknownNameError(f"layer {layer!r} is not in {self.name}; {there}. Layers count from 1{blocks}.")
            raise UnknownNameError(
                f"layer {layer!r} is not in {self.name}; {there}. "
                f"`vitrine extract --layers {layer}` adds a feature set with it."
            )
        return number

    def read(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        rows: Sequence[int] | slice | np.ndarray[Any, Any] | None = None,
        patches: PatchChoice | None = None,
    ) -> Rows:
        """Tokens of some rows, as one new array.

        On a local disk, rows that make up a fair part of their shard (an eighth, or any of a shard up to 1 MiB) are
        held to the receipt's checksum, as those of `iter_blocks` always are. A few rows picked out of a large shard
        are not: the rest of it would have to be read. `vitrine verify --deep` reads all.

        Args:
            layer: a block number counted from 1, or `last`.
            kind: `patches`, `cls`, `registers` or `attention`.
            rows: row numbers in any order, a slice, or None for all. Ask for what fits in memory; stream the rest.
            patches: patch numbers in any order (row-major over the grid), a slice of them, or a mask of booleans of
                shape [patches] or [grid height, grid width]; None for all. Of a local disk nothing else is read;
                behind a URL whole rows are.

        Returns:
            [rows, patches, features], [rows, features], [rows, registers, features] or, of the class token to the
            patches, [rows, heads, patches], in the storage dtype, int8 as float32; rows that are not valid are zero,
            see `valid`.

        Raises:
            StoreError: the layer or kind is not stored.
            QueryError: patches that do not exist, or of another token kind.
            IncompleteError: a row lies in a shard that is not committed.
            CorruptError: what stands there is not what the feature set declares.
            IndexError: a row does not exist; none counts from the end.
            TypeError: `rows` holds no row numbers.
        """
        wanted = self._row_numbers(slice(None) if rows is None else rows)
        number = self._stored_layer(layer, kind)
        self._require_committed(wanted)
        reader = self._reader(number, kind)
        self._require_intact_where_cheap(number, kind, wanted)
        return reader.gather(wanted, patch_numbers(self.spec, kind, patches))

    def require_readable(self, layer: int | str, kind: TokenKind, rows: RowNumbers) -> TokenReader | DecodingReader:
        """The reader of one array, after making sure that these rows of it are there.

        Raises:
            StoreError: the layer or kind is not stored.
            IncompleteError: a row lies in a shard that is not committed, and the feature set was not opened as partial.
        """
        number = self._stored_layer(layer, kind)
        # First: a run that has just begun may not have made the array yet.
        if not self.partial:
            self._require_committed(rows)
        return self._reader(number, kind)

    def portable_reader(self, layer: int | str, kind: TokenKind, rows: RowNumbers) -> TokenReader | DecodingReader:
        """As `require_readable`, to be sent to another process: it knows its own shards, not the whole feature set."""
        self.require_readable(layer, kind, rows)
        number = self.layer_number(layer)
        array = layout.token_array(self.folder, number, kind)
        own: dict[str, int] = {}
        for index in np.unique(rows // self.spec.rows_per_shard).tolist():
            own |= self._stated(index, array)
        return self._new_reader(number, kind, StatedChecksums(by_path=own))

    def iter_blocks(
        self,
        layer: int | str = "last",
        kind: TokenKind = "patches",
        *,
        rows: np.ndarray[Any, Any] | None = None,
        patches: PatchChoice | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> Iterator[tuple[RowNumbers, Rows]]:
        """Valid rows in ascending order, block by block, in memory bounded by `block_bytes`.

        Args:
            layer, kind: as in `read`.
            rows: the rows wanted, ascending; None for all. Rows that are not valid are left out.
            patches: as in `read`.
            block_bytes: how large a block may be; at least one row. No block crosses a shard.

        Returns:
            An iterator over (row numbers [n], tokens [n, ...] in the storage dtype, int8 as float32). A block of
            consecutive rows is a read-only view of the mapped file, any other and any of int8 a copy.

        Raises:
            StoreError: the layer or kind is not stored.
            IncompleteError: a row lies in a shard that is not committed, and the feature set was not opened as partial.
            IndexError: a row does not exist, or rows do not ascend.
            TypeError: `rows` holds no row numbers.
            CorruptError: while iterating, an object does not have the checksum that its receipt states. Behind a URL
                only a shard that is read whole can be held to it, before its last block.
        """
        wanted = self._row_numbers(slice(None) if rows is None else rows)
        if (np.diff(wanted) <= 0).any():
            raise IndexError("the rows of iter_blocks must ascend, each once; sort them, or use read().")
        array = layout.token_array(self.folder, self._stored_layer(layer, kind), kind)
        if self.partial and not self.receipts:
            return iter(())  # a run that has just begun may not have made the arrays yet
        reader = self.require_readable(layer, kind, wanted)
        chosen = patch_numbers(self.spec, kind, patches)
        row_bytes = prod(self.spec.row_shape(kind)) * np.dtype(self.spec.identity.value_dtype).itemsize
        if chosen is not None:
            row_bytes = row_bytes * n_chosen(self.spec, chosen) // self.spec.n_patches
        blocks = reader.blocks(wanted[self.valid[wanted]], max(1, block_bytes // row_bytes), chosen)
        return self._intact(blocks, array)

    def _intact(self, blocks: Iterator[tuple[RowNumbers, Rows]], array: str) -> Iterator[tuple[RowNumbers, Rows]]:
        """The blocks, each after its shard was held to its receipt's checksum."""
        checked = None
        for rows, block in blocks:
            index = int(rows[0]) // self.spec.rows_per_shard
            if index != checked:
                self._require_intact(array, index)
                checked = index
            yield rows, block

    def _require_intact_where_cheap(self, layer: int, kind: TokenKind, rows: RowNumbers) -> None:
        array_layout = token_layout(self.spec, kind)
        array = layout.token_array(self.folder, layer, kind)
        indices, counts = np.unique(rows // self.spec.rows_per_shard, return_counts=True)
        for index, n_rows in zip(indices.tolist(), counts.tolist(), strict=True):
            size_bytes = array_layout.shard_bytes(self.shards[index].n_rows)
            if size_bytes <= max(n_rows * array_layout.row_bytes * _CHECKED_PER_READ, _CHECKED_ALWAYS_BYTES):
                self._require_intact(array, index)

    def require_intact(self, layer: int | str, kind: TokenKind, rows: np.ndarray[Any, Any]) -> None:
        """Hold every object behind some rows to its receipt's checksum, also behind a URL.

        Raises:
            CorruptError: an object was changed after it was written.
        """
        array = layout.token_array(self.folder, self.layer_number(layer), kind)
        for index in np.unique(self._row_numbers(rows) // self.spec.rows_per_shard).tolist():
            self._require_intact(array, index, remote_too=True)

    def _require_intact(self, array: str, index: int, *, remote_too: bool = False) -> None:
        for path, stated in self._stated(index, array).items():
            place = self.root.local_path(path)
            # Behind a URL the check would fetch every object twice; there it is made while a whole shard goes by.
            if place is None and not remote_too:
                continue
            try:
                intact = object_crc32c(self.root, path) == stated if place is None else has_checksum(place, stated)
            except FileNotFoundError as error:
                raise missing_object(path) from error
            if not intact:
                raise CorruptError(
                    f"{path} is not what its receipt says (checksum): its bytes were changed after they were written. "
                    "Move it away and run the same `vitrine extract` again, which computes that shard alone."
                )

    def _checksum_of(self, array: str, shard: Shard, path: str) -> int | None:
        return self._stated(shard.index, array).get(path)

    def _stated(self, index: int, array: str) -> dict[str, int]:
        """The CRC-32C of each object of a shard in one array, by path, as the receipt states it."""
        if index not in self.receipts:
            return {}
        objects = ((f"{self.folder}/{stored.path}", stored.crc32c) for stored in self.receipts[index].objects)
        return {path: checksum for path, checksum in objects if path.startswith(f"{array}/")}

    def _row_numbers(self, rows: Sequence[int] | slice | np.ndarray[Any, Any]) -> RowNumbers:
        n_rows = self.spec.n_rows
        if isinstance(rows, slice):
            return np.arange(n_rows)[rows]
        given = np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise TypeError(
                f"rows of shape {given.shape} and dtype {given.dtype}: give a list of row numbers; np.flatnonzero "
                "makes one of a mask."
            )
        if given.size and not 0 <= given.min() <= given.max() < n_rows:
            raise IndexError(
                f"rows {given.min()}..{given.max()} asked of {self.name}, which has 0..{n_rows - 1}; none counts from "
                "the end."
            )
        return given.astype(np.int64)

    @cached_property
    def codecs(self) -> dict[tuple[int, TokenKind], Codec]:
        """How each layer and kind was compressed; empty for a feature set that was extracted.

        Raises:
            CorruptError: what it was fitted with is missing, or not what `feature_set.json` states.
        """
        return read_codecs(self.root, self.folder, self.spec)

    def _stored_layer(self, layer: int | str, kind: TokenKind) -> int:
        if kind not in self.spec.identity.token_kinds:
            raise UnknownNameError(
                f"{self.name} has no {kind!r} tokens, only {', '.join(self.spec.identity.token_kinds)}; "
                f"`vitrine extract --tokens {kind}` adds a feature set with them."
            )
        return self.layer_number(layer)

    def _reader(self, layer: int, kind: TokenKind) -> TokenReader | DecodingReader:
        if (layer, kind) not in self._readers:
            checksum_of = partial(self._checksum_of, layout.token_array(self.folder, layer, kind))
            self._readers[layer, kind] = self._new_reader(layer, kind, checksum_of)
        return self._readers[layer, kind]

    def _new_reader(
        self, layer: int, kind: TokenKind, checksum_of: Callable[[Shard, str], int | None]
    ) -> TokenReader | DecodingReader:
        array = layout.token_array(self.folder, layer, kind)
        reader = TokenReader(self.root, array, token_layout(self.spec, kind), checksum_of)
        if self.spec.identity.storage_dtype != INT8:
            return reader
        quantiser = self.codecs[layer, kind].quantiser
        assert quantiser is not None  # what int8 means was checked when feature_set.json was read
        return DecodingReader(reader, quantiser, self.valid)

    def _require_committed(self, rows: np.ndarray[Any, Any]) -> None:
        absent = set((rows // self.spec.rows_per_shard).tolist()) - set(self.receipts)
        if absent:
            raise IncompleteError(
                f"rows of shard {min(absent)} of {self.name} are not committed; run the same `vitrine extract` again."
            )
