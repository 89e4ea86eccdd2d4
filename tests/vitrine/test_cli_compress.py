"""`vitrine compress`: what it makes, says and refuses, and that every evaluator reads it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from feature_store import open_store

from .conftest import Run


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A store of one feature set, to be added to."""
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("results", "selections"))
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("options", "name", "share"),
    [
        (("--storage", "int8"), "int8", 0.5),
        (("--pca", 12), "pca12", 12 / 64),
        (("--pca", 8, "--storage", "int8", "--tokens", "patches"), "pca8-int8", 1 / 16),
    ],
)
def test_every_evaluator_reads_what_compress_makes(
    vitrine: Run, store: Path, options: tuple[Any, ...], name: str, share: float
) -> None:
    made = vitrine("compress", store, *options, "--json")
    assert made.code == 0, made.err
    assert f"-{name}-" in made.json["feature_set"]
    assert made.json["committed"] == 2
    assert made.json["stored_bytes"] / made.json["source_bytes"] == pytest.approx(share, rel=0.01)
    features = ("--features", made.json["feature_set"])
    plain = ("--features", made.json["source"])
    for command in ("variance", "knn", "linear"):
        ran = vitrine(command, store, *features, "--json")
        assert ran.code == 0, ran.err
        if command != "variance":
            assert abs(ran.json["miou"] - vitrine(command, store, *plain, "--json").json["miou"]) < 0.15
    assert vitrine("verify", store, "--deep").code == 0
    shown = vitrine("show", store, *features)
    assert "fitted on valid rows of split train" in shown.out
    again = vitrine("compress", store, *plain, *options)
    assert again.code == 0
    assert "done already, nothing to compress" in again.out


def test_int8_answers_as_float16_does_to_within_its_rounding(vitrine: Run, store: Path) -> None:
    made = vitrine("compress", store, "--storage", "int8", "--json").json
    opened = open_store(str(store))
    small, plain = opened.features(made["feature_set"]), opened.features(made["source"])
    rows = plain.rows_of_split("train")
    quantiser = small.codecs[6, "patches"].quantiser
    assert quantiser is not None
    worst = np.abs(small.read(rows=rows) - plain.read(rows=rows).astype(np.float32)).max(axis=(0, 1))
    assert (worst <= quantiser.scale * 0.501).all()


def test_a_selection_of_the_full_set_is_for_int8_and_not_for_pca(vitrine: Run, store: Path) -> None:
    full = vitrine("ls", store, "--json").json["feature_sets"][0]["name"]
    assert vitrine("prune", store, "--drop-top-variance", 5, "--name", "no5").code == 0
    int8 = vitrine("compress", store, "--storage", "int8", "--json").json["feature_set"]
    pca = vitrine("compress", store, "--features", full, "--pca", 12, "--json").json["feature_set"]
    assert vitrine("knn", store, "--features", int8, "--selection", "no5").code == 0
    refused = vitrine("knn", store, "--features", pca, "--selection", "no5")
    assert refused.code == 2
    assert "was made of the model's own features" in refused.err
    assert "vitrine prune" in refused.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "name --storage int8, --pca N, or both"),
        (("--storage", "int4"), 2, "choose int8, float16 or float32"),
        (("--storage", "float16"), 2, "add --pca N"),
        (("--pca", 64), 2, "tokens have 64 features; name a number from 1 to 63"),
        (("--pca", 0), 2, "error: --pca '0': give a number of 1 or more. See `vitrine compress --help`."),
        (("--pca", 20), 1, "only 16 cls tokens are there to fit it on"),
        (("--pca", 8, "--tokens", "registers"), 2, "has no registers tokens"),
        (("--pca", 8, "--tokens", "frob"), 2, "choose among patches, cls, registers"),
        (("--pca", 8, "--split", "frob"), 2, "split 'frob'"),
        (("--pca", 8, "--features", "frob"), 2, "no feature set fits"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    vitrine: Run, tiny_store: Path, options: tuple[Any, ...], code: int, message: str
) -> None:
    ran = vitrine("compress", tiny_store, *options)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_what_is_compressed_is_not_compressed_again(vitrine: Run, store: Path) -> None:
    made = vitrine("compress", store, "--storage", "int8", "--json").json
    ran = vitrine("compress", store, "--features", made["feature_set"], "--pca", 8)
    assert ran.code == 1
    assert "compressed already (int8)" in ran.err


def test_a_compression_that_would_fill_the_disk_is_refused(
    vitrine: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(store.rglob("*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    ran = vitrine("compress", store, "--storage", "int8")
    assert ran.code == 1
    halved = open_store(str(store)).features().stored_bytes / 2  # of float16
    assert f"has 1.0 MB free, and this run writes {halved / 1e6:.1f} MB and keeps 67 MB spare; free some" in ran.err
    assert sorted(store.rglob("*")) == before


def test_attention_stays_behind_and_the_user_is_told(
    vitrine: Run, tmp_path: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    """It has no features that a scale or a basis could be for."""
    store = tmp_path / "attention"
    model = ("--model", tiny_model, "--weights", tiny_weights, "--image-size", "64", "--tokens", "patches,attention")
    assert vitrine("extract", f"segmentation:{tiny_images}", "--store", store, *model).code == 0
    ran = vitrine("compress", store, "--storage", "int8")
    assert ran.code == 0
    assert "attention left out: read it from" in ran.out
