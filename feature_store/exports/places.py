"""Where an export may be written: outside every store, and over nothing but what an earlier export wrote."""

import os
import re
from pathlib import Path
from typing import Any

from feature_store.canonical import MAX_JSON_BYTES, parse_json
from feature_store.errors import CorruptError, StoreError
from feature_store.layout import STORE_FILE

_RECORD, _FIFTYONE_RECORD = "export.json", "metadata.json"
# By the format that the record in a folder names, what else an export writes into it.
_CONTENTS = {
    "npy": re.compile(r"(cls|patches|registers|mean)\.npy|rows\.csv|export\.json"),
    "webdataset": re.compile(r"[0-9]{6,}\.tar|export\.json"),
    "fiftyone": re.compile(r"metadata\.json|samples\.json"),
}


class ExportRefusedError(StoreError, ValueError):
    """An export that was asked for and cannot be made, with the reason and the way out."""


def check_place(place: Path, *, folder: bool, overwrite: bool) -> Path:
    """Refuse a place that lies in a store, or where something stands that must not give way.

    Args:
        place: where a file or folder is to be written.
        folder: whether it is a folder. A folder gives way only where an export wrote it and all that is in it.
        overwrite: whether what stands there gives way.

    Returns:
        The place, absolute and without links on the way to it.

    Raises:
        ExportRefusedError: it is a store or lies in one, its folder is not there, something stands there and
            `overwrite` is False, or what stands there is neither a plain file nor the folder of an export.
    """
    try:
        real = place.resolve() if place.name in {"", ".."} else place.parent.resolve() / place.name
        target = real.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL
        raise ExportRefusedError(f"{str(place)!r} is no path that can be written; choose another.") from error
    for above in (real, *real.parents, target, *target.parents):
        if os.path.lexists(above / STORE_FILE):
            what = "is a Vitrine store" if above in {real, target} else f"lies in the Vitrine store {above}"
            raise ExportRefusedError(f"{place} {what}, which holds nothing but its own; choose a path outside of it.")
    if os.path.lexists(real):
        reason = _why_it_stays(real, folder=folder)
        if reason is not None:
            raise ExportRefusedError(f"{place} {reason}, so it is never replaced; choose another path.")
        if not overwrite:
            raise ExportRefusedError(f"{place} exists; choose another path, or pass --overwrite to replace it.")
    if not real.parent.is_dir():
        raise ExportRefusedError(f"{place.parent} is not a folder; make it first, or choose another path.")
    return real


def _why_it_stays(real: Path, *, folder: bool) -> str | None:
    """Why what stands there does not give way to a file or to a folder; None where it does."""
    if real.is_symlink():
        return "is a link"
    if not real.is_dir():
        if not real.is_file():
            return "is no plain file"
        return "is a file, and this format writes a folder" if folder else None
    if not folder:
        return "is a folder, and this format writes a file"
    contents = _CONTENTS.get(_format_of(real) or "")
    if contents is None:
        return "is a folder that no export wrote"
    others = sorted(
        entry.name
        for entry in os.scandir(real)
        if not contents.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False)
    )
    return f"holds {others[0][:100]!r}, which no export wrote" if others else None


def _format_of(folder: Path) -> str | None:
    """The format of the export that wrote a folder, by the record that it left."""
    record: Any = _read(folder / _RECORD)
    if record is None:
        information = (_read(folder / _FIFTYONE_RECORD) or {}).get("info")
        record = information.get("vitrine") if isinstance(information, dict) else None
    if not isinstance(record, dict) or record.get("written_by") != "vitrine":
        return None
    return str(record.get("format"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
            return None
        return parse_json(path.read_bytes(), name=str(path))
    except (OSError, CorruptError):
        return None  # somebody else's
