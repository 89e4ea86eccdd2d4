"""Opening a store to ask it something: which feature sets stand in it, and one of them by name."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from feature_store import layout
from feature_store.datasets import read_manifest
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError, UnknownNameError
from feature_store.nearest_name import did_you_mean
from feature_store.newest import differ_by_age_alone, heads_of_chains, newest_first
from feature_store.objects import ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.roots import open_root
from feature_store.runs import RunHistory
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
        return self._with_record(self._listed())

    def _listed(self, dataset: str = "") -> list[str]:
        """What stands where feature sets do, with or without a record.

        Args:
            dataset: with or without the digits of its views; empty for all.
        """
        folders = [each for each in self.root.list(layout.FEATURES) if not dataset or _is_dataset(each, dataset)]
        models = self.root.side_by_side(lambda each: self.root.list(f"{layout.FEATURES}/{each}"), folders)
        return [f"{each}/{model}" for each, names in zip(folders, models, strict=True) for model in names]

    def _with_record(self, names: list[str]) -> list[str]:
        there = self.root.side_by_side(self._has_record, names)
        return [name for name, is_there in zip(names, there, strict=True) if is_there]

    def _has_record(self, name: str) -> bool:
        try:
            return self.root.exists(f"{layout.FEATURES}/{name}/{layout.FEATURE_SET_FILE}")
        except CorruptError:
            return False  # a link that leads out of the store: for `verify` to name, and in nobody else's way

    def readable(self, *, dataset: str = "", partial: bool = False) -> tuple[list[FeatureSet], dict[str, CorruptError]]:
        """Every feature set, each record read once, side by side.

        Args:
            dataset: those of this dataset alone, with or without the digits of its views; empty for all.
            partial: as for `features`.

        Returns:
            The feature sets by name, and by name what is wrong with each of which the record cannot be read.
        """
        opened = self.root.side_by_side(lambda name: self._opened(name, partial=partial), self._listed(dataset))
        found = [each for each in opened if isinstance(each, FeatureSet)]
        return found, {each[0]: each[1] for each in opened if isinstance(each, tuple)}

    def _opened(self, name: str, *, partial: bool) -> FeatureSet | tuple[str, CorruptError] | None:
        """A feature set, its name with what is wrong with it, or None where none stands there."""
        try:
            return FeatureSet(self.root, name, partial=partial)
        except StoreNotFoundError:
            return None
        except CorruptError as error:
            # A link that leads out of the store is no feature set, see `names`.
            return (name, error) if self._has_record(name) else None

    def features(self, name: str | None = None, *, partial: bool = False) -> FeatureSet:
        """One feature set.

        Args:
            partial: let evaluators answer from the committed shards alone where others are missing.
            name: as `resolve` takes it.

        Raises:
            StoreNotFoundError: there is none at all.
            UnknownNameError: none fits, or several that differ in more than their age; the error lists them.
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

        Several may fit that differ by age alone: one dataset, recipe and arrays at different times. States of one chain
        are of one dataset; chains are where the newest of each has a view of the newest of all. Of these the newest
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
            StoreNotFoundError: there is none at all.
            UnknownNameError: none fits, or several that differ in more than their age; the error lists them, newest
                first.
        """
        wanted, at, which = (f"@{LATEST}" if name is None and newest else name or "").partition("@")
        listed = self._listed(wanted.rpartition("/")[0])
        exact = [full for full in listed if full == wanted]
        # Nothing before the @ leaves every feature set; an empty name fits none.
        fitting = exact or [full for full in listed if (at and not wanted) or _fits(full, wanted)]
        fitting = self._with_record(fitting)
        if at and which != LATEST:
            fitting = _of_digest(fitting, which)
        if not fitting:
            raise self._none_fits(name)
        if len(fitting) == 1:
            return fitting[0], ()
        if newest or which == LATEST:
            chosen = self._newest(fitting, way_out)
            if chosen is not None:
                return chosen
        raise UnknownNameError(f"{len(fitting)} feature sets fit; {way_out}: {', '.join(self._by_age(fitting))}.")

    def _none_fits(self, name: str | None) -> StoreError:
        """What to raise where nothing is meant: the word is wrong, or the store is empty."""
        names = self.names()
        there = f"(there: {', '.join(names) or 'none yet'}). `vitrine extract` makes one."
        if name is None:
            return StoreNotFoundError(f"no feature set in {self.url} {there}")
        # A user who mistypes a part of a name wrote a dataset, a model, or both without their digests.
        short = {part.rpartition("-")[0] for full in names for part in full.split("/")}
        question = did_you_mean(name, [*names, *short])
        return UnknownNameError(f"no feature set fits {name!r}{question} in {self.url} {there}")

    def _newest(self, names: list[str], way_out: str) -> tuple[str, tuple[str, ...]] | None:
        """The newest of several that is complete, and the others; None where they differ in more than their age.

        Raises:
            UnknownNameError: they are of chains that have no view in common, so of several datasets.
        """
        try:
            read = self.root.side_by_side(lambda name: read_spec(self.root, f"{layout.FEATURES}/{name}"), names)
        except StoreError:
            return None  # of one that cannot be read nobody knows what it is
        specs = dict(zip(names, read, strict=True))
        if not differ_by_age_alone(specs):
            return None
        ordered = newest_first(specs, lambda: RunHistory(self.root).latest(names))
        heads = heads_of_chains(ordered, specs)
        if not self._share_views(heads):
            raise UnknownNameError(
                f"{len(heads)} datasets of one name fit, which have no view in common; {way_out}: {', '.join(heads)}."
            )
        complete = (name for name in ordered if FeatureSet(self.root, name).complete)
        chosen = next(complete, ordered[0])
        return chosen, tuple(name for name in ordered if name != chosen)

    def _share_views(self, heads: list[str]) -> bool:
        """Whether each of these has a view of the first; one of which nobody can say it has none."""
        if len(heads) == 1:
            return True  # without a look at its manifest
        first, *others = (self._view_ids(name) for name in heads)
        return all(pc.any(pc.is_in(ids, value_set=first), min_count=0).as_py() for ids in others)

    def _view_ids(self, name: str) -> pa.Array:
        try:
            manifest = read_manifest(self.root, FeatureSet(self.root, name).dataset, ["view_id"])
        except StoreError:
            return pa.array([], pa.string())
        return manifest["view_id"].combine_chunks()

    def _by_age(self, names: list[str]) -> list[str]:
        """The names, newest first and marked; those of which no run tells come last."""
        runs = RunHistory(self.root).latest(names)
        known = sorted((name for name in names if name in runs), key=lambda name: runs[name], reverse=True)
        return [f"{name} (newest)" for name in known[:1]] + known[1:] + [name for name in names if name not in runs]


def _is_dataset(folder: str, name: str) -> bool:
    """Whether `name` is the dataset of a folder of `features`, with or without the digits of its views."""
    return name in {folder, folder.rpartition("-")[0]}


def _fits(full: str, name: str) -> bool:
    """Whether `name` is the dataset, or [dataset/](model or first digits of a digest), of the feature set `full`."""
    dataset, model = full.split("/")
    wanted_dataset, _, wanted_model = name.rpartition("/")
    model_name, _, digest = model.rpartition("-")
    dataset_fits = not wanted_dataset or _is_dataset(dataset, wanted_dataset)
    digest_fits = re.fullmatch(r"[0-9a-f]{4,64}", wanted_model) is not None and _begins(digest, wanted_model)
    return _is_dataset(dataset, name) or (dataset_fits and (wanted_model in {model, model_name} or digest_fits))


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
