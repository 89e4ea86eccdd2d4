"""What stands in a folder: its image files in a stated order, and what their headers say."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_store.errors import ManifestError
from pipelines.datasets.findings import Finding, PassedOver
from pipelines.image_files import DEFAULT_RULES, ReadingRules, ReasonCode, UnreadableImageError, open_image_file
from pipelines.image_formats import oriented_size
from pipelines.stat_key import stat_key

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
_LEFT_BY_SYSTEMS = frozenset({"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN"})
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_ENDING = re.compile(r"[A-Za-z0-9_-]{1,12}")
_WINDOW = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a manifest needs to know of an image file.

    Attributes:
        content_key: sha256 of the bytes, size and time as `stat_key` has them, or the reason where there are no bytes.
        size: (width, height) in pixels, orientation applied; None where unreadable or not asked for.
        code: why the image cannot be read, as far as its header tells.
        detail: the same in words.
    """

    content_key: str
    size: tuple[int, int] | None = None
    code: ReasonCode | None = None
    detail: str = ""


def existing_folder(path: Path, *, source: str) -> Path:
    """The folder, resolved.

    Raises:
        ManifestError: it does not exist, or is a file.
    """
    if not path.is_dir():
        raise ManifestError(f"dataset {source!r}: {str(path)!r} {_no_folder(path)}")
    return path.resolve()


def _no_folder(path: Path) -> str:
    if path.name.lower().endswith(_ARCHIVES) and path.exists():
        return "is an archive. Unpack it, and give the folder."
    if path.exists():
        return "is a file, not a folder. Give the folder that holds the images."
    if any(letter in str(path) for letter in "*?["):
        return "does not exist. A pattern is not read: give the folder that holds the images."
    return "does not exist. Give the folder that holds the images."


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What stands in a folder and the folders inside it.

    Attributes:
        uris: the files that were asked for, as paths relative to the folder, sorted by their bytes.
        folders: every folder that was looked into, in the same form and order.
        passed_over: the other files, and what no one means as data.
    """

    uris: list[str]
    folders: list[str]
    passed_over: tuple[Finding, ...]


def list_folder(
    root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, *, link_roots: Sequence[Path] = (), own: Sequence[str] = ()
) -> Listing:
    """List the files under `root` with one of the suffixes, in either case, and say what else is there.

    Names that start with a dot, and the files that systems leave behind, are passed over. A symlink is followed, unless
    it leaves the root and the folders that links may lead into.

    Args:
        root: the folder.
        suffixes: the endings of the files that are asked for.
        link_roots: folders outside the root that links may lead into, resolved.
        own: names of files at the top that are read as something else, such as `dataset.json`.

    Raises:
        ManifestError: a link that leads elsewhere or to a folder above it, or a name that is not UTF-8.
    """
    walk = _Walk(root.resolve(), tuple(suffixes), tuple(link_roots), own)
    walk.look_into("", (walk.top,))
    return Listing(
        uris=sorted(walk.uris, key=str.encode),
        folders=sorted(walk.folders, key=str.encode),
        passed_over=walk.passed_over.findings(),
    )


class _Walk:
    """One walk through a dataset's folders."""

    def __init__(self, top: Path, suffixes: tuple[str, ...], link_roots: tuple[Path, ...], own: Sequence[str]) -> None:
        self.top, self._suffixes, self._link_roots, self._own = top, suffixes, link_roots, own
        self.uris: list[str] = []
        self.folders: list[str] = []
        self.passed_over = PassedOver()

    def look_into(self, folder: str, above: tuple[Path, ...]) -> None:
        """List one folder and those inside it; `above` are the folders that lead here, resolved."""
        if len(above) > _MAX_DEPTH:
            raise ManifestError(f"{folder!r} lies more than {_MAX_DEPTH} folders deep; move the images up.")
        with os.scandir(self.top / folder) as entries:
            for entry in entries:
                self._take(entry, folder + entry.name, above)

    def _take(self, entry: os.DirEntry[str], uri: str, above: tuple[Path, ...]) -> None:
        if entry.name.startswith(".") or entry.name in _LEFT_BY_SYSTEMS:
            self.passed_over.add("hidden files and folders, and those of systems", _shown(uri))
            return
        is_folder = _is_folder(entry)
        if not is_folder and not entry.name.lower().endswith(self._suffixes):
            if uri not in self._own:
                self.passed_over.add(_sort_of(entry.name), _shown(uri))
            return
        _check_name(uri)
        target = _check_link(self.top, uri, self._link_roots) if entry.is_symlink() else self.top / uri
        if not is_folder:
            self.uris.append(uri)
            return
        if target in above:
            raise ManifestError(f"link {uri!r} leads back to a folder above it; remove the link.")
        self.folders.append(uri)
        self.look_into(uri + "/", (*above, target))


def list_files(root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """The files of `list_folder`."""
    return list_folder(root, suffixes).uris


def _shown(uri: str) -> str:
    """A name that may not be UTF-8 as text that can be written."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _sort_of(name: str) -> str:
    """What to call a file that is not read, by its ending."""
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem:
        return "files without an ending"
    return f"files ending in .{ending.lower()}" if _ENDING.fullmatch(ending) else "files with other endings"


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


def _check_link(top: Path, uri: str, link_roots: tuple[Path, ...]) -> Path:
    try:
        target = (top / uri).resolve()
    except RuntimeError:
        return top / uri  # links in a circle: as missing as a broken link, a row all the same
    if not any(target.is_relative_to(allowed) for allowed in (top, *link_roots)):
        raise ManifestError(
            f"link {uri!r} leads out of {str(top)!r}, to {str(target)!r}. A dataset reads nothing outside its root: "
            f"name the folder that links may lead into with --follow-links {str(target.parent)!r}, or copy the files."
        )
    return target


def inspect_images(
    root: Path,
    uris: Sequence[str],
    *,
    content_key: Literal["sha256", "stat"] = "sha256",
    with_size: bool = True,
    rules: ReadingRules = DEFAULT_RULES,
    progress: Progress | None = None,
) -> list[ImageFacts]:
    """Key and measure images in threads; nothing is decoded that a header can tell.

    Args:
        root: the dataset's root.
        uris: paths relative to it.
        content_key: `sha256` reads every byte, `stat` none.
        with_size: whether sizes are needed; reading them also finds out what is not an image.
        rules: how large images may be, and where links may lead.
        progress: called with (images done, images in all) in the calling thread.

    Returns:
        One record an image, in the order of `uris`.

    Raises:
        ManifestError: a path that leaves the root.
        OSError: a file could not be read, for a reason that has to do with the disk and not with its content.
    """

    def inspect(uri: str) -> ImageFacts:
        return _inspect_image(root, uri, content_key, with_size, rules)

    facts: list[ImageFacts] = []
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="scan") as pool:
        # Windows, since map() would queue one future for every image of a dataset of millions.
        for start in range(0, len(uris), _WINDOW):
            for found in pool.map(inspect, uris[start : start + _WINDOW]):
                facts.append(found)
                if progress is not None:
                    progress(len(facts), len(uris))
    return facts


def _inspect_image(root: Path, uri: str, content_key: str, with_size: bool, rules: ReadingRules) -> ImageFacts:
    key: str | None = None
    try:
        with open_image_file(root, uri, rules) as file:
            if content_key == "stat":
                status = os.fstat(file.fileno())
                key = stat_key(root, status.st_size, status.st_mtime_ns)
            else:
                key = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            return ImageFacts(content_key=key, size=oriented_size(file, uri, rules.max_pixels) if with_size else None)
    except UnreadableImageError as error:
        if error.code == "outside_root":
            raise ManifestError(
                f"image {uri!r} leads out of {str(root)!r}; a dataset reads nothing outside its root. Copy it there."
            ) from error
        return ImageFacts(content_key=key or error.code, code=error.code, detail=error.detail)
    except OSError as error:
        error.add_note(f"while reading image {uri!r} under {str(root)!r}")
        raise
