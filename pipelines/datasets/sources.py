"""The words that name a dataset on the command line, and the adapter behind each."""

from collections.abc import Callable
from pathlib import Path

from feature_store.errors import ManifestError
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.demo_scenes import open_demo_scenes
from pipelines.datasets.image_folder import open_image_folder
from pipelines.datasets.manifest_file import open_manifest_file
from pipelines.datasets.scan import Progress
from pipelines.datasets.segmentation_folder import open_segmentation_folder

_ADAPTERS: dict[str, Callable[[Path, DatasetOptions, Progress | None], Dataset]] = {
    "images": open_image_folder,
    "segmentation": open_segmentation_folder,
    "manifest": open_manifest_file,
}
_FORMS = "images:PATH, segmentation:PATH, manifest:FILE or demo"


def open_dataset(source: str, *, options: DatasetOptions | None = None, progress: Progress | None = None) -> Dataset:
    """Make the manifest of a dataset.

    Args:
        source: `images:PATH`, `segmentation:PATH`, `manifest:FILE` or `demo`.
        options: tiles, names, limits; None for the defaults.
        progress: called with (images done, images in all) while images are keyed and measured.

    Raises:
        ManifestError: the source is not known, nothing is there, or the dataset breaks a rule.
        OSError: a file is there but cannot be read.
    """
    options = options or DatasetOptions()
    if source == "demo":
        return open_demo_scenes(options, progress)
    kind, separator, place = source.partition(":")
    if not separator or kind not in _ADAPTERS or not place:
        meant = f" Did you mean images:{source}?" if source and Path(source).expanduser().is_dir() else ""
        raise ManifestError(f"dataset {source!r} is not known; write {_FORMS}.{meant}")
    if "\0" in place:
        raise ManifestError(f"dataset {source!r}: a path holds no NUL; write {_FORMS}.")
    return _ADAPTERS[kind](Path(place).expanduser(), options, progress)
