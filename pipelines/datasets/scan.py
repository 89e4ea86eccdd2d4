"""What stands in a folder: its image files in a stated order, and what their headers say."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_store.errors import ManifestError
from pipelines.image_files import ReasonCode, UnreadableImageError, open_image_file
from pipelines.image_formats import oriented_size

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm",
    ".pnm",
)  # fmt: skip
SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# A folder of masks has the name of its folder of images, and this.
ANNOTATION_ENDING = "annot"
Progress = Callable[[int, int], None]
_MAX_DEPTH = 32
_WINDOW = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a manifest needs to know of an image file.

    Attributes:
        content_key: sha256 of the bytes, `stat:<size>-<mtime in ns>`, or the reason where there are no bytes to key.
        size: (width, height) in pixels, orientation applied; None where unreadable or not asked for.
        code: why the image cannot be read, as far as its header tells.
    """

    content_key: str
    size: tuple[int, int] | None = None
    code: ReasonCode | None = None


def existing_folder(path: Path, *, source: str) -> Path:
    """The folder, resolved.

    Raises:
        ManifestError: it does not exist, or is a file.
    """
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ManifestError(f"dataset {source!r}: {str(path)!r} {what}. Give the folder that holds the images.")
    return path.resolve()


def list_files(root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """Every file under `root` with one of the suffixes, as paths relative to it, sorted by their bytes.

    Names that start with a dot are passed over. A symlink is followed, unless it leaves the root.

    Raises:
        ManifestError: a link that leaves the root or leads to a folder above it, or a name that is not UTF-8.
    """
    top = root.resolve()
    return sorted(_walk(top, "", tuple(suffixes), (top,)), key=str.encode)


def _walk(top: Path, folder: str, suffixes: tuple[str, ...], above: tuple[Path, ...]) -> Iterator[str]:
    if len(above) > _MAX_DEPTH:
        raise ManifestError(f"{folder!r} lies more than {_MAX_DEPTH} folders deep; move the images up.")
    with os.scandir(top / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            uri = folder + entry.name
            is_folder = _is_folder(entry)
            if not is_folder and not entry.name.lower().endswith(suffixes):
                continue
            _check_name(uri)
            target = _check_link(top, uri) if entry.is_symlink() else top / uri
            if is_folder:
                if target in above:
                    raise ManifestError(f"link {uri!r} leads back to a folder above it; remove the link.")
                yield from _walk(top, uri + "/", suffixes, (*above, target))
            else:
                yield uri


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _check_name(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"file name {os.fsencode(uri)!r} is not UTF-8; rename the file.") from error


def _check_link(top: Path, uri: str) -> Path:
    try:
        target = (top / uri).resolve()
    except RuntimeError:
        return top / uri  # links in a circle: as missing as a broken link, a row all the same
    if not target.is_relative_to(top):
        raise ManifestError(
            f"link {uri!r} leads out of {str(top)!r}; a dataset reads nothing outside its root. Copy the file into it, "
            "or give the common folder as the root."
        )
    return target


def inspect_images(
    root: Path,
    uris: Sequence[str],
    *,
    content_key: Literal["sha256", "stat"] = "sha256",
    with_size: bool = True,
    progress: Progress | None = None,
) -> list[ImageFacts]:
    """Key and measure images in threads; nothing is decoded that a header can tell.

    Args:
        root: the dataset's root.
        uris: paths relative to it.
        content_key: `sha256` reads every byte, `stat` none.
        with_size: whether sizes are needed; reading them also finds out what is not an image.
        progress: called with (images done, images in all) in the calling thread.

    Returns:
        One record an image, in the order of `uris`.

    Raises:
        ManifestError: a path that leaves the root.
        OSError: a file could not be read, for a reason that has to do with the disk and not with its content.
    """

    def inspect(uri: str) -> ImageFacts:
        return _inspect_image(root, uri, content_key, with_size)

    facts: list[ImageFacts] = []
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="scan") as pool:
        # Windows, since map() would queue one future for every image of a dataset of millions.
        for start in range(0, len(uris), _WINDOW):
            for found in pool.map(inspect, uris[start : start + _WINDOW]):
                facts.append(found)
                if progress is not None:
                    progress(len(facts), len(uris))
    return facts


def _inspect_image(root: Path, uri: str, content_key: str, with_size: bool) -> ImageFacts:
    key: str | None = None
    try:
        with open_image_file(root, uri) as file:
            if content_key == "stat":
                status = os.fstat(file.fileno())
                key = f"stat:{status.st_size}-{status.st_mtime_ns}"
            else:
                key = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            return ImageFacts(content_key=key, size=oriented_size(file, uri) if with_size else None)
    except UnreadableImageError as error:
        if error.code == "outside_root":
            raise ManifestError(
                f"image {uri!r} leads out of {str(root)!r}; a dataset reads nothing outside its root. Copy it there."
            ) from error
        return ImageFacts(content_key=key or error.code, code=error.code)
    except OSError as error:
        error.add_note(f"while reading image {uri!r} under {str(root)!r}")
        raise
