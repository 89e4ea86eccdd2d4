"""Content keys: one a file, each held to the bytes before a token counts, and what is known by its place alone."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_store import ManifestError, manifest_table, open_store
from feature_store.manifest import MANIFEST_SCHEMA, check_manifest
from pipelines import prefetch
from pipelines.backbones import load_backbone, resolve_backbone
from pipelines.beam_engine import BeamEngine
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.image_files import open_image_file
from pipelines.imports import ImportOptions, imported_dataset, open_vectors
from pipelines.meter import Meter
from pipelines.plan import ExtractionSettings
from pipelines.prefetch import SourceChangedError, prepare_views
from pipelines.run import Outcome, prepare_extraction, run_extraction
from tests.pipelines.nights import here

TWO_KEYS = r"image 'a.png' has two content keys in the manifest, '[0-9a-f]{24}' and '[0-9a-f]{24}'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of different content, a.png and b.png."""
    random = np.random.default_rng(3)
    for name in ("a.png", "b.png"):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def key_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def two_keys(folder: Path) -> list[dict[str, str]]:
    """Rows that give the left half of a.png the key of its content, and a.png itself that of b.png."""
    return [{"uri": "a.png", "image_sha256": key_of(folder / name), "split": "train"} for name in ("a.png", "b.png")]


def write_parquet(rows: list[dict[str, str]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(rows: list[dict[str, str]], path: Path) -> None:
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))


def write_jsonl(rows: list[dict[str, str]], path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    ("name", "write"), [("m.parquet", write_parquet), ("m.csv", write_csv), ("m.jsonl", write_jsonl)]
)
def test_two_content_keys_of_one_image_are_refused_in_a_users_table(
    folder: Path, name: str, write: Callable[[list[dict[str, str]], Path], None]
) -> None:
    write(two_keys(folder), folder / name)
    with pytest.raises(ManifestError, match=TWO_KEYS):
        open_dataset(f"manifest:{folder / name}")


def test_a_stated_and_a_computed_key_of_one_image_must_be_the_same(folder: Path) -> None:
    rows = two_keys(folder)
    rows[0]["image_sha256"] = ""
    write_csv(rows, folder / "m.csv")
    with pytest.raises(ManifestError, match=TWO_KEYS):
        open_dataset(f"manifest:{folder / 'm.csv'}")


def test_two_content_keys_of_one_image_are_refused_when_vectors_are_imported(folder: Path) -> None:
    np.save(folder / "v.npy", np.eye(2, 8, dtype=np.float32))
    write_csv(two_keys(folder), folder / "v.csv")
    options = ImportOptions()
    with pytest.raises(ManifestError, match=TWO_KEYS):
        imported_dataset(open_vectors(f"npy:{folder}/v.npy", options), DatasetOptions(), root=None)


def test_two_content_keys_of_one_image_are_refused_in_a_strangers_table(folder: Path) -> None:
    # Each row alone makes a sound manifest.
    tables = [manifest_table([row]) for row in two_keys(folder)]
    with pytest.raises(ManifestError, match=TWO_KEYS):
        check_manifest(pa.concat_tables(tables).cast(MANIFEST_SCHEMA))


def views(folder: Path) -> list[dict[str, Any]]:
    return [row for rows in two_keys(folder) for row in manifest_table([rows]).to_pylist()]


@pytest.mark.parametrize("true_first", [True, False])
def test_each_content_key_of_an_image_is_held_to_the_bytes(folder: Path, true_first: bool) -> None:
    null = load_backbone(resolve_backbone("null"))
    both = views(folder) if true_first else views(folder)[::-1]
    prepared = prepare_views(folder, both, null.preprocessing, batch_size=4, threads=2, meter=Meter())
    with pytest.raises(SourceChangedError, match=f"its content key was '{key_of(folder / 'b.png')[:24]}'"):
        list(prepared)


def same_looking(folder: Path, name: str, shade: int) -> Path:
    """A folder with one image whose name, size and time are those of every other folder made here."""
    (folder / name).mkdir()
    Image.new("L", (64, 64), shade).save(folder / name / "a.bmp")
    os.utime(folder / name / "a.bmp", ns=(0, 1_000_000_000))
    return folder / name


def extracted(folder: Path, store: Path) -> Outcome:
    dataset = open_dataset(f"images:{folder}", options=DatasetOptions(name="photos", content_key="stat"))
    prepared = prepare_extraction(dataset, resolve_backbone("null"), ExtractionSettings(), store=str(store))
    assert prepared.done_as is None
    return run_extraction(prepared, BeamEngine())


def test_a_key_of_size_and_time_is_never_reused_under_another_root(tmp_path: Path) -> None:
    monday, tuesday = (same_looking(tmp_path, name, shade) for name, shade in (("monday", 10), ("tuesday", 200)))
    one, other = (extracted(folder, tmp_path / "store") for folder in (monday, tuesday))
    assert one.feature_set != other.feature_set
    assert other.reused == 0
    store = open_store(str(tmp_path / "store"))
    dark, light = (store.features(outcome.feature_set).read() for outcome in (one, other))
    assert not np.array_equal(dark, light)


def test_a_stated_key_of_size_and_time_gets_its_root_and_keeps_it(tmp_path: Path) -> None:
    monday, tuesday = (same_looking(tmp_path, name, shade) for name, shade in (("monday", 10), ("tuesday", 200)))
    size_bytes = (monday / "a.bmp").stat().st_size
    write_csv([{"uri": "a.bmp", "image_sha256": f"stat:{size_bytes}-1000000000"}], monday / "m.csv")
    table = open_dataset(f"manifest:{monday / 'm.csv'}").table
    whole = open_dataset(f"images:{monday}", options=DatasetOptions(content_key="stat")).table
    assert table["view_id"].to_pylist() == whole["view_id"].to_pylist()
    pq.write_table(table, tuesday / "m.parquet")
    with pytest.raises(ManifestError, match=r"of another folder than .*leave image_sha256 out"):
        open_dataset(f"manifest:{tuesday / 'm.parquet'}")


def pictures(folder: Path, number: int = 12) -> list[dict[str, str]]:
    """Rows for so many images of different content, each with its true key, so that a shard of 8 is whole."""
    random = np.random.default_rng(5)
    for name in (f"{place:02d}.png" for place in range(number)):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
    return [{"uri": path.name, "image_sha256": key_of(path)} for path in sorted(folder.glob("*.png"))]


def tabled(folder: Path, rows: list[dict[str, str]], store: str = "store") -> Outcome:
    """The extraction of a table, one shard after another."""
    write_csv(rows, folder / "m.csv")
    settings = ExtractionSettings(rows_per_shard=8, batch_size=4)
    dataset = open_dataset(f"manifest:{folder / 'm.csv'}")
    request = resolve_backbone("null", image_size=32)
    prepared = prepare_extraction(dataset, request, settings, store=str(folder / store))
    return run_extraction(prepared, here)


@pytest.mark.parametrize("place", [0, 9])
def test_a_false_stated_key_is_caught_when_its_row_would_be_copied(tmp_path: Path, place: int) -> None:
    rows = pictures(tmp_path)
    tabled(tmp_path, rows)
    other = rows[10]["image_sha256"]
    with pytest.raises(SourceChangedError, match=f"image '{place:02d}.png' is not .* was '{other[:24]}'"):
        tabled(tmp_path, [*rows[:place], {**rows[place], "image_sha256": other}, *rows[place + 1 :]])


def test_an_image_overwritten_behind_a_stale_table_is_caught_when_its_shard_would_be_linked(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    tabled(tmp_path, rows)
    (tmp_path / "00.png").write_bytes((tmp_path / "01.png").read_bytes())
    with pytest.raises(SourceChangedError, match=r"image '00.png' is not the one that the manifest names"):
        tabled(tmp_path, rows[:-1])


def test_a_missing_image_of_a_stated_key_is_caught_when_its_row_would_be_copied(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    tabled(tmp_path, rows)
    (tmp_path / "03.png").unlink()
    with pytest.raises(SourceChangedError, match=r"image '03.png' was there when the manifest was made"):
        tabled(tmp_path, rows[:-1])


def test_a_stated_key_of_size_and_time_is_held_to_them_when_its_row_would_be_copied(tmp_path: Path) -> None:
    rows = pictures(tmp_path)
    for row in rows:
        os.utime(tmp_path / row["uri"], ns=(0, 1_000_000_000))
        row["image_sha256"] = f"stat:{(tmp_path / row['uri']).stat().st_size}-1000000000"
    tabled(tmp_path, rows)
    assert tabled(tmp_path, rows[:-1]).reused == 11
    os.utime(tmp_path / "05.png", ns=(0, 2_000_000_000))
    with pytest.raises(SourceChangedError, match=r"image '05.png' is not the one"):
        tabled(tmp_path, rows[:-2])


def test_true_stated_keys_are_reused_with_one_read_of_each_image_and_computed_keys_with_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pictures(tmp_path)
    tabled(tmp_path, rows)
    opened: list[str] = []

    def counted(root: Path, uri: str, *rest: Any) -> Any:
        opened.append(uri)
        return open_image_file(root, uri, *rest)

    monkeypatch.setattr(prefetch, "open_image_file", counted)
    assert tabled(tmp_path, rows[:-1]).reused == 11
    assert sorted(opened) == [row["uri"] for row in rows[:-1]]
    opened.clear()
    assert tabled(tmp_path, [{"uri": row["uri"]} for row in rows[:-2]]).reused == 10
    assert opened == []
