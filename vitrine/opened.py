"""Opening the feature set that a user's words mean, and saying which it is where older ones fit them too."""

from feature_store import FeatureSet, open_store
from vitrine.output import console, counted


def open_features(store: str, name: str | None, *, partial: bool = False) -> FeatureSet:
    """The feature set of a store that a name means, see `FeatureStore.choose`.

    Where the name fits older states of the same dataset, one line on standard error says which was taken.

    Raises:
        StoreNotFoundError: no store, or nothing in it.
        UnknownNameError: none fits, or several that differ in more than their age.
    """
    found = open_store(store).features(name, partial=partial)
    if found.older:
        states = counted(len(found.older) + 1, "state")
        newest = "newest complete" if found.complete else "newest"
        console(stderr=True).print(
            f"vitrine: {found.name} is meant, the {newest} of {states} of one dataset and recipe; "
            f"--features {found.older[0]} takes another.",
            markup=False,
            soft_wrap=True,
        )
    return found
