"""thin"""
from pathlib import Path
import typer, json
app = typer.Typer()

@app.command()
def extract(dataset: str, model: str = "demo", store: str = typer.Option(...), tile: int | None = None, workers: int = 1, fit: str = "squash") -> None:
    from pipelines.backbones import resolve_backbone
    from pipelines.datasets import DatasetOptions, open_dataset
    from pipelines.beam_engine import BeamEngine
    from pipelines.plan import ExtractionSettings
    from pipelines.run import prepare_extraction, run_extraction
    ds = open_dataset(dataset, options=DatasetOptions(tile=tile))
    prepared = prepare_extraction(ds, resolve_backbone(model, fit=fit), ExtractionSettings(), store=store, workers=workers)
    print(json.dumps(run_extraction(prepared, BeamEngine(), workers=workers).to_json(), indent=1))

@app.command()
def knn(store: str, k: int = 1, metric: str = "cosine", features: str | None = None) -> None:
    from evaluators.knn import KnnParameters, evaluate_knn
    from feature_store import open_store
    print(json.dumps(evaluate_knn(open_store(store).features(features), KnnParameters(k=k, metric=metric)).to_json(), indent=1))
