"""Opening a store to ask it something: which feature sets stand in it, and one of them by name."""

import re

from feature_store import layout
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.roots import open_root
from feature_store.runs import latest_runs
from feature_store.writer import check_store


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
            StoreError: several fit; the error lists them.
            CorruptError: its record cannot be read.
        """
        return FeatureSet(self.root, self.resolve(name), partial=partial)

    def resolve(self, name: str | None = None, *, way_out: str = "name one with --features") -> str:
        """The whole name of one feature set.

        Args:
            name: the whole name, `dataset/model`, a dataset, a model, or the first digits of a digest, as long as
                only one feature set fits; None where the store has only one.
            way_out: what to tell somebody whose name fits several.

        Raises:
            StoreNotFoundError: none fits.
            StoreError: several fit; the error lists them, those extracted last first.
        """
        names = self.names()
        exact = [full for full in names if full == name]
        fitting = exact or [full for full in names if name is None or _fits(full, name)]
        if not fitting:
            there = ", ".join(names) or "none yet"
            asked = "no feature set" if name is None else f"no feature set fits {name!r}"
            raise StoreNotFoundError(f"{asked} in {self.url} (there: {there}). `vitrine extract` makes one.")
        if len(fitting) > 1:
            raise StoreError(f"{len(fitting)} feature sets fit; {way_out}: {', '.join(self._by_age(fitting))}.")
        return fitting[0]

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
    # Paths hold the first digits of a digest alone; whoever copies all of them out of a record means the same.
    is_digest = re.fullmatch(r"[0-9a-f]{4,64}", wanted_model) is not None
    digest_fits = is_digest and digest.startswith(wanted_model[: len(digest)])
    return name in dataset_names or (dataset_fits and (wanted_model in {model, model_name} or digest_fits))
