"""shard_format: the bytes of a shard are those that zarr-python writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from feature_store.errors import CorruptError, ShardError
from feature_store.shard_format import ArrayLayout, encode_shard
from feature_store.shards import shards_of
from feature_store.zarr_metadata import require_metadata

_AXES = {0: ("row",), 1: ("row", "feature"), 2: ("row", "patch", "feature")}


def _layout(
    n_rows: int, rows_per_shard: int, row_shape: tuple[int, ...] = (3, 2), dtype: str = "float16"
) -> ArrayLayout:
    axes = _AXES[len(row_shape)]
    return ArrayLayout(n_rows=n_rows, row_shape=row_shape, dtype=dtype, rows_per_shard=rows_per_shard, axes=axes)


def _create_with_zarr(store: Any, layout: ArrayLayout) -> Any:
    return zarr.create_array(
        store,
        shape=(layout.n_rows, *layout.row_shape),
        shards=(layout.rows_per_shard, *layout.row_shape),
        chunks=(8, *layout.row_shape),
        dtype=layout.dtype,
        compressors=None,
        filters=None,
        fill_value=0,
        dimension_names=layout.axes,
        config={"write_empty_chunks": True},
    )


def _objects_of_zarr(layout: ArrayLayout, values: np.ndarray[Any, Any]) -> dict[str, bytes]:
    objects: dict[str, Any] = {}
    _create_with_zarr(MemoryStore(objects), layout)[...] = values
    return {name: content.to_bytes() for name, content in objects.items()}


def _objects_of_vitrine(layout: ArrayLayout, values: np.ndarray[Any, Any]) -> dict[str, bytes]:
    objects = {"zarr.json": json.dumps(layout.metadata()).encode()}
    for shard in shards_of(layout.n_rows, layout.rows_per_shard):
        name = "/".join(["c", str(shard.index), *["0"] * len(layout.row_shape)])
        objects[name] = b"".join(encode_shard(layout, values[shard.start : shard.stop]))
    return objects


def _values(layout: ArrayLayout, zeros: str) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0).normal(size=(layout.n_rows, *layout.row_shape))
    values = (random > 0) if layout.dtype == "bool" else random.astype(layout.dtype)
    rows = {"nowhere": slice(0, 0), "first": slice(0, 8), "middle": slice(8, 16), "everywhere": slice(None)}[zeros]
    values[rows] = 0
    return values


@pytest.mark.parametrize("zeros", ["nowhere", "first", "middle", "everywhere"])
@pytest.mark.parametrize("n_rows", [48, 24, 45, 25, 7])
@pytest.mark.parametrize(("row_shape", "dtype"), [((3, 2), "float16"), ((5,), "float32"), ((), "bool")])
def test_shards_are_byte_for_byte_those_of_zarr_python(
    row_shape: tuple[int, ...], dtype: str, n_rows: int, zeros: str
) -> None:
    layout = _layout(n_rows, 24, row_shape, dtype)
    values = _values(layout, zeros)
    theirs, ours = _objects_of_zarr(layout, values), _objects_of_vitrine(layout, values)
    assert json.loads(theirs.pop("zarr.json")) == json.loads(ours.pop("zarr.json"))
    assert ours == theirs
    assert {len(content) for content in list(ours.values())[:-1]} <= {layout.shard_bytes(24)}


@settings(max_examples=40)
@given(
    n_rows=st.integers(1, 70),
    chunks_per_shard=st.integers(1, 4),
    row_shape=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    dtype=st.sampled_from(["float16", "float32", "bool"]),
    seed=st.integers(0, 99),
)
def test_plain_zarr_python_reads_what_was_written(
    n_rows: int, chunks_per_shard: int, row_shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    layout = _layout(n_rows, 8 * chunks_per_shard, row_shape, dtype)
    values = np.random.default_rng(seed).integers(0, 2, size=(n_rows, *row_shape)).astype(dtype)
    buffers: dict[str, Buffer] = {
        name: cpu.Buffer.from_bytes(content) for name, content in _objects_of_vitrine(layout, values).items()
    }
    array = zarr.open_array(MemoryStore(buffers), mode="r")
    assert array.dtype == values.dtype
    assert array.metadata.to_dict()["dimension_names"] == layout.axes
    np.testing.assert_array_equal(array[...], values)


def test_the_body_of_a_shard_is_its_rows_in_c_order_from_byte_0() -> None:
    layout = _layout(24, 24)
    values = _values(layout, "middle")
    assert b"".join(encode_shard(layout, values)).startswith(values.tobytes())


def test_encoding_copies_no_row() -> None:
    layout = _layout(24, 24)
    values = _values(layout, "nowhere")
    body = encode_shard(layout, values)[0]
    assert np.shares_memory(np.frombuffer(body, dtype=np.uint8), values)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((8, 3), np.float16),
        np.zeros((8, 3, 2), np.float32),
        np.zeros((8, 3, 2), ">f2"),
        np.zeros((8, 2, 3), np.float16),
    ],
)
def test_rows_of_another_shape_or_dtype_are_refused(rows: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ShardError, match=r"do not fit an array of rows \(3, 2\) and dtype float16; write what"):
        encode_shard(_layout(24, 24), rows)


@pytest.mark.parametrize("n_rows", [0, 25])
def test_too_many_rows_and_none_are_refused(n_rows: int) -> None:
    with pytest.raises(ShardError, match=f"^{n_rows} rows do not make a shard of 24"):
        encode_shard(_layout(24, 24), np.zeros((n_rows, 3, 2), np.float16))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [25, 3, 2]),
        ("shape", [24.0, 3, 2]),
        ("data_type", "float32"),
        ("zarr_format", 2),
        ("fill_value", 1.0),
        ("codecs", [{"name": "bytes"}, {"name": "zstd"}]),
        ("storage_transformers", [{"name": "x"}]),
        ("dimension_names", None),
        ("surprise", True),
    ],
)
def test_metadata_that_says_anything_else_is_refused(key: str, value: Any) -> None:
    metadata = _layout(24, 24).metadata()
    with pytest.raises(CorruptError, match=f"^a/zarr.json has {key} .* and its record asks for .*Restore it"):
        require_metadata({**metadata, key: value}, metadata, "a/zarr.json")


def test_true_is_not_taken_for_one() -> None:
    metadata = _layout(1, 8, (1, 1)).metadata()
    with pytest.raises(CorruptError, match=r"has shape \[true,1,1\], and its record asks for \[1,1,1\]"):
        require_metadata({**metadata, "shape": [True, 1, 1]}, metadata, "x")


def test_a_strangers_notes_and_an_omitted_empty_list_are_accepted() -> None:
    metadata = _layout(24, 24).metadata()
    noted = {**metadata, "attributes": {"seen by": "me"}}
    del noted["storage_transformers"]
    require_metadata(noted, metadata, "x")


def test_groups_and_arrays_on_disk_open_with_zarr_python(tmp_path: Path) -> None:
    layout = _layout(20, 8)
    values = _values(layout, "first")
    for name, content in _objects_of_vitrine(layout, values).items():
        place = tmp_path / "g" / "layer_1" / "patches" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "g/layer_1/patches", mode="r")[...], values)
