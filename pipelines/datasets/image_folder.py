"""`images:PATH`: images in class folders, in split/class folders, in split folders, or in one folder without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from feature_store.errors import ManifestError
from pipelines.datasets.assemble import Row, assemble_dataset
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.description import DESCRIPTION_FILE, describe, read_description
from pipelines.datasets.findings import finding
from pipelines.datasets.mask_folders import refuse_masks
from pipelines.datasets.scan import (
    IMAGE_SUFFIXES,
    SPLITS,
    Listing,
    Progress,
    existing_folder,
    list_folder,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A file and what its folders say of it."""

    uri: str
    split: str | None
    class_name: str | None


def open_image_folder(path: Path, options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """A dataset of labelled or unlabelled images.

    Folders named train, training, val, valid, validation, dev, test or testing are splits when they hold class folders,
    or when there is nothing else; any other folder is a class, even one that holds no image. Classes are numbered in
    the order of their names over all splits, or as the options or `dataset.json` list them.

    Args:
        path: the folder.
        options: the user's.
        progress: called with (images done, images in all).

    Raises:
        ManifestError: no images, masks among them, a mixed layout, or a class that the stated list lacks.
    """
    root = existing_folder(path, source=f"images:{path}")
    listing = list_folder(root, link_roots=options.rules.link_roots, own=(DESCRIPTION_FILE,))
    if not listing.uris:
        raise ManifestError(_no_image(path, listing))
    stated = options.classes or read_description(root).get("classes", ())
    refuse_masks(path, root, listing.uris, rules=options.rules, classes=stated)
    placed = place_in_folders(listing.uris)
    with_images = {image.class_name for image in placed if image.class_name is not None}
    folders = sorted(with_images | _class_folders(placed, listing.folders), key=str.encode)
    spec = describe(root, options, found_classes=tuple(folders)).spec
    unknown = [name for name in folders if name not in spec.classes]
    strangers = [name for name in unknown if name in with_images]
    if strangers:
        raise ManifestError(
            f"class folder {strangers[0]!r} is not among the stated classes {list(spec.classes)[:20]}; rename the "
            "folder, or add it to --classes or dataset.json."
        )
    number = {name: index for index, name in enumerate(spec.classes)}
    rows: list[Row] = [
        {
            "uri": image.uri,
            "split": image.split,
            "label": None if image.class_name is None else number[image.class_name],
        }
        for image in placed
    ]
    dataset = assemble_dataset(root, rows, spec, options, progress)
    empty = finding("passed_over", "folders without an image that are no stated class", unknown)
    return replace(dataset, findings=(*listing.passed_over, *empty, *dataset.findings))


def _no_image(path: Path, listing: Listing) -> str:
    there = "; ".join(f"{found.what}: {found.count}" for found in listing.passed_over[:5])
    return (
        f"no image under {str(path)!r}{f', but {there}' if there else ''}. Files with these endings are read: "
        f"{' '.join(IMAGE_SUFFIXES)}."
    )


def _class_folders(placed: Sequence[Placed], folders: Sequence[str]) -> set[str]:
    """The folders that are classes by their place, whatever is in them: numbers must not depend on what can be read."""
    labelled = next((image for image in placed if image.class_name is not None), None)
    if labelled is None:
        return set()
    if labelled.split is None:
        return {name for name in folders if "/" not in name}
    parts = [name.split("/") for name in folders]
    return {name[1] for name in parts if len(name) == 2 and name[0].lower() in SPLITS}


def place_in_folders(uris: Sequence[str]) -> list[Placed]:
    """Tell splits from classes by the names of the first folders and by how deep images lie.

    Raises:
        ManifestError: a layout that mixes forms.
    """
    parts = {uri: uri.split("/") for uri in uris}
    flat = [uri for uri in uris if len(parts[uri]) == 1]
    if len(flat) == len(uris):
        return [Placed(uri=uri, split=None, class_name=None) for uri in uris]
    if flat:
        raise ManifestError(
            f"image {flat[0]!r} lies beside folders of images, so it has no class; move it into a folder, or the "
            "folders elsewhere."
        )
    first = {name[0] for name in parts.values()}
    splits = {name for name in first if name.lower() in SPLITS}
    if not any(name[0] in splits and len(name) > 2 for name in parts.values()) and splits != first:
        splits = set()  # class folders, one of which happens to be called "train"
    if splits and splits != first:
        raise ManifestError(
            f"folders {sorted(first - splits)[:5]} stand beside the splits {sorted(splits)}; name them as splits ("
            f"{', '.join(SPLITS)}), or move them elsewhere."
        )
    if not splits:
        return [Placed(uri=uri, split=None, class_name=name[0]) for uri, name in parts.items()]
    shallow = [uri for uri in uris if len(parts[uri]) == 2]
    if shallow and len(shallow) != len(uris):
        raise ManifestError(
            f"image {shallow[0]!r} lies directly in a split, others in class folders; move it into its class folder."
        )
    return [
        Placed(uri=uri, split=SPLITS[name[0].lower()], class_name=None if shallow else name[1])
        for uri, name in parts.items()
    ]
