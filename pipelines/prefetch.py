"""Views read, decoded, cut and fitted in threads, ahead of the model, in bounded memory."""

import errno
import hashlib
import io
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from feature_store.errors import StorageError
from pipelines.backbones.preprocessing import Preprocessing
from pipelines.image_files import (
    DEFAULT_RULES,
    MAX_IMAGE_PIXELS,
    ReadingRules,
    ReasonCode,
    UnreadableImageError,
    open_image_file,
    read_image_bytes,
)
from pipelines.image_formats import oriented_size
from pipelines.meter import Meter
from pipelines.stat_key import STAT, stat_key
from pipelines.stopping import StopRequestedError, stop_requested
from pipelines.views import cut_view, decode_image, fit_view

BATCHES_AHEAD = 2
_ATTEMPTS = 3
_RETRY_DELAY_S = 0.2
_LOOK_UP_S = 0.2
# Trying again makes no room and grants no rights.
HOPELESS_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
# What stands in place of a content key where the manifest's maker found nothing to key.
_UNREADABLE: frozenset[str] = frozenset(get_args(ReasonCode))
# Reasons that say where the file is, not what it holds: no content with this key can have them.
_ABSENT: frozenset[str] = frozenset({"missing", "outside_root", "not_an_image"})
_Result = TypeVar("_Result")
View = Mapping[str, Any]


class SourceChangedError(ValueError):
    """An image is no longer the one that the manifest was made of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedView:
    """One view, ready for the model.

    Attributes:
        place: among the views that were asked for.
        pixels: of the backbone's input size, or None for a view that cannot be had.
        reason: why there are none.
    """

    place: int
    pixels: UInt8[np.ndarray, "height width 3"] | None = None
    reason: str | None = None


def with_retries(action: Callable[[], _Result]) -> _Result:
    """The action's result; an OSError that may pass is given a few attempts."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return action()
        except StorageError:
            raise  # it was tried again for long enough where it came from
        except OSError as error:
            if error.errno in HOPELESS_ERRORS:
                raise
            time.sleep(_RETRY_DELAY_S * attempt)
    return action()


def prepare_views(
    root: Path,
    views: Sequence[View],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    threads: int,
    meter: Meter,
    rules: ReadingRules = DEFAULT_RULES,
) -> Generator[PreparedView]:
    """Read, decode, cut and fit views in threads, and give them in their order.

    An image of several views that follow one another is read and decoded once. What waits is bounded by a few batches
    of fitted views and a decoded image a thread, however many views an image has; of images beyond the default limit of
    pixels, one is decoded and held at a time. Close the iterator to stop early.

    Args:
        root: folder of the images.
        views: rows of the manifest, its columns that decide pixels.
        preprocessing: of the backbone.
        batch_size: of the model, which sets how far to look ahead.
        threads: that decode.
        meter: gets the seconds of reading and decoding.
        rules: how large images may be, and where links may lead.

    Raises:
        SourceChangedError: an image is not the one that the manifest names.
        OSError: an image cannot be read, after several attempts.
    """
    limit = BATCHES_AHEAD * batch_size + threads
    waiting: deque[tuple[Future[list[PreparedView]], int]] = deque()
    n_waiting = 0
    reader = _Reader(root, rules, meter)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for source, piece in _pieces(reader, views, batch_size):
                waiting.append((pool.submit(_prepare, source, piece, preprocessing), len(piece)))
                n_waiting += len(piece)
                while n_waiting > limit:
                    future, n_views = waiting.popleft()
                    n_waiting -= n_views
                    yield from future.result()
            while waiting:
                yield from waiting.popleft()[0].result()
        finally:
            reader.close()
            pool.shutdown(wait=True, cancel_futures=True)


class _StoppedError(Exception):
    """Nobody waits for this image any more."""


class _Reader:
    """Reads and decodes the images of one `prepare_views`; only one that is very large is held at a time."""

    def __init__(self, root: Path, rules: ReadingRules, meter: Meter) -> None:
        self._root, self._rules, self.meter = root, rules, meter
        self._large = threading.Semaphore()
        self._closed = False

    def decode(self, view: View, holder: object) -> Image.Image:
        """The image of a view, which `holder` holds until it is let go itself."""
        uri = view["uri"]
        with self.meter.stage("read"):
            data = _read_unchanged(self._root, uri, view["image_sha256"], self._rules)
        if self._rules.max_pixels > MAX_IMAGE_PIXELS:
            width, height = oriented_size(io.BytesIO(data), uri, self._rules.max_pixels)
            if width * height > MAX_IMAGE_PIXELS:
                self._wait_for_the_last_large_one(holder)
        with self.meter.stage("decode"):
            return decode_image(data, uri, self._rules.max_pixels)

    def _wait_for_the_last_large_one(self, holder: object) -> None:
        # Its pieces were all queued before this one, so they are taken up before it and none waits behind it.
        while not self._large.acquire(timeout=_LOOK_UP_S):
            if self._closed:
                raise _StoppedError
        weakref.finalize(holder, self._large.release)

    def close(self) -> None:
        """End the waiting: an image may be held for ever by the traceback of a failure."""
        self._closed = True


class _Source:
    """An image, read and decoded once, by the first thread that needs it, and let go with the last piece of it."""

    def __init__(self, reader: _Reader, view: View) -> None:
        self.reader, self._view = reader, view
        self._lock = threading.Lock()
        self._image: Image.Image | str | None = None

    def image_or_reason(self) -> Image.Image | str:
        """The image, or the reason code of one that cannot be read."""
        with self._lock:
            if self._image is None:
                try:
                    self._image = self.reader.decode(self._view, self)
                except UnreadableImageError as error:
                    self._image = error.code
            return self._image


def _pieces(
    reader: _Reader, views: Sequence[View], piece_views: int
) -> Iterator[tuple[_Source, list[tuple[int, View]]]]:
    """The views of each image, in pieces of bounded size that share the image.

    An image is a file and its content key: each key that is stated is held to the bytes before any token counts.
    """
    for _, group in groupby(enumerate(views), key=lambda numbered: (numbered[1]["uri"], numbered[1]["image_sha256"])):
        source = None
        while piece := list(islice(group, piece_views)):
            source = source or _Source(reader, piece[0][1])
            yield source, piece


def _prepare(source: _Source, piece: Sequence[tuple[int, View]], preprocessing: Preprocessing) -> list[PreparedView]:
    image = source.image_or_reason()
    if isinstance(image, str):
        return [PreparedView(place=place, reason=image) for place, _ in piece]
    with source.reader.meter.stage("decode"):
        return [_fit(image, place, view, preprocessing) for place, view in piece]


def _fit(image: Image.Image, place: int, view: View, preprocessing: Preprocessing) -> PreparedView:
    try:
        pixels = fit_view(
            cut_view(image, view["tile"], view["transform"]),
            size=preprocessing.image_size,
            fit=preprocessing.fit,
            crop_fraction=preprocessing.crop_fraction,
            interpolation=preprocessing.interpolation,
        )
    except UnreadableImageError as error:
        return PreparedView(place=place, reason=error.code)
    return PreparedView(place=place, pixels=pixels)


def _read_unchanged(root: Path, uri: str, content_key: str, rules: ReadingRules) -> bytes:
    """The bytes of an image, which must be those that the manifest was made of.

    An image that could not be read then has its reason for a key, and keeps it whatever has become of the file: the
    features are a function of the manifest.
    """
    if content_key in _UNREADABLE:
        raise UnreadableImageError(content_key, uri)  # type: ignore[arg-type]  # it is one of them
    with _still_there(uri):
        data = with_retries(lambda: read_image_bytes(root, uri, rules))
        if content_key.startswith(STAT):
            # Asked after reading: so what was read is what stood there with this size and time.
            status = (root / uri).stat()
            found = stat_key(root, len(data), status.st_mtime_ns)
        else:
            found = hashlib.sha256(data).hexdigest()
    _require_key(uri, content_key, found)
    return data


def unreadable_images(
    root: Path, images: Sequence[tuple[str, str]], *, threads: int, rules: ReadingRules = DEFAULT_RULES
) -> set[tuple[str, str]]:
    """Hold content keys to the files that they are said to be of, without decoding an image.

    A key of size and time is held to the size and the time; every other one to the digest of the bytes.

    Args:
        root: folder of the images.
        images: the path and the content key of each.
        threads: that read.
        rules: how large images may be, and where links may lead.

    Returns:
        Those of the images that cannot be read, although they are there.

    Raises:
        SourceChangedError: an image is not the one that its key names.
        OSError: an image cannot be read, after several attempts.
    """

    def readable(image: tuple[str, str]) -> bool:
        if stop_requested.is_set():
            raise StopRequestedError("asked to stop between two images")
        try:
            _hold_to_key(root, *image, rules)
        except UnreadableImageError:
            return False
        return True

    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool:
        return {image for image, can_be in zip(images, pool.map(readable, images), strict=True) if not can_be}


def _hold_to_key(root: Path, uri: str, content_key: str, rules: ReadingRules) -> None:
    def key_now() -> str:
        with open_image_file(root, uri, rules) as file:
            if content_key.startswith(STAT):
                status = os.fstat(file.fileno())
                return stat_key(root, status.st_size, status.st_mtime_ns)
            return hashlib.file_digest(file, "sha256").hexdigest()

    with _still_there(uri):
        found = with_retries(key_now)
    _require_key(uri, content_key, found)


@contextmanager
def _still_there(uri: str) -> Iterator[None]:
    """Tell an image that has gone from one that cannot be read."""
    try:
        yield
    except UnreadableImageError as error:
        if error.code not in _ABSENT:
            raise
        raise SourceChangedError(
            f"image {uri!r} was there when the manifest was made, and is not now ({error.code}); put it back, or run "
            "the same command again, which makes a new manifest and a new feature set."
        ) from error


def _require_key(uri: str, content_key: str, found: str) -> None:
    if found != content_key:
        raise SourceChangedError(
            f"image {uri!r} is not the one that the manifest names: its content key was {content_key[:24]!r} and is "
            f"{found[:24]!r}; put it back, or correct the key where your table states it, and run the same command "
            "again, which makes a new manifest and feature set."
        )
