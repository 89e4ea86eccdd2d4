"""Paths as users write them in tables, and the one way in which a manifest spells them."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import ManifestError

# An absolute path, or one with a part that says nothing: `./a`, `a//b`, `a/./b`, `a/`.
_NOT_PLAIN = r"(^|/)\.?(/|$)"
_SHOWN_CHARACTERS = 200


def plain_paths(paths: pa.ChunkedArray, roots: Sequence[Path], place: Callable[[int], str]) -> pa.Array:
    """Paths relative to the root, each spelled in one way, so that `./a.png` and `a.png` are one image.

    Nothing on the disk is looked at: the paths may be a stranger's.

    Args:
        paths: texts or nulls.
        roots: the ways in which users may spell the dataset's root, all absolute: as given, and with links resolved.
        place: what to call a row by its index.

    Raises:
        ManifestError: an absolute path that is not under the root.
    """
    column = pa.concat_arrays(paths.chunks)
    unusual = pc.fill_null(pc.match_substring_regex(column, _NOT_PLAIN), False)
    if not pc.any(unusual).as_py():
        return column
    rows = pc.indices_nonzero(unusual).to_pylist()
    spelled = [_plain(column[row].as_py(), roots, place, row) for row in rows]
    return pc.replace_with_mask(column, unusual, pa.array(spelled, pa.string()))


def _plain(path: str, roots: Sequence[Path], place: Callable[[int], str], row: int) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or "\0" in path:
        # The path of nothing ("", "./") and a URL stay as they are: whoever checks paths refuses them.
        return pure.as_posix() if pure.parts and "://" not in path else path
    for root in roots:
        if ".." not in pure.parts and pure.is_relative_to(root) and pure.relative_to(root).parts:
            return pure.relative_to(root).as_posix()
    raise ManifestError(
        f"{place(row)}: path {path[:_SHOWN_CHARACTERS]!r} is not under the dataset's root {str(roots[0])!r}. Give the "
        "folder that holds all images with --root, or correct the path."
    )
