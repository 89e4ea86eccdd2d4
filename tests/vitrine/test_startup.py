"""What short commands load: what a stored answer, a listing or a refusal does not need must not be imported."""

from pathlib import Path

import pytest

from tests.fresh_process import loaded_after
from tests.vitrine.conftest import Run

HEAVY = (
    "zarr",
    "torch",
    "faiss",
    "timm",
    "torchvision",
    "apache_beam",
    "duckdb",
    "dask",
    "distributed",
    "matplotlib",
    "pandas",
)


def loaded_by(*arguments: object, code: int = 0) -> set[str]:
    """The heavy packages that a command of its own process loads."""
    words = [str(argument) for argument in arguments]
    program = f"""
from vitrine.__main__ import run
code = run({words!r})
assert code == {code}, code
"""
    return loaded_after(program, *HEAVY)


@pytest.mark.parametrize("command", ["ls", "results", "show"])
def test_listings_load_nothing_that_computes(command: str, tiny_store: Path) -> None:
    assert loaded_by(command, tiny_store) == set()


@pytest.mark.parametrize("command", ["knn", "linear", "variance"])
def test_a_stored_answer_loads_neither_torch_nor_faiss(command: str, tiny_store: Path, vitrine: Run) -> None:
    assert vitrine(command, tiny_store).code == 0
    assert loaded_by(command, tiny_store) == set()


@pytest.mark.parametrize("option", ["--layer=lsat", "--on=patch", "--features=camvod", "--selection=none", "--k=0"])
def test_what_names_nothing_is_refused_before_torch_is_loaded(option: str, tiny_store: Path) -> None:
    assert loaded_by("knn", tiny_store, option, code=2) == set()


@pytest.mark.parametrize("module", ["pipelines.plan", "pipelines.datasets", "pipelines.backbones.catalogue"])
def test_plans_manifests_and_the_catalogue_are_read_without_torch(module: str) -> None:
    assert loaded_after(f"import {module}", *HEAVY) == set()


@pytest.mark.parametrize(
    "option",
    [
        "--layers=lsat",
        "--layers=13",
        "--tokens=patch",
        "--storage=half",
        "--fit=fill",
        "--device=gpu",
        "--compute=fp16",
        "--model=vit_smal_patch16_224",
        "--weights=absent.pth",
        "--image-size=big",
        "--tile-fit=cut",
    ],
)
def test_words_that_extract_does_not_know_are_refused_before_torch_is_loaded(option: str, tiny_images: Path) -> None:
    command = ("extract", f"segmentation:{tiny_images}", "--model=demo", "--store=none", "--dry-run", option)
    assert loaded_by(*command, code=2) == set()


def test_what_is_done_already_does_not_load_beam(
    tiny_store: Path, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    command = ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights)
    assert "apache_beam" not in loaded_by(*command, "--store", tiny_store)


@pytest.mark.parametrize("model", ["tiny", "null"])
def test_a_dry_run_of_a_model_that_was_described_before_loads_neither_torch_nor_timm(
    model: str, tiny_images: Path, tiny_model: str, tiny_weights: Path, vitrine: Run
) -> None:
    named = ("null",) if model == "null" else (tiny_model, "--weights", tiny_weights)
    command = ("extract", f"segmentation:{tiny_images}", "--store=none", "--dry-run", "--model", *named)
    first = vitrine(*command, "--json")
    assert first.code == 0
    # pyarrow itself loads pandas when it makes a table of rows.
    assert loaded_by(*command) - {"pandas"} == set()
    again = vitrine(*command, "--json").json
    assert {**again, "free_bytes": 0} == {**first.json, "free_bytes": 0}


def test_a_dry_run_does_not_load_beam(tiny_images: Path, tiny_model: str, tiny_weights: Path) -> None:
    command = ("extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", tiny_weights)
    assert "apache_beam" not in loaded_by(*command, "--store=none", "--dry-run")
