"""A fixed part of CamVid through the command line, against tests/camvid_reference.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store import open_store
from tests.camvid_reference import GRID, TILE, centres, demo_model, miou, nearest, tokens_and_masks, top_variance
from tests.vitrine.conftest import run_vitrine

N_TRAIN, N_TEST = 10, 5


@pytest.fixture(scope="module")
def part(camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every seventh train image and every sixth test image, copied."""
    folder: Path = tmp_path_factory.mktemp("camvid_part")
    for split, count, step in (("train", N_TRAIN, 7), ("test", N_TEST, 6)):
        for path in sorted((camvid / split).glob("*.png"))[::step][:count]:
            for kind in (split, f"{split}annot"):
                (folder / kind).mkdir(exist_ok=True)
                shutil.copy(camvid / kind / path.name, folder / kind / path.name)
    shutil.copy(camvid / "dataset.json", folder / "dataset.json")
    return folder


@pytest.fixture(scope="module")
def store(part: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("camvid_store") / "store"
    made = run_vitrine("extract", f"segmentation:{part}", "--model", "demo", "--tile", TILE, "--store", place, "--json")
    assert made.code == 0, made.err
    return place


@pytest.fixture(scope="module")
def reference(part: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    model = demo_model()
    return {split: tokens_and_masks(part, split, model) for split in ("train", "test")}


def test_stored_tokens_are_the_references_to_a_float16_step(store: Path, reference: dict[str, Any]) -> None:
    features = open_store(str(store)).features()
    for split, (tokens, _) in reference.items():
        stored = features.read(rows=features.rows_of_split(split).tolist()).reshape(tokens.shape)
        # Where float32 sums fall on two sides of a rounding border, the last bit of a float16 differs.
        difference = np.abs(stored.astype(np.float32) - tokens.astype(np.float32))
        assert (difference <= 2**-9 * np.maximum(1, np.abs(tokens.astype(np.float32)))).all()
        assert (difference == 0).mean() > 0.97


def test_variances_are_the_references(store: Path, reference: dict[str, Any]) -> None:
    expected, order = top_variance(reference["train"][0])
    result = run_vitrine("variance", store, "--json").json
    np.testing.assert_allclose(result["variance"], expected, rtol=1e-4)
    assert result["order"][:10] == order[:10].tolist()


@pytest.mark.parametrize(
    ("metric", "n_dropped"), [("dot", 0), ("cosine", 0), ("l2", 0), ("cosine", 10), ("cosine", 200)]
)
def test_nearest_neighbour_miou_is_the_references(
    store: Path, reference: dict[str, Any], metric: str, n_dropped: int
) -> None:
    bank, queries = (reference[split][0].reshape(-1, 384) for split in ("train", "test"))
    kept = np.sort(top_variance(bank)[1][n_dropped:])
    labels = centres(reference["train"][1]).reshape(-1)
    predicted = labels[nearest(bank[:, kept], queries[:, kept], metric)].reshape(-1, GRID, GRID)
    options: list[str] = []
    if n_dropped:
        options = ["--selection", f"no{n_dropped}"]
        run_vitrine("prune", store, "--drop-top-variance", n_dropped, "--name", f"no{n_dropped}")
    result = run_vitrine("knn", store, "--metric", metric, *options, "--json").json
    assert result["miou"] == pytest.approx(miou(reference["test"][1], predicted), abs=0.002)


def test_perfect_patch_labels_reach_the_references_ceiling(store: Path, reference: dict[str, Any]) -> None:
    masks = reference["test"][1]
    result = run_vitrine("knn", store, "--json").json
    assert result["ceiling_miou"] == pytest.approx(miou(masks, centres(masks)), abs=1e-9)


def test_the_answers_do_not_need_the_images(store: Path, part: Path) -> None:
    before = run_vitrine("knn", store, "--fresh", "--json").json
    moved = part.with_name("moved")
    part.rename(moved)
    try:
        after = run_vitrine("knn", store, "--fresh", "--json").json
    finally:
        moved.rename(part)
    assert after["miou"] == before["miou"]
    assert json.loads((store / "vitrine.json").read_text())["schema"] == 1
