"""Image files: opened under their dataset's root and nowhere else, of bounded size, each with one clear fate."""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ReasonCode = Literal[
    "missing", "empty", "truncated", "too_large", "not_an_image", "corrupt", "unsupported", "unsupported_bands",
    "outside_root", "outside_image", "non_finite",
]  # fmt: skip
MAX_IMAGE_BYTES = 256 << 20
MAX_IMAGE_PIXELS = 100_000_000
# What a user may raise the limit of pixels to: 6 GB of RGB.
MOST_IMAGE_PIXELS = 1 << 31
# An uncompressed picture of three 16-bit bands takes 6 bytes a pixel, and its header and tags a few more.
_MOST_BYTES_PER_PIXEL = 8
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """What a user allows beyond the defaults when images are read.

    Attributes:
        max_pixels: of an image; one with more is `too_large` and never decoded.
        link_roots: folders outside the dataset's root that links in it may lead into, resolved.
    """

    max_pixels: int = MAX_IMAGE_PIXELS
    link_roots: tuple[Path, ...] = ()

    @property
    def max_bytes(self) -> int:
        """Bytes of a file that are read at most."""
        allowed = _MOST_BYTES_PER_PIXEL * self.max_pixels if self.max_pixels > MAX_IMAGE_PIXELS else 0
        return max(MAX_IMAGE_BYTES, allowed)


DEFAULT_RULES = ReadingRules()


class UnreadableImageError(Exception):
    """An image that gives no pixels: its row stays, marked invalid with this reason.

    Attributes:
        code: the reason, as receipts record it.
        uri: the image, relative to its dataset's root.
    """

    def __init__(self, code: ReasonCode, uri: str, detail: str = "") -> None:
        self.code: ReasonCode = code
        self.uri = uri
        self.detail = detail
        super().__init__(code, uri, detail)

    def __str__(self) -> str:
        # As a literal: a name may hold line breaks and codes that a terminal obeys.
        return f"{self.uri!r}: {self.code}" + (f" ({self.detail})" if self.detail else "")


@contextmanager
def open_image_file(root: Path, uri: str, rules: ReadingRules = DEFAULT_RULES) -> Iterator[io.BufferedReader]:
    """Open an image's file, which must be a regular file of bounded size under the root, symlinks resolved.

    Args:
        root: the dataset's root.
        uri: the path relative to it.
        rules: where links may lead, and how large a file may be.

    Raises:
        UnreadableImageError: `missing`, `outside_root`, `not_an_image` (a folder, a device) or `too_large`.
        OSError: the file is there but reading it failed; trying again may help.
    """
    path = _resolve_inside(root, uri, rules.link_roots)
    with _absence(uri):
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 -- Path.open takes no opener
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("not_an_image", uri, "not a regular file")
        if status.st_size > rules.max_bytes:
            raise UnreadableImageError("too_large", uri, f"{status.st_size} bytes; at most {rules.max_bytes} are read")
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK a named pipe would block for ever; O_NOFOLLOW closes the gap since the path was resolved.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


@contextmanager
def _absence(uri: str) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError as error:
        raise UnreadableImageError("not_an_image", uri, "a folder") from error
    except (OSError, RuntimeError, ValueError) as error:
        # RuntimeError is a loop of symlinks, ValueError a NUL in the name.
        if isinstance(error, OSError) and error.errno not in _NOT_THERE:
            raise
        raise UnreadableImageError("missing", uri) from error


def _resolve_inside(root: Path, uri: str, link_roots: tuple[Path, ...]) -> Path:
    with _absence(uri):
        resolved_root = root.resolve(strict=True)
        path = (resolved_root / uri).resolve(strict=True)
    if not any(path.is_relative_to(allowed) for allowed in (resolved_root, *link_roots)):
        raise UnreadableImageError("outside_root", uri, "its path leads out of the dataset's root")
    return path


def read_image_bytes(root: Path, uri: str, rules: ReadingRules = DEFAULT_RULES) -> bytes:
    """The bytes of one image file, whose path `uri` is relative to the dataset's root.

    Raises:
        UnreadableImageError: see `open_image_file`; also when the file grows past the bound while it is read.
        OSError: reading failed for a reason that may pass.
    """
    with open_image_file(root, uri, rules) as file:
        data = file.read(rules.max_bytes + 1)
    if len(data) > rules.max_bytes:
        raise UnreadableImageError("too_large", uri)
    return data
