"""Which images are held out of a training set, or drawn from it: whole ones, by a seed, never a part of one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from feature_store import StoreError

Numbers = Int64[np.ndarray, " rows"]


def groups_of(names: Numbers, images: Numbers) -> Numbers:
    """What must stay together: rows of one name, and names that share an image.

    Args:
        names: a number for each row's sequence, or else for its file, in the order of names.
        images: a number for each row's image; copies of one file have one number.

    Returns:
        Of each row the smallest number of all names that its own is joined to.
    """
    joined = np.arange(names.max(initial=-1) + 1)
    while True:
        of_image = np.full(images.max(initial=-1) + 1, len(joined))
        np.minimum.at(of_image, images, joined[names])
        smaller = joined.copy()
        np.minimum.at(smaller, names, of_image[images])
        # Each name also takes what its smallest one takes, so that a chain of names is joined in few rounds.
        smaller = smaller[smaller]
        if (smaller == joined).all():
            groups: Numbers = joined[names]
            return groups
        joined = smaller


def hold_out_images(
    images: Sequence[str] | Numbers, *, share: float, seed: int, strata: Sequence[int] | Numbers | None = None
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
    """Hold out a share of the images, never a part of one.

    Args:
        images: the image (or sequence) of each row, by name or by a number in the order of names.
        share: of the images to hold out, in (0, 1); at least one image on each side.
        seed: of the choice.
        strata: the class of each row; then the same share of every class is held out, up to one image, and of each at
            least one image is kept. An image of several classes counts for that of its first row.

    Returns:
        Positions kept and positions held out, both ascending.

    Raises:
        StoreError: fewer than two images, or a share outside (0, 1).
    """
    names, first_row, image_of_row = np.unique(np.asarray(images), return_index=True, return_inverse=True)
    n_images = len(names)
    if n_images < 2 or not 0 < share < 1:
        raise StoreError(
            f"cannot hold out {share:g} of {n_images} images; at least two images and a share between 0 and 1 are "
            "needed."
        )
    shuffled = np.random.default_rng(seed).permutation(n_images)
    if strata is None:
        chosen = shuffled[: min(max(1, round(share * n_images)), n_images - 1)]
    else:
        chosen = np.asarray(_of_every_class(shuffled, np.asarray(strata)[first_row], share))
    held = np.zeros(n_images, dtype=bool)
    held[chosen] = True
    is_held = held[image_of_row]
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def sample_images(
    images: Sequence[str] | Numbers, *, tokens_per_row: int, room_tokens: int, seed: int
) -> tuple[Int64[np.ndarray, " sampled"], int]:
    """As many whole images as there is room for, drawn with a seed.

    Args:
        images: the image of each row, by name or by number.
        tokens_per_row: tokens of a row.
        room_tokens: tokens that there is room for.
        seed: of the order in which images are taken, until the next one does not fit.

    Returns:
        Positions of their rows, ascending, and how many images they are.
    """
    names, image_of_row = np.unique(np.asarray(images), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    tokens = np.cumsum(np.bincount(image_of_row)[order] * tokens_per_row)
    taken = order[: int(np.searchsorted(tokens, room_tokens, side="right"))]
    return np.flatnonzero(np.isin(image_of_row, taken)), len(taken)


def _of_every_class(
    shuffled: Int64[np.ndarray, " images"], classes: Int64[np.ndarray, " images"], share: float
) -> list[int]:
    """Of each class the first images in the shuffled order; shares are rounded over the classes, not in each."""
    # Sorted once, since there may be millions of images and thousands of classes.
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    _, begins = np.unique(classes[by_class], return_index=True)
    chosen: list[int] = []
    seen = 0
    for of_class in np.split(by_class, begins[1:]):
        quota = round(share * (seen + len(of_class))) - round(share * seen)
        seen += len(of_class)
        chosen += of_class[: min(quota, len(of_class) - 1)].tolist()
    if chosen:
        return chosen
    # So few images that every share was rounded to none: one of the largest class.
    numbers, counts = np.unique(classes, return_counts=True)
    if counts.max() < 2:
        return [int(shuffled[0])]
    return [int(shuffled[classes[shuffled] == numbers[counts.argmax()]][0])]
