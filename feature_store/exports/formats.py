"""The words that name a format on the command line, and the writer behind each."""

from dataclasses import dataclass
from pathlib import Path

from feature_store.exports.atlas import write_atlas
from feature_store.exports.fiftyone import write_fiftyone
from feature_store.exports.npy import write_npy
from feature_store.exports.parquet import write_parquet
from feature_store.exports.places import ExportRefusedError
from feature_store.exports.subject import ExportSubject
from feature_store.exports.webdataset import write_webdataset

FORMATS = ("atlas", "fiftyone", "npy", "parquet", "webdataset")
_WITH_PATCH_ROWS = ("atlas", "parquet")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How an export is written.

    Attributes:
        overwrite: whether what stands at the place gives way.
        patches: of `parquet` and `atlas`, a row a patch instead of a row a view.
        projection: of `atlas`: `pca`, `tsne` or `none`.
        seed: of t-SNE.
        images: of `fiftyone`, the folder that the images' paths are relative to.
    """

    overwrite: bool = False
    patches: bool = False
    projection: str = "pca"
    seed: int = 0
    images: Path | None = None


def export_features(subject: ExportSubject, to: str, place: Path, options: ExportOptions | None = None) -> int:
    """Write an export; it stands at `place` whole, or not at all.

    Args:
        subject: which tokens of which rows.
        to: one of `FORMATS`.
        place: a file for `parquet` and `atlas`, a folder for the others.
        options: how; None for the defaults.

    Returns:
        Bytes written.

    Raises:
        ExportRefusedError: an unknown format, something stands at `place`, or the format cannot hold the subject.
    """
    how = options or ExportOptions()
    if to not in FORMATS:
        raise ExportRefusedError(f"--to {to!r}: choose among {', '.join(FORMATS)}.")
    if how.patches and to not in _WITH_PATCH_ROWS:
        raise ExportRefusedError(f"--rows patches: {to} has a row a view; {' and '.join(_WITH_PATCH_ROWS)} can do it.")
    absolute = place.absolute()  # now: the current folder may be the one that is replaced
    if to == "npy":
        write_npy(subject, place, overwrite=how.overwrite)
    elif to == "parquet":
        write_parquet(subject, place, overwrite=how.overwrite, patches=how.patches)
    elif to == "webdataset":
        write_webdataset(subject, place, overwrite=how.overwrite)
    elif to == "fiftyone":
        write_fiftyone(subject, place, overwrite=how.overwrite, images=how.images)
    else:
        write_atlas(
            subject,
            place,
            overwrite=how.overwrite,
            patches=how.patches,
            projection=how.projection,
            seed=how.seed,
        )
    files = [absolute] if absolute.is_file() else [path for path in absolute.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
