"""`dataset.json`: what a folder of images says of itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError, ManifestError
from feature_store.manifest import DatasetSpec
from pipelines.datasets.dataset import DatasetOptions
from pipelines.datasets.mask_values import MAX_MASK_VALUE, MaskValues, classes_of_values, mask_values

DESCRIPTION_FILE = "dataset.json"
MAX_CLASSES = MAX_MASK_VALUE + 1
_MAX_BYTES = 8 << 20
_MAX_TEXT = 4096
_VALUE = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a dataset besides its files.

    Attributes:
        spec: as the store holds it.
        mask_values: what the values in its mask files mean.
    """

    spec: DatasetSpec
    mask_values: MaskValues


def describe(folder: Path, options: DatasetOptions, *, found_classes: tuple[str, ...] = ()) -> Description:
    """What is known of a dataset: first the options, then its `dataset.json`, then what its folders say.

    Args:
        folder: where `dataset.json` may stand; it also gives the name when nothing else does.
        options: the user's.
        found_classes: class names that the layout itself states.

    Raises:
        ManifestError: `dataset.json` is not valid, or its parts contradict one another, or two classes have one name.
    """
    stated = read_description(folder)
    named = stated.get("classes") or classes_of_values(stated.get("values", {}))
    classes = options.classes if options.classes is not None else named or found_classes
    # Colours belong to the classes that the file lists, not to others that a user names.
    colours = stated.get("colours", ()) if classes == named else ()
    void = options.void_values if options.void_values is not None else _void_values(stated.get("void"))
    meaning = mask_values(classes, stated, void=void, colours=colours)
    spec = DatasetSpec(
        name=options.name or stated.get("name") or _name_from(folder),
        classes=classes,
        void=meaning.void,
        colours=colours,
        license=stated.get("license", ""),
        source=stated.get("source", ""),
    )
    return Description(spec=spec, mask_values=meaning)


def _void_values(stated: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return () if stated is None else (stated,) if isinstance(stated, int) else stated


def _name_from(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64] or "dataset"


def read_description(folder: Path) -> dict[str, Any]:
    """The checked fields of `dataset.json`, or nothing where there is none; other fields are passed over.

    Raises:
        ManifestError: too large, not JSON, a field that stands there twice, or one of the wrong type.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are read. Shorten it.")
    try:
        value = parse_json(path.read_bytes(), name=str(path), unique_names=True)
    except CorruptError as error:
        raise ManifestError(str(error)) from error
    fields = {key: value[key] for key in _CHECKS if value.get(key) is not None}
    wrong = [key for key, content in fields.items() if not _CHECKS[key](content)]
    if wrong:
        raise ManifestError(
            f"{path}: {wrong} are not of the right form. It holds name, license and source (text), classes (a list of "
            f"at most {MAX_CLASSES} texts), void (a whole number from 0 to {MAX_MASK_VALUE}, or a list of them), "
            'offset (the mask value of the first class), values (such as {"0": "void", "1": "wall"}), colours (red, '
            "green, blue from 0 to 255, one a class) and void_colours (a list of such colours)."
        )
    return {key: _frozen(content) for key, content in fields.items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_CLASSES and all(_is_text(name) and name for name in value)


def _is_number_up_to(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _is_values(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _VALUE.fullmatch(number) and int(number) <= MAX_MASK_VALUE and (name is None or (_is_text(name) and name))
        for number, name in value.items()
    )


def _is_colours(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_CLASSES
        and all(isinstance(c, list) and len(c) == 3 and all(_is_number_up_to(part, 255) for part in c) for c in value)
    )


_CHECKS: Mapping[str, Any] = {
    "name": _is_text,
    "classes": _is_classes,
    "void": lambda value: all(
        _is_number_up_to(number, MAX_MASK_VALUE) for number in (value if isinstance(value, list) else [value])
    ),
    "offset": lambda value: _is_number_up_to(value, MAX_MASK_VALUE),
    "values": _is_values,
    "colours": _is_colours,
    "void_colours": _is_colours,
    "license": _is_text,
    "source": _is_text,
}
