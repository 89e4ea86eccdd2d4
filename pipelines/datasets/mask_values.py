"""What the values or colours in mask files mean, and the class numbers that stand for them in the store.

Published masks count classes from 1, mark void with several values, use 255 for a class, or paint classes in colours.
The store holds class numbers and one void value, so evaluators and digests know one form only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from feature_store.errors import ManifestError
from pipelines.datasets.masks import ColourMask, Mask, values_in

Colour: TypeAlias = tuple[int, int, int]
VOID_WORD = "void"
MAX_MASK_VALUE = 65535
_PIXELS_PER_STEP = 1 << 20
_SHOWN = 10
_RED, _GREEN = 1 << 16, 1 << 8


@dataclass(frozen=True, kw_only=True)
class MaskValues:
    """From what stands in mask files to what the store holds.

    Attributes:
        classes: names, by class number.
        void: the value that the store holds where there is no class, or None.
        values: the stored value by the file's, or None where values are class numbers as they stand.
        colours: the stored value by the file's (red, green, blue); empty where masks may not hold colours.
    """

    classes: tuple[str, ...] = ()
    void: int | None = None
    values: Mapping[int, int] | None = None
    colours: Mapping[Colour, int] = field(default_factory=dict)

    def stored(self, mask: Mask | ColourMask, uri: str) -> Mask:
        """The class numbers of a mask as read from its file.

        Raises:
            ManifestError: a value or a colour that means nothing; names the file, the value and the way out.
        """
        if mask.ndim == 3:
            return self._from_colours(mask, uri)
        present = values_in(mask)
        if self.values is None:
            unknown = [value for value in present if value >= len(self.classes) and value != self.void]
        else:
            unknown = [value for value in present if value not in self.values]
        if unknown:
            raise ManifestError(self._refusal(uri, present, unknown))
        if self.values is None:
            return mask
        table = np.zeros(int(np.iinfo(mask.dtype).max) + 1, self._dtype)
        for value in present:
            table[value] = self.values[value]
        return table[mask]

    def to_json(self) -> dict[str, Any]:
        """How files were read, for the record of a run; the store's own values are in its dataset.json."""
        named = {str(value): self._name(number) for value, number in (self.values or {}).items()}
        colours = [[list(colour), self._name(number)] for colour, number in self.colours.items()]
        return {"values": None if self.values is None else named, "colours": colours}

    def _name(self, number: int) -> str:
        return VOID_WORD if number == self.void else self.classes[number]

    @property
    def _dtype(self) -> type[np.uint8 | np.uint16]:
        highest = max(len(self.classes) - 1, self.void or 0)
        return np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16

    def _from_colours(self, pixels: ColourMask, uri: str) -> Mask:
        known = sorted((_code(colour), value) for colour, value in self.colours.items())
        codes, values = np.array([code for code, _ in known]), np.array([value for _, value in known], self._dtype)
        height, width, _ = pixels.shape
        mask = np.empty((height, width), self._dtype)
        rows = max(1, _PIXELS_PER_STEP // width)
        for start in range(0, height, rows):
            part = pixels[start : start + rows].astype(np.int64)
            found = part[..., 0] * _RED + part[..., 1] * _GREEN + part[..., 2]
            places = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
            if (codes[places] != found).any():
                row, column = np.argwhere(codes[places] != found)[0].tolist()
                raise ManifestError(
                    f"mask {uri!r} holds colour {pixels[start + row, column].tolist()} at x {column}, y {start + row}, "
                    f"which is none of the {len(known)} that are stated. Add it to 'colours', one a class, or to "
                    "'void_colours' in dataset.json; masks saved with blurred edges cannot be read."
                )
            mask[start : start + rows] = values[places]
        return mask

    def _refusal(self, uri: str, present: Sequence[int], unknown: Sequence[int]) -> str:
        first, n_classes = unknown[0], len(self.classes)
        if self.values is None:
            void = "there is no void value" if self.void is None else f"void is {self.void}"
            rule = f"classes are numbered 0 to {n_classes - 1} and {void}"
        else:
            rule = f"dataset.json says what {_listed(sorted(self.values))} mean"
        meaning = [value for value in present if value != self.void or self.values is not None]
        pairs = dict(zip(map(str, meaning), self.classes, strict=False))
        example = json.dumps(
            {"values": pairs if len(meaning) <= n_classes else {str(first): "..."}}, ensure_ascii=False
        )
        counted = ' If masks count classes from 1, write {"offset": 1, "void": 0} there.' if first == n_classes else ""
        return (
            f"mask {uri!r} holds values {_listed(present)}, of which {_listed(unknown)} mean nothing: {rule}. If "
            f"{first} is a class, say in dataset.json what each value means, such as {example}.{counted} If it marks "
            f"pixels without a class, give --void {first}, or 'void' in dataset.json."
        )


def _code(colour: Colour) -> int:
    return colour[0] * _RED + colour[1] * _GREEN + colour[2]


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def mask_values(
    classes: tuple[str, ...], stated: Mapping[str, Any], *, void: Sequence[int], colours: Sequence[Colour]
) -> MaskValues:
    """What masks mean by `values`, `offset`, `void`, `colours` and `void_colours` of a `dataset.json`.

    Args:
        classes: names, by class number.
        stated: the checked fields of `dataset.json`.
        void: values in the files that carry no class.
        colours: one a class, or nothing.

    Raises:
        ManifestError: the fields contradict one another.
    """
    if stated.get("values") is not None and stated.get("offset") is not None:
        raise ManifestError("dataset.json has 'values' and 'offset'; keep the one that says what mask values mean.")
    by_value = _by_value(classes, stated)
    for value in void:
        if by_value.get(value) is not None:
            raise ManifestError(
                f"void value {value} is also class {classes[by_value[value] or 0]!r}; give void a value of its own. If "
                'masks count classes from 1, write "offset": 1 in dataset.json, or say what each value means with '
                '"values".'
            )
        by_value[value] = None
    void_colours = stated.get("void_colours", ())
    one_void = _counts_from_0(stated) and len(set(void)) == 1
    stored_void = None
    if one_void:
        stored_void = void[0]
    elif void_colours or None in by_value.values():
        # One value for all that is void, above the classes: what the files use may be a class's number by now.
        stored_void = 255 if len(classes) <= 255 else MAX_MASK_VALUE
    plain = _counts_from_0(stated) and (one_void or not void)
    return MaskValues(
        classes=classes,
        void=stored_void,
        values=None if plain else {value: _or_void(number, stored_void) for value, number in by_value.items()},
        colours=_by_colour(colours, void_colours, stored_void),
    )


def _counts_from_0(stated: Mapping[str, Any]) -> bool:
    return stated.get("values") is None and not stated.get("offset")


def _or_void(number: int | None, void: int | None) -> int:
    if number is not None:
        return number
    assert void is not None, "some value is void, so there is a void value"
    return void


def _by_value(classes: tuple[str, ...], stated: Mapping[str, Any]) -> dict[int, int | None]:
    """The class number by the file's value, None for void."""
    values = stated.get("values")
    if values is None:
        first = stated.get("offset") or 0
        return {first + number: number for number in range(len(classes))}
    numbers: dict[str | None, int | None] = {None: None, VOID_WORD: None}
    numbers |= {name: number for number, name in enumerate(classes)}
    unknown = [(value, name) for value, name in values.items() if name not in numbers]
    if unknown:
        value, name = unknown[0]
        raise ManifestError(
            f"dataset.json says that mask value {value} is {name!r}, which is none of the classes {list(classes)[:9]}. "
            f"Correct the name, add it to 'classes', or write {VOID_WORD!r} for a value without a class."
        )
    return {int(value): numbers[name] for value, name in values.items()}


def _by_colour(colours: Sequence[Colour], void_colours: Sequence[Colour], void: int | None) -> dict[Colour, int]:
    """The stored value by colour; nothing where colours do not tell classes apart, which is fine for pictures."""
    if not colours or len({*colours, *void_colours}) < len(colours) + len(set(void_colours)):
        return {}
    by_colour = {colour: number for number, colour in enumerate(colours)}
    return by_colour | {colour: _or_void(None, void) for colour in void_colours}


def classes_of_values(values: Mapping[str, str | None]) -> tuple[str, ...]:
    """The classes that `values` names, in the order of the first value of each."""
    names = [values[value] for value in sorted(values, key=int)]
    return tuple(dict.fromkeys(name for name in names if name is not None and name != VOID_WORD))
