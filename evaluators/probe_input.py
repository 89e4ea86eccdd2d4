"""What a probe reads from a feature set: which rows train and which test, their tokens, and their labels.

A token is one thing to classify: a patch of a view (`patches`, labelled by its mask), or a whole view by its class
token (`cls`) or the mean of its patches (`mean`), labelled by the manifest.
"""

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int64, Integer, UInt

from evaluators.errors import AskedError
from evaluators.feature_map import FeatureMap, standardising
from evaluators.held_out import groups_of, hold_out_images
from evaluators.moments import Moments, stream_moments
from evaluators.scores import patch_labels
from evaluators.subject import DEFAULT_TRAIN_SPLIT, KIND_READ, Subject, resolve_subject
from evaluators.token_stream import stored_tokens
from feature_store import FeatureSet, Selection, StoreError, UnknownNameError
from feature_store.nearest_name import did_you_mean
from feature_store.query.columns import numbered_texts

_TEST_SPLITS = ("test", "val", "validation")
_LABELS_AT_ONCE = 2**16
_HOLD_OUT = "test on images held out, whole ones and drawn with a seed, with --hold-out 0.25."


class ProbeInput:
    """The tokens and labels of one subject, streamed from the store.

    Args:
        features: the feature set.
        subject: which of its tokens.
        selection: which features of a token; None for all.

    Raises:
        StoreError: no masks or labels for the subject, no test rows, a layer or token kind that is not stored, or a
            scored class that there is not.
        SelectionError: the selection was made for other weights, or on other tokens.
    """

    def __init__(self, features: FeatureSet, subject: Subject, selection: Selection | None = None) -> None:
        self.features = features
        resolved = resolve_subject(features, subject)
        self.on, self.layer = resolved.on, int(resolved.layer)
        if selection is not None:
            selection.check_fits(features.spec, layer=self.layer, kind=KIND_READ[self.on])
        self.columns = None if selection is None else np.asarray(selection.features, dtype=np.int64)
        self.n_classes = features.dataset.spec.n_classes
        self.scored = _scored_classes(subject.scored, self.n_classes)
        self.train_rows, self.test_rows, self.train_name, self.test_name = self._split(subject)

    @property
    def n_features(self) -> int:
        """Features of a token after the selection."""
        return self.features.spec.n_features if self.columns is None else len(self.columns)

    @property
    def tokens_per_row(self) -> int:
        """Things to classify in one row."""
        return self.features.spec.n_patches if self.on == "patches" else 1

    @property
    def selecting(self) -> FeatureMap:
        """The map that only chooses the selected features."""
        return FeatureMap(columns=self.columns)

    @cached_property
    def train_moments(self) -> Moments:
        """Moments of all stored features over the training tokens."""
        return stream_moments(tokens for _, tokens in self.stored_blocks(self.train_rows))

    @property
    def standardising(self) -> FeatureMap:
        """The map that chooses the selected features and standardises them by the training tokens."""
        return standardising(self.train_moments, self.columns)

    def stored_blocks(
        self, rows: Int64[np.ndarray, " rows"], *, block_bytes: int = 32 << 20
    ) -> Iterator[tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, "tokens features"]]]:
        """The tokens of some rows, as stored, block by block.

        Args:
            rows: ascending row numbers.
            block_bytes: about how much is read at a time.

        Returns:
            An iterator over (rows of the block, tokens [rows * tokens_per_row, features]).
        """
        return stored_tokens(self.features, rows, on=self.on, layer=self.layer, block_bytes=block_bytes)

    def labels(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " tokens"]:
        """The class of every token of some rows, in the order of `stored_blocks`; void is `n_classes`."""
        if self.on != "patches":
            labels: Int64[np.ndarray, " tokens"] = self._image_labels[rows]
            return labels
        grid = self.features.spec.grid
        found = [patch_labels(mask, grid).reshape(-1) for mask in self.features.masks.iter_masks(rows.tolist())]
        values = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        return np.where((values >= 0) & (values < self.n_classes), values, self.n_classes).astype(np.int64)

    def compact_labels(self, rows: Int64[np.ndarray, " rows"]) -> UInt[np.ndarray, " tokens"]:
        """What `labels` says, in the smallest unsigned type that holds it: a byte a token for up to 255 classes.

        For as many rows as a bank has: nothing larger is held on the way but one mask.

        Args:
            rows: rows that have a mask or a label.
        """
        values = np.empty(len(rows) * self.tokens_per_row, dtype=np.min_scalar_type(self.n_classes))
        rows_at_once = max(1, _LABELS_AT_ONCE // self.tokens_per_row)
        for first in range(0, len(rows), rows_at_once):
            part = slice(first * self.tokens_per_row, (first + rows_at_once) * self.tokens_per_row)
            values[part] = self.labels(rows[first : first + rows_at_once])
        return values

    def scored_truth(self, labels: Integer[np.ndarray, "*labels"]) -> Int64[np.ndarray, "*labels"]:
        """True classes with void, `n_classes`, in place of every class that is not scored."""
        values: Int64[np.ndarray, "*labels"] = np.where(np.isin(labels, self.scored), labels, self.n_classes).astype(
            np.int64
        )
        return values

    def trained_on(self, rows: Int64[np.ndarray, " rows"]) -> "ProbeInput":
        """The same subject with these rows, ascending, as its training rows."""
        other = copy(self)
        other.__dict__.pop("train_moments", None)
        other.train_rows = rows
        return other

    def images_of(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """A number for the image that each row shows the whole or a part of, in the order of the images' digests."""
        numbers: Int64[np.ndarray, " rows"] = self._images[rows]
        return numbers

    def hold_out(
        self, rows: Int64[np.ndarray, " rows"], *, share: float, seed: int
    ) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
        """Hold out a share of the sequences, or images where there are none, of some rows; see `hold_out_images`.

        Images that stand in two places stay together. Whole images are held out class by class.
        """
        groups = self._groups(rows)
        strata = None if self.on == "patches" else self._image_labels[rows]
        return hold_out_images(groups, share=share, seed=seed, strata=strata)

    def _held_in_words(self, rows: Int64[np.ndarray, " rows"], held: Int64[np.ndarray, " held"]) -> str:
        """How much was really held out: sequences, or images that share content, may be of very uneven length."""
        groups = self._groups(rows)
        n_groups, n_images = len(np.unique(groups)), len(np.unique(self.images_of(rows)))
        unit = "images" if n_groups == n_images else "groups of images of one sequence or content"
        return f"{len(np.unique(groups[held]))} of {n_groups} {unit}, {len(held)} of {len(rows)} rows"

    def _groups(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Of each row the number of the images that it stays together with."""
        columns = self.features.columns(["sequence", "uri"])
        in_sequence = pc.fill_null(pc.not_equal(columns["sequence"], ""), False)
        names = numbered_texts(pc.if_else(in_sequence, columns["sequence"], columns["uri"]))
        return groups_of(names[rows], self.images_of(rows))

    @cached_property
    def _images(self) -> Int64[np.ndarray, " rows"]:
        return numbered_texts(self.features.columns(["image_sha256"])["image_sha256"])

    @cached_property
    def _image_labels(self) -> Int64[np.ndarray, " rows"]:
        labels = pc.fill_null(self.features.columns(["label"])["label"], -1)
        return np.asarray(labels.to_numpy(), dtype=np.int64)

    def _split(self, subject: Subject) -> tuple[Any, Any, str, str]:
        usable = self.features.valid & self._has_label()
        there = [name for name in self.features.splits if name and (self.features.in_split(name) & usable).any()]
        # A default that the dataset lacks is nothing that a user typed.
        for typed in (subject.train_split if subject.train_split != DEFAULT_TRAIN_SPLIT else None, subject.test_split):
            if typed is not None:
                self._require_split(typed, there, subject)
        train = np.flatnonzero(self.features.in_split(subject.train_split) & usable)
        name = subject.train_split
        if subject.hold_out is not None and not there and name == DEFAULT_TRAIN_SPLIT:
            train, name = np.flatnonzero(usable), "all rows"
        if not train.size:
            raise StoreError(self._no_training_rows(subject, there))
        if subject.hold_out is not None:
            kept, held = self.hold_out(train, share=subject.hold_out, seed=subject.seed)
            note = f"{self._held_in_words(train, held)}, seed {subject.seed}"
            return train[kept], train[held], f"{name} without the held out", f"held out of {name}: {note}"
        wanted = [subject.test_split] if subject.test_split else list(_TEST_SPLITS)
        if subject.test_split == subject.train_split:
            others = ", ".join(name for name in there if name != subject.train_split) or "none"
            raise AskedError(
                f"--test-split {subject.test_split!r} is the split to train on as well; name another one (there: "
                f"{others}), or test on held-out images with --hold-out 0.2."
            )
        for name in wanted:
            test = np.flatnonzero(self.features.in_split(name) & usable)
            if test.size and name != subject.train_split:
                return train, test, subject.train_split, str(name)
        raise StoreError(
            f"no test rows: none of the splits {', '.join(map(str, wanted))} has valid labelled rows besides "
            f"{subject.train_split!r} (splits there: {', '.join(there)}). Name one with --test-split, or test on "
            "held-out images with --hold-out 0.2."
        )

    def _require_split(self, name: str, there: list[str], subject: Subject) -> None:
        """Refuse a split that was named and that no row has."""
        if not self.features.splits:
            way_out = f"and {_HOLD_OUT}" if subject.hold_out is None else "and --hold-out draws from all rows."
            raise UnknownNameError(
                f"split {name!r} is not in {self.features.name}, whose dataset {self.features.dataset.spec.name!r} has "
                f"no splits; leave it out, {way_out}"
            )
        if there and name not in self.features.splits:
            raise UnknownNameError(
                f"split {name!r} is not in {self.features.name}{did_you_mean(name, there)}; splits there: "
                f"{', '.join(there)}."
            )

    def _no_training_rows(self, subject: Subject, there: list[str]) -> str:
        """What is wrong, and the way out."""
        if there:
            return (
                f"split {subject.train_split!r} has no valid labelled rows (splits there: {', '.join(there)}); name "
                "one with --train-split."
            )
        return (
            f"dataset {self.features.dataset.spec.name!r} has no splits, so nothing says what to train and what to "
            f"test on; {_HOLD_OUT}"
        )

    def _has_label(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        if self.on == "patches":
            return self.features.masks.with_mask
        return self._image_labels >= 0


def _scored_classes(scored: tuple[int, ...] | None, n_classes: int) -> Int64[np.ndarray, " classes"]:
    if scored is None:
        return np.arange(n_classes)
    if not scored or list(scored) != sorted(set(scored)) or not 0 <= scored[0] <= scored[-1] < n_classes:
        raise StoreError(
            f"scored classes {list(scored)[:10]}: name some of the classes 0..{n_classes - 1}, each once, ascending."
        )
    return np.asarray(scored, dtype=np.int64)
