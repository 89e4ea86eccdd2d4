"""`segmentation:PATH`: CamVid's layout, `train/` beside `trainannot/`, a mask with the stem of its image."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from feature_store.errors import ManifestError
from pipelines.datasets.assemble import Row, assemble_dataset
from pipelines.datasets.dataset import Dataset, DatasetOptions
from pipelines.datasets.description import DESCRIPTION_FILE, describe
from pipelines.datasets.findings import finding
from pipelines.datasets.masks import MASK_SUFFIXES
from pipelines.datasets.scan import ANNOTATION_ENDING, SPLITS, Progress, existing_folder, list_folder


def open_segmentation_folder(path: Path, options: DatasetOptions, progress: Progress | None = None) -> Dataset:
    """A dataset of images with masks of class numbers.

    Every folder `NAME` that has a `NAMEannot` beside it is a split; so is a folder with a split's name and no masks.
    Folders inside are kept: `train/a/1.png` has its mask in `trainannot/a/1.png`.

    Args:
        path: the folder that holds the splits.
        options: the user's.
        progress: called with (images done, images in all).

    Raises:
        ManifestError: no split, an image without its mask, no class names, or a mask of another size than its image.
    """
    root = existing_folder(path, source=f"segmentation:{path}")
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    paired = {name for name in folders if name + ANNOTATION_ENDING in folders}
    if not paired:
        raise ManifestError(
            f"{str(path)!r} holds no folder with a folder of masks beside it, such as train/ and "
            f"train{ANNOTATION_ENDING}/; found are {sorted(folders)[:10]}. See docs/datasets.md for the layout."
        )
    described = describe(root, options)
    spec = described.spec
    if not spec.classes:
        raise ManifestError(
            f"{str(path)!r} does not say what its mask values mean; write a {DESCRIPTION_FILE} beside the splits with "
            '{"classes": ["sky", ...], "void": 11} or {"values": {"0": "void", "1": "sky", ...}}, or give --classes '
            "and --void."
        )
    listing = list_folder(root, link_roots=options.rules.link_roots, own=(DESCRIPTION_FILE,))
    annotated = {name + ANNOTATION_ENDING for name in paired}
    masks = _masks_by_stem(listing.uris, annotated)
    rows: list[Row] = []
    elsewhere = []
    for uri in listing.uris:
        folder = uri.split("/")[0]
        if folder in paired:
            rows.append({"uri": uri, "split": _split(folder), "mask_uri": _mask_of(uri, folder, masks, listing.uris)})
        elif folder in folders and folder.lower() in SPLITS:
            rows.append({"uri": uri, "split": _split(folder)})
        elif folder not in annotated:
            elsewhere.append(uri)
    if not any("mask_uri" in row for row in rows):
        raise ManifestError(
            f"no image in {sorted(paired)} under {str(path)!r}; put the images beside their masks' folders."
        )
    dataset = assemble_dataset(root, rows, spec, options, progress, mask_values=described.mask_values)
    unused = set(masks.values()) - {row.get("mask_uri") for row in rows}
    findings = (
        *listing.passed_over,
        *finding("passed_over", "images outside the folders of the splits", elsewhere),
        *finding("passed_over", "masks of no image", unused),
        *dataset.findings,
    )
    return replace(dataset, findings=findings)


def _split(folder: str) -> str:
    return SPLITS.get(folder.lower(), folder)


def _masks_by_stem(uris: list[str], folders: set[str]) -> dict[str, str]:
    masks: dict[str, str] = {}
    for uri in uris:
        if uri.split("/")[0] not in folders or not uri.lower().endswith(MASK_SUFFIXES):
            continue
        stem = str(PurePosixPath(uri).with_suffix(""))
        if stem in masks:
            raise ManifestError(f"masks {masks[stem]!r} and {uri!r} have the same stem; remove the wrong one.")
        masks[stem] = uri
    return masks


def _mask_of(uri: str, folder: str, masks: dict[str, str], uris: list[str]) -> str:
    stem = folder + ANNOTATION_ENDING + str(PurePosixPath(uri).with_suffix(""))[len(folder) :]
    if stem not in masks:
        other = next((name for name in uris if str(PurePosixPath(name).with_suffix("")) == stem), None)
        if other is not None:
            raise ManifestError(
                f"mask {other!r} of image {uri!r} is a {PurePosixPath(other).suffix} file, which may not keep its "
                "values; save the class numbers as PNG or TIFF."
            )
        raise ManifestError(
            f"image {uri!r} has no mask {stem + '.png'!r}; add the mask (PNG or TIFF), or move the image to a folder "
            "without masks."
        )
    return masks[stem]
