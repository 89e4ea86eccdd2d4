"""From a URL to the objects under it."""

import functools
from typing import Any

import fsspec

from feature_store.errors import StoreError
from feature_store.objects import LocalRoot, ObjectRoot, local_folder, redact
from feature_store.remote_objects import SIDE_BY_SIDE, RemoteRoot

_S3_PROTOCOLS = {"s3", "s3a"}


def open_root(url: str) -> ObjectRoot:
    """The objects under `url`: a path, `file://`, or any URL that fsspec knows.

    Raises:
        StoreError: an empty or impossible path, or fsspec knows no such protocol, or lacks the package for it.
    """
    protocol, separator, path = url.partition("://")
    if not separator or protocol in {"file", "local"}:
        return LocalRoot(local_folder(path if separator else url))
    try:
        options = _s3_options(url, protocol, path) if protocol in _S3_PROTOCOLS else {}
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise StoreError(
            f"cannot open {redact(url)!r}: {_without_secrets(str(error), url)}. Use a folder or a URL that fsspec can "
            "open; for s3:// install the extra `s3`: pip install 'vitrine[s3]'."
        ) from error
    return RemoteRoot((type(filesystem), dict(filesystem.storage_options)), root, redact(url))


def process_root(url: str) -> ObjectRoot:
    """As `open_root`, for a worker that comes back with every shard: behind a URL one root, and one client, a process.

    A folder is opened anew each time, since a relative path means another one once the process has moved.
    """
    return _remote_root(url) if "://" in url else open_root(url)


@functools.lru_cache(maxsize=8)
def _remote_root(url: str) -> ObjectRoot:
    return open_root(url)


def _without_secrets(message: str, url: str) -> str:
    return message.replace(url, redact(url))


def _s3_options(url: str, protocol: str, path: str) -> dict[str, Any]:
    """What s3fs is told besides what it finds in the environment and in fsspec's configuration.

    Raises:
        StoreError: a URL with credentials or a query, which s3fs would take for a part of the bucket or the key.
    """
    bucket = path.partition("/")[0]
    if "@" in bucket or ":" in bucket or "?" in path or "#" in path:
        raise StoreError(
            f"{redact(url)!r} was given with credentials, a query or a fragment, which an {protocol} URL cannot have, "
            "and which others would see in the list of processes. Name bucket and path alone; credentials come from "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from AWS_PROFILE or from fsspec's configuration."
        )
    if not bucket:
        raise StoreError(f"{url!r} names no bucket; write s3://BUCKET/PATH.")
    configured: dict[str, Any] = fsspec.config.conf.get(protocol, {})
    # One attempt a call: `remote_calls` tries again. Listings are never remembered: other processes write too.
    config = {
        "max_pool_connections": SIDE_BY_SIDE,
        **configured.get("config_kwargs", {}),
        "retries": {"total_max_attempts": 1},
    }
    return {"config_kwargs": config, "use_listings_cache": False}
