"""Datasets that grew, shrank or were renamed: what stands is copied, and the bytes are those of computing it all."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from feature_store import FeatureSet, create_store, open_store
from feature_store.records import RECORD_DIGEST, record_bytes
from feature_store.runs import earlier_environments
from pipelines import extract
from pipelines.backbones import BackboneRequest
from pipelines.beam_engine import BeamEngine
from pipelines.cost import estimate_cost
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.plan import ExtractionPlan, ExtractionSettings
from pipelines.reuse import row_map
from pipelines.run import Outcome, Prepared, prepare_extraction, run_extraction

SameTrees = Callable[[Path, Path], bool]
Prepare = Callable[..., Prepared]


@pytest.fixture
def images(pictures: Path, tmp_path: Path) -> Path:
    """20 pictures to add to, rename and damage: ten in each of two classes."""
    folder = tmp_path / "images"
    for place in sorted(pictures.glob("*/0[01]*.png")):
        (folder / place.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(place, folder / place.parent.name)
    return folder


@pytest.fixture
def grow(images: Path, pictures: Path) -> Callable[[], None]:
    """Adds five images before, between and behind the others, removes one, and renames one."""

    def change() -> None:
        for number, name in enumerate(("even/000a", "even/013a", "odd/000a", "odd/009a", "odd/099")):
            source = sorted(pictures.glob("*/05*.png"))[number]
            shutil.copy(source, images / f"{name}.png")
        (images / "even" / "004.png").unlink()
        (images / "odd" / "001.png").rename(images / "even" / "zzz.png")

    return change


@pytest.fixture
def prepare_images(images: Path, tiny_request: BackboneRequest, tmp_path: Path) -> Prepare:
    """Prepares an extraction of `images`, in shards of 8 rows and batches of 4."""

    def prepare(
        *, store: str = "store", content_key: Any = "sha256", distance_m: float | None = None, **changes: Any
    ) -> Prepared:
        request = dataclasses.replace(tiny_request, **changes.pop("request", {}))
        allowed = changes.pop("allow_mixed_environment", False)
        settings = ExtractionSettings(**{"rows_per_shard": 8, "batch_size": 4, "order": "uri", **changes})
        dataset = open_dataset(f"images:{images}", options=DatasetOptions(content_key=content_key))
        if distance_m is not None:
            place = dataset.table.schema.get_field_index("ground_sample_distance_m")
            values = pa.array([distance_m] * dataset.table.num_rows)
            table = dataset.table.set_column(place, dataset.table.schema.field(place), values)
            dataset = dataclasses.replace(dataset, table=table)
        url = str(tmp_path / store)
        return prepare_extraction(dataset, request, settings, store=url, allow_mixed_environment=allowed)

    return prepare


def extracted(prepared: Prepared) -> Outcome:
    outcome = run_extraction(prepared, BeamEngine())
    assert outcome.failures == ()
    return outcome


def folder_of(tmp_path: Path, outcome: Outcome, store: str = "store") -> Path:
    return tmp_path / store / "features" / outcome.feature_set


@pytest.mark.parametrize("kinds", [("patches", "cls"), ("cls",)])
def test_a_grown_dataset_computes_its_new_views_and_equals_one_computed_from_nothing(
    prepare_images: Prepare,
    grow: Callable[[], None],
    tmp_path: Path,
    same_trees: SameTrees,
    kinds: tuple[str, ...],
) -> None:
    before = extracted(prepare_images())
    grow()
    prepared = prepare_images(token_kinds=kinds)
    cost = estimate_cost(prepared)
    # 20 images, 5 more, 1 less; the renamed one is known by its content.
    assert (cost.rows, cost.reused) == (5, 19)
    grown = extracted(prepared)
    assert (grown.rows, grown.reused, grown.committed) == (24, 19, 3)
    assert grown.feature_set != before.feature_set
    anew = extracted(prepare_images(store="anew", token_kinds=kinds))
    assert anew.reused == 0
    assert same_trees(folder_of(tmp_path, grown), folder_of(tmp_path, anew, "anew"))


def test_the_plan_names_its_sources_to_other_processes(prepare_images: Prepare, grow: Callable[[], None]) -> None:
    first = extracted(prepare_images())
    grow()
    plan = prepare_images().plan
    assert plan.sources == (first.feature_set,)
    assert ExtractionPlan.from_json(plan.to_json()).sources == plan.sources


def test_a_dataset_that_only_lost_views_is_copied_without_loading_the_model(
    prepare_images: Prepare, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = extracted(prepare_images())
    (images / "even" / "004.png").unlink()
    extract.cached_backbone.cache_clear()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(extract, "load_backbone", refuse)
    prepared = prepare_images()
    cost = estimate_cost(prepared)
    assert (cost.rows, cost.reused, cost.shards, cost.seconds) == (0, 19, 3, 0.0)
    outcome = extracted(prepared)
    assert (outcome.reused, outcome.committed) == (19, 3)
    assert prepare_images().missing == ()
    store = open_store(str(tmp_path / "store"))
    old, new = store.features(first.feature_set), store.features(outcome.feature_set)
    gone = old.column("uri").index("even/004.png")
    np.testing.assert_array_equal(new.read(), np.delete(old.read(), gone, axis=0))


def test_a_grown_set_grows_again_from_both(prepare_images: Prepare, images: Path, pictures: Path) -> None:
    first = extracted(prepare_images())
    shutil.copy(pictures / "even" / "050.png", images / "even")
    second = extracted(prepare_images())
    (images / "even" / "050.png").rename(images / "even" / "051.png")
    prepared = prepare_images()
    assert {source.name for source in prepared.sources} <= {first.feature_set, second.feature_set}
    assert sum(source.rows for source in prepared.sources) == 21
    assert extracted(prepared).reused == 21


def test_an_invalid_row_is_computed_again_and_never_copied(
    prepare_images: Prepare, images: Path, tmp_path: Path, pictures: Path
) -> None:
    place = images / "even" / "004.png"
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    assert extracted(prepare_images()).invalid == {"truncated": 1}
    shutil.copy(pictures / "even" / "050.png", images / "even")
    prepared = prepare_images()
    assert estimate_cost(prepared).rows == 2
    grown = extracted(prepared)
    assert (grown.reused, grown.invalid) == (19, {"truncated": 1})
    features = open_store(str(tmp_path / "store")).features(grown.feature_set)
    assert [entry.row for entry in features.invalid_rows] == [features.column("uri").index("even/004.png")]


def test_a_damaged_shard_of_the_source_is_computed_instead(
    prepare_images: Prepare, grow: Callable[[], None], tmp_path: Path, same_trees: SameTrees
) -> None:
    first = extracted(prepare_images())
    # The second shard of the first set, which gives rows to two shards of the second.
    place = folder_of(tmp_path, first) / "tokens.zarr" / "layer_6" / "patches" / "c" / "1" / "0" / "0"
    content = bytearray(place.read_bytes())
    content[100] ^= 1
    place.write_bytes(content)
    grow()
    grown = extracted(prepare_images())
    assert grown.reused < 19
    anew = extracted(prepare_images(store="anew"))
    assert same_trees(folder_of(tmp_path, grown), folder_of(tmp_path, anew, "anew"))


def test_a_source_that_goes_away_between_plan_and_run_is_computed_instead(
    prepare_images: Prepare, grow: Callable[[], None], tmp_path: Path
) -> None:
    first = extracted(prepare_images())
    grow()
    prepared = prepare_images()
    assert [(source.name, source.rows) for source in prepared.sources] == [(first.feature_set, 19)]
    shutil.rmtree(folder_of(tmp_path, first))
    row_map.cache_clear()  # as in another process
    outcome = extracted(prepared)
    assert (outcome.reused, outcome.committed) == (0, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 8},
        {"layers": (3,)},
        {"token_kinds": ("patches", "cls"), "request": {"compute_dtype": "bfloat16"}},
        {"request": {"fit": "squash"}},
        {"storage_dtype": "float32"},
    ],
)
def test_other_computations_give_no_rows(
    prepare_images: Prepare, grow: Callable[[], None], changes: dict[str, Any]
) -> None:
    extracted(prepare_images(token_kinds=("patches",)))
    grow()
    assert prepare_images(**{"token_kinds": ("patches",), **changes}).sources == ()


def test_float16_is_copied_from_float32_and_equals_what_would_be_computed(
    prepare_images: Prepare, tmp_path: Path, same_trees: SameTrees
) -> None:
    extracted(prepare_images(storage_dtype="float32"))
    copied = extracted(prepare_images())
    assert copied.reused == 20
    anew = extracted(prepare_images(store="anew"))
    assert same_trees(folder_of(tmp_path, copied), folder_of(tmp_path, anew, "anew"))


def test_fewer_layers_of_an_unfinished_set_are_copied_as_far_as_they_stand(
    prepare_images: Prepare, tmp_path: Path, same_trees: SameTrees
) -> None:
    whole = prepare_images(layers=(2, 6))
    run_extraction(dataclasses.replace(whole, missing=whole.missing[:2]), BeamEngine())
    outcome = extracted(prepare_images(layers=(6,)))
    assert outcome.reused == 16
    anew = extracted(prepare_images(store="anew", layers=(6,)))
    assert same_trees(folder_of(tmp_path, outcome), folder_of(tmp_path, anew, "anew"))


def made_with(store: Path, torch: str) -> None:
    """Let every run so far be one of another torch."""
    for place in store.glob("runs/*/run.json"):
        record = json.loads(place.read_text())
        del record[RECORD_DIGEST]
        record["environment"]["torch"] = torch
        place.write_bytes(record_bytes(record))


def test_rows_of_another_environment_are_computed_unless_it_is_allowed(
    prepare_images: Prepare, grow: Callable[[], None], tmp_path: Path
) -> None:
    first = extracted(prepare_images())
    made_with(tmp_path / "store", "1.0")
    grow()
    prepared = prepare_images()
    assert [(source.name, source.rows) for source in prepared.sources] == [(first.feature_set, 19)]
    assert str(prepared.sources[0].refused).startswith("torch: begun with '1.0', now")
    assert estimate_cost(prepared).reused == 0
    grown = extracted(prepare_images(allow_mixed_environment=True))
    assert grown.reused == 19
    found = earlier_environments(create_store(str(tmp_path / "store")), f"features/{grown.feature_set}")
    assert {environment["torch"] for environment in found} >= {"1.0"}
    assert len(found) == 2


def test_rows_of_which_no_run_says_where_they_were_made_are_computed(
    prepare_images: Prepare, grow: Callable[[], None], tmp_path: Path
) -> None:
    extracted(prepare_images())
    shutil.rmtree(tmp_path / "store" / "runs")
    grow()
    assert [source.refused for source in prepare_images().sources] == ["no run says where it was made"]
    assert prepare_images(allow_mixed_environment=True).plan.sources != ()


def test_equal_size_and_time_say_nothing_of_another_file(prepare_images: Prepare, images: Path) -> None:
    random = np.random.default_rng(1)
    for name in ("one", "other"):
        place = images / "even" / f"{name}.bmp"
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(place)
        os.utime(place, ns=(10**18, 10**18))
    (images / "even" / "other.bmp").rename(images.parent / "other.bmp")
    first = extracted(prepare_images(content_key="stat"))
    assert first.rows == 21
    (images / "even" / "one.bmp").unlink()
    (images.parent / "other.bmp").rename(images / "even" / "other.bmp")
    # All but the new file, whose size and time are those of one that stands.
    assert sum(source.rows for source in prepare_images(content_key="stat").sources) == 20


def test_another_ground_sample_distance_is_another_view(prepare_images: Prepare) -> None:
    extracted(prepare_images(distance_m=0.5))
    assert prepare_images(distance_m=0.25).sources == ()
    assert prepare_images().sources == ()


def test_one_image_under_two_names_is_copied_to_both(prepare_images: Prepare, images: Path, tmp_path: Path) -> None:
    extracted(prepare_images())
    shutil.copy(images / "even" / "004.png", images / "odd" / "004.png")
    outcome = extracted(prepare_images())
    assert outcome.reused == 21
    features: FeatureSet = open_store(str(tmp_path / "store")).features(outcome.feature_set)
    uris = features.column("uri")
    one, other = features.read(rows=[uris.index("even/004.png"), uris.index("odd/004.png")])
    assert one.any()
    np.testing.assert_array_equal(one, other)
