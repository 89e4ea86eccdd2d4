"""Manifests by whole columns: what Arrow makes of them is what dictionaries give, row by row."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import ManifestError
from feature_store.manifest import (
    MANIFEST_SCHEMA,
    DatasetSpec,
    annotations_digest,
    check_relative_uri,
    manifest_table,
    suspicious_uris,
    view_id,
    views_digest,
)
from feature_store.manifest_order import ordered_manifest, row_order, take_rows
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.datasets.assemble import limit_images
from pipelines.datasets.manifest_columns import repeated_view, rows_of_first_images

_TILES = [None, *({"x": x, "y": y, "width": 8, "height": 8} for x in (-1, 0, 9) for y in (0, 9))]
_TRANSFORMS = [None, *({"name": name, "parameters": text} for name in ("blur", "resize") for text in ("{}", '{"a":1}'))]
_KEY_OF = {"a": "0" * 64, "a.png": "f" * 64, "a/b": "0" * 64, "é": 'a"b', "z": "é", "\U0001f600": "1", "\uffff": ""}
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "uri": st.sampled_from(list(_KEY_OF)),
            "image_sha256": st.sampled_from(["0" * 64, "f" * 64, "stat:1-2", 'a"b', "é"]),
            "tile": st.sampled_from(_TILES),
            "transform": st.sampled_from(_TRANSFORMS),
            "split": st.sampled_from([None, "train", "test"]),
            "label": st.sampled_from([None, 0, 1, 2]),
        }
    ),
    min_size=1,
    max_size=30,
)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.ChunkedArray]:
    schema = pa.schema([field for field in MANIFEST_SCHEMA if field.name in rows[0]])
    halves = [pa.Table.from_pylist(part, schema=schema) for part in (rows[::2], rows[1::2]) if part]
    return {name: pa.concat_tables(halves)[name] for name in schema.names}


def _interleaved(rows: list[Any]) -> list[Any]:
    """The rows in the order that `_columns` has them in."""
    return [*rows[::2], *rows[1::2]]


@given(_ROWS)
def test_columns_become_the_manifest_that_dictionaries_become(rows: list[dict[str, Any]]) -> None:
    # A file has one content key.
    rows = [{**row, "image_sha256": _KEY_OF[row["uri"]]} for row in rows]
    columns = _columns(rows)
    order = row_order(columns)
    if order is not None:
        take_rows(columns, order)
    found = ordered_manifest(columns)
    assert columns == {}
    assert found.to_pylist() == manifest_table(_interleaved(rows)).to_pylist()
    for row in found.to_pylist():
        tile, transform = row["tile"], row["transform"]
        assert row["view_id"] == view_id(
            row["image_sha256"],
            [tile[axis] for axis in ("x", "y", "width", "height")] if tile else None,
            (transform["name"], transform["parameters"]) if transform else None,
        )


@given(_ROWS)
def test_the_first_two_rows_of_one_view_are_found(rows: list[dict[str, Any]]) -> None:
    columns = _columns(rows)
    order = row_order(columns)
    if order is not None:
        take_rows(columns, order)
    views = [
        repr({name: row[name] for name in ("uri", "image_sha256", "tile", "transform")})
        for row in pa.table(columns).to_pylist()
    ]
    found = repeated_view(columns)
    if found is None:
        assert len(set(views)) == len(views)
    else:
        assert found[0] < found[1]
        assert views[found[0]] == views[found[1]]


@given(_ROWS, st.integers(1, 5))
def test_the_images_that_a_limit_keeps_are_those_of_the_rows(rows: list[dict[str, Any]], limit: int) -> None:
    given_rows = [{**row, "tile": None, "transform": None} for row in rows]
    columns = _columns(given_rows)
    order = row_order(columns)
    if order is not None:
        take_rows(columns, order)
    expected = limit_images(pa.table(columns).to_pylist(), limit)
    take_rows(columns, rows_of_first_images(columns, limit))
    assert pa.table(columns).to_pylist() == expected


@given(st.lists(st.text(st.sampled_from("ab./:\\\0-1é"), max_size=6), min_size=1))
def test_every_path_that_is_refused_is_suspicious(uris: list[str]) -> None:
    for uri, suspicious in zip(uris, suspicious_uris(pa.array(uris)).to_pylist(), strict=True):
        try:
            check_relative_uri(uri)
        except ManifestError:
            assert suspicious


def test_digests_are_those_of_every_earlier_manifest() -> None:
    """Taken with Vitrine's first canonical form; a change would make every stored feature set another one."""

    def row(n: int) -> dict[str, Any]:
        box = {"x": 1.5, "y": 2.0, "width": 3.0, "height": 4.0}
        thing = {"box": box, "instance_id": n, "category": None if n % 2 else 1, "polygon": [1.0, 2.0, 3.0]}
        return {
            "uri": f"bilder/Größe {n:05d}.png",
            "image_sha256": f"{n:064x}",
            "split": ["train", "test", None][n % 3],
            "label": None if n % 7 == 0 else n % 5,
            "tile": None if n % 2 else {"x": n % 9 - 1, "y": 0, "width": 16, "height": 16},
            "transform": {"name": "resize", "parameters": '{"height":32,"width":32}'} if n % 5 == 0 else None,
            "ground_sample_distance_m": None if n % 11 else 0.3 + n,
            "sequence": "a" if n % 4 else None,
            "frame": n if n % 4 else None,
            "objects": [thing] if n % 1000 == 0 else None,
        }

    table = manifest_table(row(n) for n in range(20000))
    masks = [None if n % 2 else "ab" * 32 for n in range(len(table))]
    assert views_digest(table) == "09bc817d5c23e61153e28267b7232ea8fea76d1d9d2c506245572d8edb0f470c"
    annotations = annotations_digest(table, masks, DatasetSpec(name="a", classes=("x", "y")))
    assert annotations == "3e1166950c3f03671353d1943ba4e320200cf69380e58976659da5744b0ab514"
    empty_keys = manifest_table({"uri": f"{n}", "image_sha256": ""} for n in range(3))
    assert views_digest(empty_keys) == "90176191d0219f4abcb93de882f265c1ad58a2ee4fe5296c53c43a36ae197ee4"


def test_a_file_in_any_order_gives_the_dataset_that_its_rows_give(tmp_path: Path) -> None:
    rows = [
        {"uri": f"{n:03d}.png", "image_sha256": f"{n // 2:064x}", "split": "train" if n % 3 else "test", "label": n % 3}
        for n in range(200)
    ]
    expected = manifest_table(rows)
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(shuffled), tmp_path / "views.parquet")
    dataset = open_dataset(f"manifest:{tmp_path / 'views.parquet'}", options=DatasetOptions())
    assert dataset.table.equals(expected)
    (copies,) = (found for found in dataset.findings if found.kind == "copies")
    assert copies.count == 100
    limited = open_dataset(f"manifest:{tmp_path / 'views.parquet'}", options=DatasetOptions(limit_per_split=10))
    assert limited.table.to_pylist() == limit_images(expected.to_pylist(), 10)


_PLANNING = """
import resource, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pipelines.datasets import DatasetOptions, open_dataset
from feature_store.datasets import describe_dataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = open_dataset(f"manifest:{sys.argv[1]}", options=DatasetOptions())
describe_dataset(dataset.spec, dataset.table, dataset.iter_masks())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_planning_takes_a_few_hundred_bytes_a_row(tmp_path: Path) -> None:
    """Dictionaries took some two thousand."""
    n_rows = 200_000
    numbers = np.random.default_rng(0).permutation(n_rows)
    columns = {
        "uri": [f"images/{number:09d}.jpg" for number in numbers],
        "image_sha256": [f"{number * 7919:064x}" for number in numbers],
        "label": numbers % 1000,
        "split": np.where(numbers % 10 == 9, "test", "train"),
    }
    pq.write_table(pa.table(columns), tmp_path / "views.parquet")
    done = subprocess.run(
        [sys.executable, "-c", _PLANNING, str(tmp_path / "views.parquet")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 / n_rows < 700
