"""The disk that a store stands on: what is free there, and the refusal of what would fill it."""

import shutil

from feature_store.errors import StoreError
from feature_store.objects import ObjectRoot

# To leave free: receipts, zarr.json files, and whatever else the machine does.
_SPARE_BYTES = 64 << 20


class NoSpaceError(StoreError, OSError):
    """The store's disk is too small for what is planned."""

    def __str__(self) -> str:
        return str(self.args[0])


def free_bytes(root: ObjectRoot) -> int | None:
    """How much the disk of a store, or of one to be made, has free; None where that cannot be asked."""
    place = root.local_path("")
    if place is None:
        return None
    standing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(standing).free


def require_free(free: int | None, needed_bytes: int, *, url: str, way_out: str) -> None:
    """Refuse a run that would fill the disk.

    Args:
        free: from `free_bytes`.
        needed_bytes: what the run will write.
        url: of the store.
        way_out: what would make it fit.

    Raises:
        NoSpaceError: the free space is short of what is needed and a little to spare.
    """
    if free is not None and needed_bytes + _SPARE_BYTES > free:
        raise NoSpaceError(
            f"{url} has {free / 1e6:.1f} MB free, and this run writes {needed_bytes / 1e6:.1f} MB and keeps "
            f"{_SPARE_BYTES / 1e6:.0f} MB spare; {way_out}."
        )
