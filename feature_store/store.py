"""Opening a store to ask it something: which feature sets stand in it, and one of them by name."""

import re

from feature_store import layout
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.newest import differ_by_age_alone, newest_first
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.roots import open_root
from feature_store.runs import latest_runs
from feature_store.writer import check_store, read_spec

# What follows the @ of a name that means the newest of several.
LATEST = "latest"


def open_store(url: str) -> "FeatureStore":
    """Open the store at `url` for reading.

    Args:
        url: a folder or any fsspec URL.

    Raises:
        StoreNotFoundError: no store stands there.
    """
    root = open_root(url)
    check_store(root)
    return FeatureStore(root)


class FeatureStore:
    """A store: the feature sets in it."""

    def __init__(self, root: ObjectRoot) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """Where it is, without secrets."""
        return self.root.url

    def names(self) -> list[str]:
        """The feature sets, as `dataset-views8/model-digest8`, sorted."""
        return [
            f"{dataset}/{model}"
            for dataset in self.root.list(layout.FEATURES)
            for model in self.root.list(f"{layout.FEATURES}/{dataset}")
            if self._has_record(f"{layout.FEATURES}/{dataset}/{model}")
        ]

    def _has_record(self, folder: str) -> bool:
        try:
            return self.root.exists(f"{folder}/{layout.FEATURE_SET_FILE}")
        except CorruptError:
            return False  # a link that leads out of the store: for `verify` to name, and in nobody else's way

    def features(self, name: str | None = None, *, partial: bool = False) -> FeatureSet:
        """One feature set.

        Args:
            partial: let evaluators answer from the committed shards alone where others are missing.
            name: as `resolve` takes it.

        Raises:
            StoreNotFoundError: none fits.
            StoreError: several fit that differ in more than their age; the error lists them.
            CorruptError: its record cannot be read.
        """
        name, older = self.choose(name)
        return FeatureSet(self.root, name, partial=partial, older=older)

    def resolve(self, name: str | None = None) -> str:
        """The whole name of one feature set: the first of what `choose` gives."""
        return self.choose(name)[0]

    def choose(
        self, name: str | None = None, *, newest: bool = True, way_out: str = "name one with --features"
    ) -> tuple[str, tuple[str, ...]]:
        """The feature set that a name means.

        Several may fit that differ by age alone: one dataset, recipe and arrays at different times. Of these the newest
        complete one is meant (see `newest`), or the newest where none is complete.

        Args:
            name: the whole name, `dataset/model`, a dataset, a model, or the first digits of a digest; None where the
                store has only one. `NAME@latest` says outright that age decides, `NAME@DIGITS` gives the first digits
                of the digest of a feature set, or of its views.
            newest: whether age may decide without `@latest`; a removal must not depend on it.
            way_out: what to tell somebody whose name fits several.

        Returns:
            The whole name, and the names of those that fit too and are older or not complete, newest first.

        Raises:
            StoreNotFoundError: none fits.
            StoreError: several fit that differ in more than their age; the error lists them, newest first.
        """
        names = self.names()
        wanted, at, which = (f"@{LATEST}" if name is None and newest else name or "").partition("@")
        exact = [full for full in names if full == wanted]
        # Nothing before the @ leaves every feature set; an empty name fits none.
        fitting = exact or [full for full in names if (at and not wanted) or _fits(full, wanted)]
        if at and which != LATEST:
            fitting = _of_digest(fitting, which)
        if not fitting:
            there = ", ".join(names) or "none yet"
            asked = "no feature set" if name is None else f"no feature set fits {name!r}"
            raise StoreNotFoundError(f"{asked} in {self.url} (there: {there}). `vitrine extract` makes one.")
        if len(fitting) == 1:
            return fitting[0], ()
        if newest or which == LATEST:
            chosen = self._newest(fitting)
            if chosen is not None:
                return chosen
        raise StoreError(f"{len(fitting)} feature sets fit; {way_out}: {', '.join(self._by_age(fitting))}.")

    def _newest(self, names: list[str]) -> tuple[str, tuple[str, ...]] | None:
        """The newest of several that is complete, and the others; None where they differ in more than their age."""
        try:
            specs = {name: read_spec(self.root, f"{layout.FEATURES}/{name}") for name in names}
        except StoreError:
            return None  # of one that cannot be read nobody knows what it is
        if not differ_by_age_alone(specs):
            return None
        ordered = newest_first(specs, lambda: latest_runs(self.root))
        complete = (name for name in ordered if FeatureSet(self.root, name).complete)
        chosen = next(complete, ordered[0])
        return chosen, tuple(name for name in ordered if name != chosen)

    def _by_age(self, names: list[str]) -> list[str]:
        """The names, newest first and marked; those of which no run tells come last."""
        runs = latest_runs(self.root)
        known = sorted((name for name in names if name in runs), key=lambda name: runs[name], reverse=True)
        return [f"{name} (newest)" for name in known[:1]] + known[1:] + [name for name in names if name not in runs]


def _fits(full: str, name: str) -> bool:
    """Whether `name` is the dataset, or [dataset/](model or first digits of a digest), of the feature set `full`."""
    dataset, model = full.split("/")
    dataset_names = {dataset, dataset.rpartition("-")[0]}
    wanted_dataset, _, wanted_model = name.rpartition("/")
    model_name, _, digest = model.rpartition("-")
    dataset_fits = not wanted_dataset or wanted_dataset in dataset_names
    digest_fits = re.fullmatch(r"[0-9a-f]{4,64}", wanted_model) is not None and _begins(digest, wanted_model)
    return name in dataset_names or (dataset_fits and (wanted_model in {model, model_name} or digest_fits))


def _of_digest(names: list[str], digits: str) -> list[str]:
    """Those of the names whose digest begins so; without one, those whose views do."""
    if re.fullmatch(r"[0-9a-f]{4,64}", digits) is None:
        return []
    by_digest = [name for name in names if _begins(name.rpartition("-")[2], digits)]
    return by_digest or [name for name in names if _begins(name.split("/")[0].rpartition("-")[2], digits)]


def _begins(kept: str, digits: str) -> bool:
    """Whether a digest, of which a path keeps only the first digits, begins with these."""
    # Whoever copies all of the digits out of a record means the same.
    return kept.startswith(digits[: len(kept)])
