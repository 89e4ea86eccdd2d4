"""Labels as users write them, numbers or names, and the class numbers that they mean."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import ManifestError
from pipelines.datasets.description import MAX_CLASSES
from pipelines.datasets.findings import Finding, finding

# pandas writes whole numbers with gaps as 1.0.
_NUMBER = re.compile(r"(-?[0-9]+)(?:\.0+)?")
# What Python, pandas, R and SQL write for a missing value. Not `none`, which people do call a class.
_NO_LABEL = frozenset({"NaN", "nan", "NAN", "None", "NA", "N/A", "<NA>", "NULL", "null"})
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class NumberedLabels:
    """Labels as the manifest holds them.

    Attributes:
        numbers: the class number of each row (int32), null where there is no label.
        classes: the names of the classes.
        findings: what a user should hear of the labels.
    """

    numbers: pa.Array
    classes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()


def number_labels(
    labels: pa.ChunkedArray | pa.Array, classes: Sequence[str] | None, place: Callable[[int], str]
) -> NumberedLabels:
    """Labels as class numbers, and the names of the classes.

    Labels that are all whole numbers are class numbers. Otherwise they are class names, numbered as `classes` lists
    them, or in the order of their bytes. Space around a label is no part of it, and what pandas and R write for a
    missing value is none, unless it is a stated class.

    Args:
        labels: one text a row, or null.
        classes: the stated names, or None (or nothing) where nobody stated any.
        place: what to call a row by its index.

    Raises:
        ManifestError: a label that the classes do not explain; names the first row that has it.
    """
    whole = pa.concat_arrays(labels.chunks) if isinstance(labels, pa.ChunkedArray) else labels
    stated = {name.strip() for name in classes or ()}
    encoded = pc.dictionary_encode(whole)
    # The distinct texts are few: they are looked at one by one, and the rows only by their numbers.
    given: list[str] = [text.strip() for text in encoded.dictionary.to_pylist()]
    missing = [text not in stated and (not text or text in _NO_LABEL) for text in given]
    present = [text for text, gone in zip(given, missing, strict=True) if not gone]
    numbered = all(map(_NUMBER.fullmatch, present))
    index: dict[str, int] = {}
    if numbered:
        index = {text: max(-1, min(int(text.partition(".")[0]), MAX_CLASSES)) for text in present}
        names = tuple(classes or map(str, range(min(max(index.values(), default=-1) + 1, MAX_CLASSES))))
    else:
        names = tuple(classes or sorted(set(present), key=str.encode))
        index = {name.strip(): number for number, name in enumerate(names)}
    numbers = [None if gone else index.get(text, -1) for text, gone in zip(given, missing, strict=True)]
    for at, number in enumerate(numbers):
        if number is not None and not 0 <= number < min(len(names), MAX_CLASSES):
            row = pc.index(encoded.indices, at).as_py()
            raise ManifestError(f"{place(row)}: {_refusal(given[at], names, numbered=numbered)}")
    words = {at for at, gone in enumerate(missing) if gone and given[at]}
    found = _missing_labels(encoded.indices, {at: given[at] for at in words})
    if not numbered:
        found += finding(
            "labels",
            "labels that look like numbers, taken as names since others are no numbers",
            {text for text in present if text not in stated and _NUMBER.fullmatch(text)},
        )
    return NumberedLabels(
        numbers=pc.take(pa.array(numbers, pa.int32()), encoded.indices), classes=names, findings=found
    )


def _missing_labels(indices: pa.Array, words: Mapping[int, str]) -> tuple[Finding, ...]:
    """The rows whose label is a word for no label, by their count, since they lose what a user may hold for a class."""
    if not words:
        return ()
    count = pc.sum(pc.is_in(indices, value_set=pa.array(list(words), indices.type))).as_py()
    names = tuple(sorted(set(words.values()), key=str.encode))
    what = "rows without a label, by a word for a missing value; a class of that name must be stated"
    return (Finding(kind="labels", what=what, count=count, names=names),)


def _refusal(label: str, names: Sequence[str], *, numbered: bool) -> str:
    shown = label if len(label) <= _SHOWN_CHARACTERS else f"{label[:_SHOWN_CHARACTERS]}..."
    if numbered and (label.startswith("-") or len(names) == MAX_CLASSES):
        return f"label {shown}: class numbers go from 0 to {MAX_CLASSES - 1}. Leave it empty where there is none."
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return (
        f"label {shown!r} is none of the {len(names)} classes ({listed}). Correct it, or add its name to --classes or "
        "dataset.json."
    )


def plain_splits(splits: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names of splits without the space around them, which is no part of a name; one of space alone is missing."""
    trimmed = pc.utf8_trim_whitespace(splits)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
