"""The images of a published split, in the layout that Cityscapes is distributed in."""

from dataclasses import dataclass
from pathlib import Path

from feature_store import DatasetSpec
from feature_store.errors import ManifestError
from pipelines.datasets import Dataset, DatasetOptions
from pipelines.datasets.assemble import assemble_dataset
from pipelines.datasets.masks import mask_size
from vitrine.acceptance_published import Published

# No pixel of Cityscapes has it; a mask with it comes from elsewhere, and is scored all the same.
_VOID = 255


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One image of the split.

    Attributes:
        split: `train` or `val`.
        uri, mask_uri: of image and mask, relative to the dataset's root.
    """

    split: str
    uri: str
    mask_uri: str


def listed_images(experiment: Published, *, limit_per_split: int | None = None) -> list[ListedImage]:
    """Where the images of the split and their masks stand; only the first of each list where there is a limit."""
    lists = {"train": experiment.train, "val": experiment.val}
    return [
        ListedImage(
            split=split,
            uri=f"leftImg8bit/{split}/{name}_leftImg8bit.png",
            mask_uri=f"gtFine/{split}/{name}_gtFine_labelIds.png",
        )
        for split, names in lists.items()
        for name in names[:limit_per_split]
    ]


def open_split(root: Path, experiment: Published, *, limit_per_split: int | None = None) -> Dataset:
    """The dataset of the split: every image cut into tiles, with the masks of all classes.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`.
        experiment: whose split.
        limit_per_split: take only the first so many images of each list.

    Raises:
        ManifestError: no such folder, files are missing, or of another size.
    """
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        raise ManifestError(f"--cityscapes {root} {reason}; give the folder with leftImg8bit/ and gtFine/.")
    images = listed_images(experiment, limit_per_split=limit_per_split)
    files = [uri for image in images for uri in (image.uri, image.mask_uri)]
    missing = [uri for uri in files if not (root / uri).is_file()]
    if missing:
        raise ManifestError(
            f"{len(missing)} of the {len(files)} files of the paper's split are not under {str(root)!r}, the first is "
            f"{missing[0]!r}; give the folder with leftImg8bit/{{train,val}}/<city>/*_leftImg8bit.png and "
            "gtFine/{train,val}/<city>/*_gtFine_labelIds.png, as Cityscapes is distributed."
        )
    _check_sizes(root, images, experiment)
    n_train = sum(image.split == "train" for image in images)
    spec = DatasetSpec(
        name=f"cityscapes-{n_train}-{len(images) - n_train}",
        classes=experiment.classes,
        void=_VOID,
        source="Cityscapes, fine annotations, label ids",
    )
    rows = [{"uri": image.uri, "split": image.split, "mask_uri": image.mask_uri} for image in images]
    return assemble_dataset(root, rows, spec, DatasetOptions(tile=experiment.tile_px))


def _check_sizes(root: Path, images: list[ListedImage], experiment: Published) -> None:
    """Refuse smaller copies; that an image has the size of its mask is held when the manifest is made."""
    for image in images:
        width, height = mask_size(root, image.mask_uri)
        if (width, height) != experiment.image_px:
            raise ManifestError(
                f"mask {image.mask_uri!r} is {width} x {height}, and the paper's is {experiment.image_px[0]} x "
                f"{experiment.image_px[1]}; give Cityscapes in its own size."
            )
