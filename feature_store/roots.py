"""From a URL to the objects under it."""

import fsspec

from feature_store.errors import StoreError
from feature_store.objects import LocalRoot, ObjectRoot, local_folder, redact
from feature_store.remote_objects import RemoteRoot


def open_root(url: str) -> ObjectRoot:
    """The objects under `url`: a path, `file://`, or any URL that fsspec knows.

    Raises:
        StoreError: an empty or impossible path, or fsspec knows no such protocol, or lacks the package for it.
    """
    protocol, separator, path = url.partition("://")
    if not separator or protocol in {"file", "local"}:
        return LocalRoot(local_folder(path if separator else url))
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"cannot open {redact(url)!r}: {error}. Use a folder or a URL that fsspec can open."
        ) from error
    return RemoteRoot(filesystem, root, redact(url))
