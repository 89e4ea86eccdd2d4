"""A nightly job in small: a folder of pictures that changes, and the feature sets that each night makes of it."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from feature_store import Shard
from pipelines.backbones import resolve_backbone
from pipelines.datasets import open_dataset
from pipelines.extract import cached_manifest, extract_shard
from pipelines.failures import ShardFailure
from pipelines.meter import Meter
from pipelines.plan import ExtractionPlan, ExtractionSettings
from pipelines.reuse import row_map
from pipelines.run import Outcome, Prepared, prepare_extraction, run_extraction


def here(plan: ExtractionPlan, shards: Sequence[Shard], progress: Path, workers: int) -> list[ShardFailure]:
    """An engine without processes: one shard after another."""
    # Each run is a process of its own elsewhere, which knows nothing of earlier ones.
    row_map.cache_clear()
    cached_manifest.cache_clear()
    meter = Meter(progress)
    for shard in shards:
        extract_shard(plan, shard, meter=meter)
    return []


class Nights:
    """20 pictures in two class folders, in shards of 8 rows by the null model.

    Args:
        folder: to work in.
        pictures: 60 of them, in `even` and `odd`.
        store: a URL; None for a folder.
    """

    def __init__(self, folder: Path, pictures: Path, store: str | None = None) -> None:
        self.images, self._pictures = folder / "images", pictures
        self.store = str(folder / "store") if store is None else store
        for place in sorted(pictures.glob("*/0[01]*.png")):
            (self.images / place.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(place, self.images / place.parent.name)

    def add(self, number: int, uri: str) -> None:
        """Put one more of the pictures into the folder."""
        shutil.copy(self._pictures / ("even", "odd")[number % 2] / f"{number:03d}.png", self.images / uri)

    def prepare(self, store: str | None = None, order: str = "grown") -> Prepared:
        """Tonight's extraction, planned."""
        settings = ExtractionSettings(rows_per_shard=8, batch_size=4, order=order)
        dataset = open_dataset(f"images:{self.images}")
        request = resolve_backbone("null", image_size=32)
        return prepare_extraction(dataset, request, settings, store=store or self.store)

    def extract(self) -> Outcome:
        """Tonight's extraction, done."""
        return run(self.prepare())

    def extract_from_nothing(self, store: str) -> Outcome:
        """Tonight's extraction in a store that has the same nights before it, and of which nothing is used."""
        prepared = self.prepare(store)
        return run(replace(prepared, plan=replace(prepared.plan, sources=())))


def run(prepared: Prepared) -> Outcome:
    """Compute and commit what is missing."""
    outcome = run_extraction(prepared, here)
    assert outcome.failures == ()
    return outcome
