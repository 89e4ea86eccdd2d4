"""Weights in several files: transformers cuts large ones, and an index says which file holds which tensor."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<ending>safetensors|bin)")
_MOST_INDEX_BYTES = 16 << 20
_MOST_PARTS = 1000


class PartsError(ValueError):
    """An index that cannot be followed, said so that it follows `weights FILE`."""


def is_index(path: Path) -> bool:
    """Whether a path names an index of weights in several files."""
    return path.name in INDEX_FILES


def parts_of(path: Path) -> Sequence[Path]:
    """The files that hold the weights of a path: itself, or those that its index names, in the order of their names.

    Raises:
        PartsError: an index that is no such JSON, that names anything but files beside it, or one that is not there.
    """
    held: Sequence[Path] | None = getattr(path, "held_parts", None)
    if held is not None:
        return held
    if not is_index(path):
        return (path,)
    names = names_by_part(path)
    if not names or len(names) > _MOST_PARTS:
        raise PartsError(f"name {len(names)} files, and 1 to {_MOST_PARTS} are read; fetch the folder again")
    parts = [path.with_name(name) for name in sorted(names)]
    if absent := next((part for part in parts if not part.is_file()), None):
        raise PartsError(f"name {absent.name!r}, which is not beside them; fetch the whole folder")
    return parts


def names_by_part(index: Path) -> Mapping[str, Collection[str]]:
    """The names of the tensors that an index places in each file, by the file's name; none leads to another folder.

    Raises:
        PartsError: an index that is no such JSON, or that names anything but files beside it.
    """
    placed: dict[str, set[str]] = {}
    try:
        if index.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError("it is larger than 16 MB")
        content = json.loads(index.read_text(encoding="utf-8"))
        for tensor, name in content["weight_map"].items():
            placed.setdefault(name, set()).add(tensor)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise PartsError(f"are no index of files ({str(error)[:160]}); fetch the folder again") from error
    for name in placed:
        if not isinstance(name, str) or not _PART.fullmatch(name) or "/" in name or "\\" in name:
            raise PartsError(f"name {str(name)[:80]!r}, which is no file like model-00001-of-00002.safetensors")
    return placed


def misplaced(part: str, placed: Collection[str], held: Collection[str]) -> str | None:
    """What is to be said of a file that holds other tensors than its index says; None where both agree.

    A network that lacks its last blocks looks like a smaller one, so that nothing but the index can tell.

    Args:
        part: the file's name.
        placed: the names of the tensors that the index places in it.
        held: the names of those that it holds.
    """
    if lacking := sorted(set(placed) - set(held)):
        return f"place {_told(lacking)} in {part!r}, which does not hold it; fetch the folder again"
    if unplaced := sorted(set(held) - set(placed)):
        return f"do not place {_told(unplaced)} in {part!r}, which holds it; fetch the folder again"
    return None


def _told(names: Sequence[str]) -> str:
    """The first of some tensors, and how many more there are."""
    return f"{names[0][:80]!r}" + (f" (and {len(names) - 1} more)" if names[1:] else "")


def digest_of_parts(parts: Iterable[tuple[str, str]]) -> str:
    """One digest for weights in several files: of their names and digests, so that no file can be another.

    Args:
        parts: name and sha256 of each file.
    """
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def lone_part(path: Path) -> str | None:
    """What is to be said of one of several files that is given alone; None for any other file."""
    found = _PART.fullmatch(path.name)
    if found is None or int(found["count"]) < len(("one", "another")):
        return None
    index = path.with_name(f"{found['stem']}.{found['ending']}.index.json")
    beside = f"give {index}" if index.is_file() else f"fetch the whole folder, with {index.name}, and give it"
    return f"are {int(found['number'])} of {int(found['count'])} files that hold one model; {beside} with --weights"
