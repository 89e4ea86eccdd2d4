"""Labels as users write them, numbers or names, and the class numbers that they mean."""

import re
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import ManifestError
from pipelines.datasets.description import MAX_CLASSES

# pandas writes whole numbers with gaps as 1.0.
_NUMBER = re.compile(r"(-?[0-9]+)(?:\.0+)?")
_SHOWN_CHARACTERS = 60


def number_labels(
    labels: pa.ChunkedArray | pa.Array, classes: Sequence[str] | None, place: Callable[[int], str]
) -> tuple[pa.Array, tuple[str, ...]]:
    """Labels as class numbers, and the names of the classes.

    Labels that are all whole numbers are class numbers. Otherwise they are class names, numbered as `classes` lists
    them, or in the order of their bytes.

    Args:
        labels: one text a row, or null.
        classes: the stated names, or None (or nothing) where nobody stated any.
        place: what to call a row by its index.

    Returns:
        The numbers (int32, null where there is no label), and the names.

    Raises:
        ManifestError: a label that the classes do not explain; names the first row that has it.
    """
    whole = pa.concat_arrays(labels.chunks) if isinstance(labels, pa.ChunkedArray) else labels
    encoded = pc.dictionary_encode(whole)
    given: list[str] = encoded.dictionary.to_pylist()
    matches = [_NUMBER.fullmatch(label) for label in given]
    if all(matches):
        numbers = [max(-1, min(int(match[1]), MAX_CLASSES)) for match in matches if match]
        names = tuple(classes or map(str, range(min(max(numbers, default=-1) + 1, MAX_CLASSES))))
    else:
        names = tuple(classes or sorted(filter(None, given), key=str.encode))
        index = {name: number for number, name in enumerate(names)}
        numbers = [index.get(label, -1) for label in given]
    wrong = [at for at, number in enumerate(numbers) if not 0 <= number < min(len(names), MAX_CLASSES)]
    if wrong:
        row = pc.index(encoded.indices, wrong[0]).as_py()
        raise ManifestError(f"{place(row)}: {_refusal(given[wrong[0]], names, numbered=all(matches))}")
    return pc.take(pa.array(numbers, pa.int32()), encoded.indices), names


def _refusal(label: str, names: Sequence[str], *, numbered: bool) -> str:
    shown = label if len(label) <= _SHOWN_CHARACTERS else f"{label[:_SHOWN_CHARACTERS]}..."
    if numbered and (label.startswith("-") or len(names) == MAX_CLASSES):
        return f"label {shown}: class numbers go from 0 to {MAX_CLASSES - 1}. Leave it empty where there is none."
    listed = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    return (
        f"label {shown!r} is none of the {len(names)} classes ({listed}). Correct it, or add its name to --classes or "
        "dataset.json."
    )
