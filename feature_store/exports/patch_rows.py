"""A row a patch: where the patch lies, and its class by the mask of its view."""

import numpy as np
import pyarrow as pa

from feature_store.exports.subject import Block, ExportSubject, Values

PATCH_FIELDS = (
    pa.field("patch_y", pa.int32()),
    pa.field("patch_x", pa.int32()),
    pa.field("patch_label", pa.int32()),
    pa.field("patch_class", pa.string()),
)


def patch_columns(subject: ExportSubject, block: Block) -> dict[str, pa.Array]:
    """The columns of `PATCH_FIELDS` for every patch of a block, row by row, patches in C order of the grid.

    A patch's label is that of the pixel at its centre; null for void and for views without a mask.
    """
    height, width = subject.features.spec.grid
    n_rows = len(block.rows)
    labels = np.concatenate([_labels(subject, int(row)) for row in block.rows])
    names = [subject.class_name(None if label < 0 else int(label)) for label in labels]
    return {
        "patch_y": pa.array(np.tile(np.repeat(np.arange(height, dtype=np.int32), width), n_rows)),
        "patch_x": pa.array(np.tile(np.tile(np.arange(width, dtype=np.int32), height), n_rows)),
        "patch_label": pa.array(labels.astype(np.int32), mask=labels < 0),
        "patch_class": pa.array(names, pa.string()),
    }


def _labels(subject: ExportSubject, row: int) -> Values:
    """The classes of one view's patches, -1 for void and without a mask."""
    height, width = subject.features.spec.grid
    masks = subject.features.masks
    if not masks.has_mask(row):
        return np.full(height * width, -1, dtype=np.int64)
    mask = masks.read(row)
    ys, xs = (_centres(pixels, patches) for pixels, patches in zip(mask.shape, (height, width), strict=True))
    labels = mask[ys[:, None], xs[None, :]].reshape(-1).astype(np.int64)
    return np.where(labels < len(subject.classes), labels, -1)


def _centres(pixels: int, patches: int) -> Values:
    """The pixel at each patch's centre, floor((i + 0.5) * pixels / patches), in whole numbers."""
    return (2 * np.arange(patches, dtype=np.int64) + 1) * pixels // (2 * patches)
