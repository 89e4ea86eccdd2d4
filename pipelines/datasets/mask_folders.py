"""Masks among the files of `images:PATH`: told by the names of folders and files, and by what the files hold.

Class folders are images whatever they are called, and a mask among them would be a picture of a class that nobody
meant.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from feature_store.errors import ManifestError
from pipelines.datasets.masks import VALUE_MODES
from pipelines.datasets.scan import ANNOTATION_ENDING
from pipelines.image_files import ReadingRules, UnreadableImageError, open_image_file
from pipelines.image_formats import open_image_header

# The names that published datasets and annotation tools give to folders of masks.
_FOLDER = re.compile(
    r"(gt(fine|coarse)?|.*annots?|annotations?|(.*[-_ ])?(masks?|labels?|seg|segmentations?)|labelled"
    r"|ground[-_ ]?truths?|segmentation(class|object)(aug|raw)?)",
    re.IGNORECASE,
)
_FILE = re.compile(r"(.+)[-_](mask|masks|gt|label|labels|seg|segmentation|labelids|labeltrainids)", re.IGNORECASE)
_SAMPLE = 8
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")


def refuse_masks(path: Path, root: Path, uris: Sequence[str], *, rules: ReadingRules, classes: Collection[str]) -> None:
    """Refuse folders that hold masks beside images.

    Args:
        path: the folder as the user named it.
        root: the same, resolved.
        uris: the files that would be images.
        rules: how files are read.
        classes: the names that the user states as classes, which are believed.

    Raises:
        ManifestError: names the folder or the file, and what reads the layout.
    """
    for folder, inside in _suspects(uris, classes).items():
        if _hold_values(root, inside, rules) or _all_pair(folder, inside, uris):
            raise ManifestError(_message(path, folder, uris))
    pairs = _pairs_of_files(uris)
    if pairs and _hold_values(root, list(pairs), rules):
        mask, image = next(iter(pairs.items()))
        raise ManifestError(
            f"{mask!r} is a mask by its name, of {image!r}, so it is no image of its class ({len(pairs)} such files). "
            "Move masks out of the class folders, or list images and masks in a table (manifest:FILE, column mask_uri)."
        )


def _suspects(uris: Sequence[str], classes: Collection[str]) -> Mapping[str, list[str]]:
    """The files by the first folder above them whose name says that it holds masks."""
    found: dict[str, list[str]] = defaultdict(list)
    # Each folder is looked at once, however many files are in it.
    of_folder: dict[str, str | None] = {}
    for uri in uris:
        folder = uri.rpartition("/")[0]
        if folder not in of_folder:
            of_folder[folder] = _suspect_above(folder, classes)
        suspect = of_folder[folder]
        if suspect is not None:
            found[suspect].append(uri)
    return found


def _suspect_above(folder: str, classes: Collection[str]) -> str | None:
    names = folder.split("/")
    for depth, name in enumerate(names):
        if name not in classes and _FOLDER.fullmatch(name):
            return "/".join(names[: depth + 1])
    return None


def _sampled(uris: Sequence[str]) -> Sequence[str]:
    return uris[:: max(1, len(uris) // _SAMPLE)][:_SAMPLE]


def _hold_values(root: Path, uris: Sequence[str], rules: ReadingRules) -> bool:
    """Whether most of a sample of files have one value a pixel, as masks have and photographs seldom."""
    sample = _sampled(uris)
    return 2 * sum(_holds_values(root, uri, rules) for uri in sample) > len(sample)


def _holds_values(root: Path, uri: str, rules: ReadingRules) -> bool:
    try:
        with open_image_file(root, uri, rules) as file:
            image = open_image_header(file, uri, rules.max_pixels)
            return image.format in _LOSSLESS and image.mode in VALUE_MODES
    except UnreadableImageError:
        return False


def _all_pair(folder: str, inside: Sequence[str], uris: Sequence[str]) -> bool:
    """Whether each file of a sample has an image of the same name in a folder beside this one."""
    above = folder.rpartition("/")[0]
    depth = folder.count("/") + 1
    beside = {
        _stem(uri, depth)
        for uri in uris
        if uri.count("/") >= depth and uri.startswith(f"{above}/" if above else "") and not uri.startswith(f"{folder}/")
    }
    return all(
        _stem(uri, depth) in beside or _image_of(uri).split("/", depth)[depth] in beside for uri in _sampled(inside)
    )


def _stem(uri: str, depth: int) -> str:
    """The path below the first `depth` folders, without its ending."""
    return _without_ending(uri).split("/", depth)[depth]


def _without_ending(uri: str) -> str:
    # By hand, since a dataset has millions of paths: pathlib takes five times as long.
    folder, slash, name = uri.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _image_of(uri: str) -> str:
    """The path without its ending and without what marks a mask at the end of its name."""
    folder, slash, name = _without_ending(uri).rpartition("/")
    marked = _FILE.fullmatch(name)
    return folder + slash + (marked[1] if marked else name)


def _pairs_of_files(uris: Sequence[str]) -> dict[str, str]:
    """The image by its mask, for masks that lie beside their images."""
    marked = {uri: stem for uri in uris if (stem := _image_of(uri)) != _without_ending(uri)}
    stems = set(marked.values())
    if not stems:
        return {}
    images = {stem: uri for uri in uris if (stem := _without_ending(uri)) in stems}
    return {mask: images[stem] for mask, stem in marked.items() if stem in images}


def _message(path: Path, folder: str, uris: Sequence[str]) -> str:
    name = folder.rpartition("/")[2]
    images = folder.removesuffix(ANNOTATION_ENDING)
    if images != folder and any(uri.startswith(f"{images}/") for uri in uris):
        return (
            f"folder {images!r} has masks beside it, in {folder!r}, so these are no class folders; read them as "
            f"segmentation:{path}."
        )
    return (
        f"folder {folder!r} holds masks and no images of a class, by its name and its files. Masks are read by "
        f"segmentation:FOLDER (NAME/ beside NAME{ANNOTATION_ENDING}/), or from a table (manifest:FILE, column "
        f"mask_uri); for the images alone, give their folder. If {name!r} is a class, name it in --classes or in "
        "dataset.json."
    )
