"""`dataset.json`: what a folder of images says of itself."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError, ManifestError
from feature_store.manifest import DatasetSpec
from pipelines.datasets.dataset import MAX_MASK_VALUE, DatasetOptions

DESCRIPTION_FILE = "dataset.json"
MAX_CLASSES = MAX_MASK_VALUE + 1
_MAX_BYTES = 8 << 20
_MAX_TEXT = 4096


def dataset_spec(folder: Path, options: DatasetOptions, *, found_classes: tuple[str, ...] = ()) -> DatasetSpec:
    """What is known of a dataset: first the options, then its `dataset.json`, then what its folders say.

    Args:
        folder: where `dataset.json` may stand; it also gives the name when nothing else does.
        options: the user's.
        found_classes: class names that the layout itself states.

    Raises:
        ManifestError: `dataset.json` is not valid, or its parts contradict one another.
    """
    stated = read_description(folder)
    classes = options.classes if options.classes is not None else stated.get("classes", found_classes)
    # Colours belong to the classes that the file lists, not to others that a user names.
    colours = stated.get("colours", ()) if classes == stated.get("classes") else ()
    return DatasetSpec(
        name=options.name or stated.get("name") or _name_from(folder),
        classes=classes,
        void=options.void if options.void is not None else stated.get("void"),
        colours=colours,
        license=stated.get("license", ""),
        source=stated.get("source", ""),
    )


def _name_from(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64] or "dataset"


def read_description(folder: Path) -> dict[str, Any]:
    """The checked fields of `dataset.json`, or nothing where there is none; other fields are passed over.

    Raises:
        ManifestError: too large, not JSON, or a field of the wrong type.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_BYTES:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are read. Shorten it.")
    try:
        value = parse_json(path.read_bytes(), name=str(path))
    except CorruptError as error:
        raise ManifestError(str(error)) from error
    fields = {key: value[key] for key in _CHECKS if value.get(key) is not None}
    wrong = [key for key, content in fields.items() if not _CHECKS[key](content)]
    if wrong:
        raise ManifestError(
            f"{path}: {wrong} are not of the right form. It holds name, license and source (text), classes (a list of "
            f"at most {MAX_CLASSES} texts), void (a whole number from 0 to {MAX_MASK_VALUE}) and colours (red, green, "
            "blue from 0 to 255, one a class)."
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


def _is_colours(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_CLASSES
        and all(isinstance(c, list) and len(c) == 3 and all(_is_number_up_to(part, 255) for part in c) for c in value)
    )


_CHECKS: Mapping[str, Any] = {
    "name": _is_text,
    "classes": _is_classes,
    "void": lambda value: _is_number_up_to(value, MAX_MASK_VALUE),
    "colours": _is_colours,
    "license": _is_text,
    "source": _is_text,
}
