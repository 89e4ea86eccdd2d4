"""All probes of the demo from the store, computed and then asked again, against the extraction they do not repeat."""

import time
from pathlib import Path

from benchmarks.ratio import FULL
from feature_store import open_store
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionSettings
from vitrine.demo import ask_everything
from vitrine.extraction import ModelWords, RunOptions, extract_dataset, resolve_model


def test_probes_against_extraction(tmp_path: Path) -> None:
    options = DatasetOptions(cache=tmp_path / "scenes", limit_per_split=None if FULL else 3)
    dataset = open_dataset("demo", options=options)
    model = resolve_model(ModelWords(model="demo", device="cpu"), dataset)
    start = time.perf_counter()
    code = extract_dataset(
        dataset, model, ExtractionSettings(), store=str(tmp_path / "store"), options=RunOptions(quiet=True)
    )
    extraction_s = time.perf_counter() - start
    assert code == 0
    seconds = []
    for _ in range(2):
        features = open_store(str(tmp_path / "store")).features()
        start = time.perf_counter()
        rows = ask_everything(features)
        seconds.append(time.perf_counter() - start)
    assert all(row.cached for row in rows)
    print(
        f"\ndemo: extraction {extraction_s:.1f} s; {len(rows)} probes from the store {seconds[0]:.1f} s "
        f"({seconds[0] / extraction_s:.2f} of it); asked again {seconds[1]:.2f} s ({seconds[1] / extraction_s:.3f})"
    )
