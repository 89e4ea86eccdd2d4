"""What an adapter noticed while it made a manifest: counted and named, so that nothing is lost in silence."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.manifest import DatasetSpec
from feature_store.manifest_order import ROWS_AT_ONCE, image_numbers

FindingKind = Literal["passed_over", "unreadable", "copies", "labels", "class_without_images", "class_without_pixels"]
MOST_NAMED = 1000
_MOST_NUMBERS = 10
_MOST_KINDS = 100
_SHA256_LENGTH = 64
_SHA256 = "^[0-9a-f]{64}$"
# Odd numbers, so that a change of any bit of a digest changes the sum.
_MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Things of one sort that a user should hear of before an extraction starts.

    Attributes:
        kind: `passed_over` for what gives no row, `unreadable` for images whose rows will be invalid, `copies` for
            images with the bytes of another, `labels` for labels that may mean something else to their author, and
            classes that no image or no pixel has.
        what: the sort of things, as a phrase in the plural.
        count: how many there are.
        names: the first of them by name, at most `MOST_NAMED`.
        detail: what more is known, such as why the first one cannot be read.
    """

    kind: FindingKind
    what: str
    count: int
    names: tuple[str, ...]
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return {**asdict(self), "names": list(self.names)}


def finding(kind: FindingKind, what: str, names: Iterable[str], *, detail: str = "") -> tuple[Finding, ...]:
    """One finding of these things, or none where there are none."""
    every = sorted(names, key=_bytes)
    if not every:
        return ()
    return (Finding(kind=kind, what=what, count=len(every), names=tuple(every[:MOST_NAMED]), detail=detail),)


def copies(table: pa.Table, unreadable: Collection[str]) -> tuple[Finding, ...]:
    """Images with the bytes of another: in two splits they are a leak, and each finds the other as its neighbour.

    Args:
        table: the manifest.
        unreadable: paths of images that cannot be read, such as empty files, which are alike and no pictures.
    """
    some = table.select(["image_sha256", "uri", "split"]).filter(pa.array(_perhaps_repeated(table)))
    of_images = some.group_by(["image_sha256", "uri"])
    images = of_images.aggregate([("split", "min")])
    counts = images.group_by("image_sha256").aggregate([("uri", "count")])
    repeated = counts.filter(pc.greater(counts["uri_count"], 1))["image_sha256"]
    repeated = repeated.filter(pc.equal(pc.utf8_length(repeated), _SHA256_LENGTH))
    if not len(repeated):
        return ()
    alike = images.filter(pc.is_in(images["image_sha256"], value_set=repeated)).to_pylist()
    rows = sorted(
        (row for row in alike if row["uri"] not in unreadable),
        key=lambda row: (row["image_sha256"], _bytes(row["uri"])),
    )
    pairs = [pair for pair in pairwise(rows) if pair[0]["image_sha256"] == pair[1]["image_sha256"]]
    across = sum(one["split_min"] != other["split_min"] for one, other in pairs)
    detail = f"{pairs[0][1]['uri']!r} is {pairs[0][0]['uri']!r}" if pairs else ""
    detail += f"; {across} of them in another split than the one before" if across else ""
    return finding("copies", "images with the bytes of another", [other["uri"] for _, other in pairs], detail=detail)


def _perhaps_repeated(table: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The rows whose sha256 may be that of another image: few, so that grouping them takes little memory.

    Digests are told apart by 64 bits made of all of theirs, eight bytes a row.
    """
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    has_sha256 = np.zeros(table.num_rows, dtype=bool)
    start = 0
    for batch in table.select(["image_sha256"]).to_batches(max_chunksize=ROWS_AT_ONCE):
        keys = batch["image_sha256"]
        is_sha256 = pc.match_substring_regex(keys, _SHA256).to_numpy(zero_copy_only=False)
        digits = "".join(keys.filter(pa.array(is_sha256)).to_pylist())
        rows = start + np.flatnonzero(is_sha256)
        words = np.frombuffer(bytes.fromhex(digits), dtype=">u8").reshape(-1, len(_MIXERS)).astype(np.uint64)
        mixed[rows] = (words * _MIXERS).sum(axis=1, dtype=np.uint64)
        has_sha256[rows] = True
        start += batch.num_rows
    # Rows of one image stand together, and are no copies of each other.
    numbers = image_numbers(table["uri"])
    of_images = np.sort(mixed[has_sha256 & (np.diff(numbers, prepend=-1) != 0)])
    repeated = np.unique(of_images[1:][of_images[1:] == of_images[:-1]])
    return has_sha256 & np.isin(mixed, repeated)


def classes_without_images(table: pa.Table, spec: DatasetSpec) -> tuple[Finding, ...]:
    """The classes that no row has, where there are labels at all."""
    labels = set(pc.unique(table["label"]).to_pylist()) - {None}
    absent = [name for number, name in enumerate(spec.classes) if labels and number not in labels]
    what = "classes without an image that is read"
    if not absent or any(name != str(number) for number, name in enumerate(spec.classes)):
        return finding("class_without_images", what, absent)
    # Nobody named these classes: they are all numbers up to the highest label, which may be a slip of the pen.
    detail = f"labels have gaps: {len(labels)} of the numbers from 0 to {spec.n_classes - 1} are used"
    names = tuple(absent[:_MOST_NUMBERS])
    return (Finding(kind="class_without_images", what=what, count=len(absent), names=names, detail=detail),)


def classes_without_pixels(spec: DatasetSpec, seen: Collection[int]) -> tuple[Finding, ...]:
    """The classes that no pixel has, where there are masks at all.

    Args:
        spec: the classes.
        seen: the values that the masks hold, see `Dataset.iter_masks`.
    """
    absent = [name for number, name in enumerate(spec.classes) if seen and number not in seen]
    return finding("class_without_pixels", "classes that no pixel of the masks has", absent)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


class PassedOver:
    """Counts what gives no row, by sort; memory is bounded however many things and sorts there are."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, what: str, name: str) -> None:
        """Count one more thing of this sort."""
        if what not in self._counts and len(self._counts) >= _MOST_KINDS:
            what = "others"
        self._counts[what] = self._counts.get(what, 0) + 1
        names = self._names.setdefault(what, [])
        if len(names) < MOST_NAMED:
            names.append(name)

    def findings(self) -> tuple[Finding, ...]:
        """Everything that was counted, the most frequent sort first."""
        sorts = sorted(self._counts, key=lambda what: (-self._counts[what], what))
        return tuple(
            Finding(
                kind="passed_over",
                what=what,
                count=self._counts[what],
                names=tuple(sorted(self._names[what], key=_bytes)),
            )
            for what in sorts
        )
