"""`npy:FILE` or `npy:FOLDER`: arrays that numpy.save wrote, and a table of their rows.

A folder is what `vitrine export --to npy` writes: an npy file a token kind, the rows, and the names of the classes.
"""

from pathlib import Path
from typing import Any

from feature_store.canonical import parse_json
from feature_store.errors import CorruptError
from feature_store.identity import FEATURE_KINDS, TokenKind
from pipelines.imports.rows_file import read_rows
from pipelines.imports.source_arrays import ImportRefusedError, NpyFile, SourceArray
from pipelines.imports.vectors import ImportOptions, Vectors, kinds_of, stated_text

ROWS_FILES = ("rows.csv", "rows.jsonl", "rows.parquet")
EXPORT_RECORD = "export.json"


def open_npy(path: Path, options: ImportOptions) -> Vectors:
    """Vectors in one npy file, or one a token kind.

    Args:
        path: a file, or a folder with `cls.npy`, `patches.npy` or `registers.npy`.
        options: `rows` names the table; a folder has its own.

    Raises:
        ImportRefusedError: no such files, or arrays that do not fit one another.
    """
    if path.is_dir():
        arrays: dict[TokenKind, SourceArray] = {
            kind: NpyFile(path / f"{kind}.npy") for kind in FEATURE_KINDS if (path / f"{kind}.npy").is_file()
        }
        if not arrays:
            raise ImportRefusedError(
                f"{path} holds none of cls.npy, patches.npy and registers.npy; name the .npy file."
            )
        for kind, array in arrays.items():
            if len(array.row_shape) != (1 if kind == "cls" else 2):
                raise ImportRefusedError(
                    f"{array.name} has rows of shape {list(array.row_shape)}, which are no {kind}."
                )
        rows = options.rows or next(
            (path / name for name in ROWS_FILES if (path / name).is_file()), path / ROWS_FILES[0]
        )
        name = path.resolve().name
    else:
        arrays = kinds_of(NpyFile(path), prefix_tokens=options.prefix_tokens)
        rows, name = options.rows or path.with_suffix(".csv"), path.stem
    record = _export_record(path) if path.is_dir() else {}
    classes = record.get("classes")
    return Vectors(
        layout="npy",
        arrays=arrays,
        rows=read_rows(rows, renamed=options.columns),
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
        name=name,
        dataset=stated_text(record, "dataset"),
    )


def _export_record(folder: Path) -> dict[str, Any]:
    path = folder / EXPORT_RECORD
    if not path.is_file():
        return {}
    try:
        return parse_json(path.read_bytes(), name=str(path))
    except CorruptError as error:
        raise ImportRefusedError(f"{error} Or remove it: it only names the dataset and its classes.") from error
