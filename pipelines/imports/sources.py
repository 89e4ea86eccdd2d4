"""The words that name a source of vectors on the command line, and the layout behind each."""

from collections.abc import Callable
from pathlib import Path

from pipelines.imports.clip_retrieval import open_clip_retrieval
from pipelines.imports.npy import open_npy
from pipelines.imports.parquet import open_parquet_vectors
from pipelines.imports.pt_folder import open_pt_folder
from pipelines.imports.source_arrays import ImportRefusedError
from pipelines.imports.vectors import ImportOptions, Vectors

_LAYOUTS: dict[str, Callable[[Path, ImportOptions], Vectors]] = {
    "npy": open_npy,
    "parquet": open_parquet_vectors,
    "clip-retrieval": open_clip_retrieval,
    "pt": open_pt_folder,
}
_FORMS = "npy:FILE, npy:FOLDER, parquet:FILE, clip-retrieval:FOLDER or pt:FOLDER"


def open_vectors(source: str, options: ImportOptions | None = None) -> Vectors:
    """Vectors that somebody else made.

    Args:
        source: `npy:FILE`, `npy:FOLDER`, `parquet:FILE`, `clip-retrieval:FOLDER` or `pt:FOLDER`.
        options: how to read it.

    Raises:
        ImportRefusedError: the source is not known, nothing is there, or what is there does not fit together.
        ManifestError: the table of rows breaks a rule.
    """
    kind, separator, place = source.partition(":")
    if not separator or kind not in _LAYOUTS or not place or "\0" in place:
        raise ImportRefusedError(f"source {source!r} is not known; write {_FORMS}.")
    return _LAYOUTS[kind](Path(place).expanduser(), options or ImportOptions())
