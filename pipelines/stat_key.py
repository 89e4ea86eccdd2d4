"""Content keys of files whose bytes are not hashed: size and time, which mean something under one root alone."""

import functools
import hashlib
from pathlib import Path

from feature_store.errors import ManifestError

STAT = "stat:"
_ROOT_DIGITS = 16


def stat_key(root: Path, size_bytes: int, mtime_ns: int) -> str:
    """The key of a file, for as long as it has this size and time and its dataset stands in this folder.

    Two folders may hold files of equal names, sizes and times, so the key carries a digest of the folder's path.
    """
    return f"{STAT}{size_bytes}-{mtime_ns}@{_root_digest(root)}"


def key_under(root: Path, key: str) -> str:
    """A key that a user's table states, with the root where it is one of size and time.

    Raises:
        ManifestError: such a key of another root.
    """
    if not key.startswith(STAT):
        return key
    plain, _, stated = key.partition("@")
    if stated and stated != _root_digest(root):
        raise ManifestError(
            f"content key {key!r} is one of size and time, and of another folder than {str(root)!r}; leave "
            "image_sha256 out to have it computed, or use --content-key sha256, which knows an image in any folder."
        )
    return f"{plain}@{_root_digest(root)}"


@functools.lru_cache(maxsize=8)
def _root_digest(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:_ROOT_DIGITS]
