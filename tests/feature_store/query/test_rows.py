"""rows: patches, Arrow, dask and xarray give what the whole array holds at these rows, and read nothing else."""

import pickle
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import (
    CorruptError,
    FeatureRows,
    FeatureSet,
    IncompleteError,
    QueryError,
    StoreError,
    create_feature_set,
    create_store,
    open_store,
)
from feature_store.layout import token_array
from feature_store.remote_objects import RemoteRoot
from tests.feature_store.samples import all_tokens, fill_store, make_spec, register, write_missing

_N_ROWS = 45
_INVALID = (0, 8, 9, 44)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    store = tmp_path_factory.mktemp("rows") / "s"
    return fill_store(str(store), n_rows=_N_ROWS, rows_per_shard=16, layers=(1, 2), invalid=_INVALID)


@pytest.fixture(scope="module")
def patches(features: FeatureSet) -> np.ndarray[Any, Any]:
    """Every patch token of layer 2, as it was written."""
    return all_tokens(features.spec, 2, "patches", _INVALID)


# --- patches ---------------------------------------------------------------------------------------------------------

_NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
_MASKS = st.lists(st.booleans(), min_size=4, max_size=4).filter(any).map(np.asarray)


@given(
    rows=st.lists(st.integers(0, _N_ROWS - 1), max_size=30),
    choice=_NUMBERS | _NUMBERS.map(np.asarray) | _MASKS | _MASKS.map(lambda mask: mask.reshape(2, 2)),
)
def test_reading_patches_is_indexing_the_whole_array(
    features: FeatureSet, patches: np.ndarray[Any, Any], rows: list[int], choice: Any
) -> None:
    numbers = np.arange(4)[np.asarray(choice).reshape(-1)]
    np.testing.assert_array_equal(features.read(2, "patches", rows, choice), patches[rows][:, numbers])
    for found, block in features.iter_blocks(2, "patches", patches=choice, block_bytes=40):
        np.testing.assert_array_equal(block, patches[found][:, numbers])


def test_blocks_hold_as_many_rows_as_fit_with_the_patches_asked_for(features: FeatureSet) -> None:
    # One patch of three float16 is 6 bytes, so 24 bytes hold 4 rows; all four patches would leave room for one.
    sizes = [len(rows) for rows, _ in features.iter_blocks(2, "patches", patches=[1], block_bytes=24)]
    assert max(sizes) == 4
    assert sum(sizes) == _N_ROWS - len(_INVALID)


@pytest.mark.parametrize(
    ("choice", "kind", "reason"),
    [
        ([0], "cls", "choose patches of kind 'patches'"),
        ([], "patches", "no patch of 0..3 was chosen"),
        (slice(9, 12), "patches", "no patch of 0..3 was chosen"),
        ([4], "patches", r"patch 4 does not exist: a row has patches 0 to 3, .*none counts from the end"),
        ([-1], "patches", "none counts from the end"),
        (np.array([0.5]), "patches", "give a list of patch numbers"),
        (np.array([[0]]), "patches", "give a list of patch numbers"),
        (np.ones(3, bool), "patches", r"a mask of shape \(3,\) does not fit .* \(4,\) or \(2, 2\)"),
        (np.ones((4, 1), bool), "patches", r"a mask of shape \(4, 1\) does not fit"),
        (np.zeros(4, bool), "patches", "no patch"),
    ],
)
def test_patches_that_do_not_exist_are_refused(features: FeatureSet, choice: Any, kind: Any, reason: str) -> None:
    with pytest.raises(QueryError, match=reason):
        features.read(2, kind, [1], choice)
    with pytest.raises(QueryError, match=reason):
        features.to_arrow(2, kind, patches=choice)


@pytest.fixture
def behind_a_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FeatureSet, list[tuple[int, int]]]]:
    """A feature set in an object store, and the spans of bytes that are read of its tokens.

    A row has 4 patches of 1024 float16, 8 KiB; a shard has 64 rows, 512 KiB, too many to be fetched whole.
    """
    url = f"memory://vitrine-{uuid.uuid4().hex}"
    root = create_store(url)
    dataset = register(root, 100)
    spec = make_spec(n_rows=100, rows_per_shard=64, layers=(1,), kinds=("patches",), views=dataset.views_digest)
    spec = replace(spec, n_features=1024)
    write_missing(root, create_feature_set(root, "tiny", spec), spec)
    features = open_store(url).features()
    spans: list[tuple[int, int]] = []
    one, several = RemoteRoot.read_range, RemoteRoot.read_ranges

    def read_range(self: RemoteRoot, path: str, start: int, stop: int) -> Any:
        spans.append((start, stop))
        return one(self, path, start, stop)

    def read_ranges(self: RemoteRoot, path: str, wanted: Any) -> Any:
        spans.extend(wanted)
        return several(self, path, wanted)

    assert features.valid.all()
    monkeypatch.setattr(RemoteRoot, "read_range", read_range)
    monkeypatch.setattr(RemoteRoot, "read_ranges", read_ranges)
    yield features, spans
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/"), recursive=True)


def test_a_row_behind_a_url_costs_its_own_bytes_and_the_index_of_its_shard(
    behind_a_url: tuple[FeatureSet, list[tuple[int, int]]],
) -> None:
    features, spans = behind_a_url
    row, index = 8192, (64 * 8192, 64 * 8192 + 8 * 16 + 4)
    patches = all_tokens(features.spec, 1, "patches")
    found = features.where("row = 3").read(1, "patches", patches=[2])
    np.testing.assert_array_equal(found, patches[[3]][:, [2]])
    assert set(spans) == {index, (3 * row, 4 * row)}
    spans.clear()
    lazy = features.where("row IN (3, 60, 99)").to_dask(1, "patches")
    assert spans == []
    np.testing.assert_array_equal(lazy[:2].compute(), patches[[3, 60]])
    # Nothing of the second shard.
    assert set(spans) == {index, (3 * row, 4 * row), (60 * row, 61 * row)}


def test_blocks_of_patches_behind_a_url_hold_whole_rows_in_bounds(
    behind_a_url: tuple[FeatureSet, list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _ = behind_a_url
    monkeypatch.setattr("feature_store.token_reader._WHOLE_BYTES", 10 * 8192)
    found = list(features.iter_blocks(1, "patches", patches=[1], block_bytes=1 << 20))
    assert [len(rows) for rows, _ in found] == [10] * 6 + [4] + [10] * 3 + [6]
    tokens = np.concatenate([block for _, block in found])
    np.testing.assert_array_equal(tokens, all_tokens(features.spec, 1, "patches")[:, [1]])


def test_patches_of_a_map_are_taken_from_it_and_nothing_else_is_copied(features: FeatureSet) -> None:
    """Patches side by side of rows side by side are a view of the file: by construction nothing was read."""
    ((rows, block),) = features.iter_blocks(2, "patches", rows=np.arange(1, 8), patches=[1, 2])
    assert rows.tolist() == list(range(1, 8))
    assert not block.flags.writeable
    assert not block.flags.owndata
    assert block.strides == (4 * 3 * 2, 3 * 2, 2)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_read_what_they_name(features: FeatureSet, patches: np.ndarray[Any, Any]) -> None:
    some = features.where("label = 1")
    np.testing.assert_array_equal(some.read(2, "patches"), patches[1::3])
    np.testing.assert_array_equal(some.read(2, "patches", [7, 4], [3]), patches[[7, 4]][:, [3]])
    with pytest.raises(QueryError, match="row 5 is not among these 15 rows"):
        some.read(2, "patches", [4, 5])
    found = [(rows.tolist(), block) for rows, block in some.iter_blocks(2, "patches")]
    assert [row for rows, _ in found for row in rows] == [row for row in range(1, 45, 3) if row not in _INVALID]


def test_every_answer_survives_no_rows_at_all(features: FeatureSet) -> None:
    none = features.where("false")
    assert none.read(2, "patches").shape == (0, 4, 3)
    assert list(none.iter_blocks(2, "cls")) == []
    assert none.columns(["uri", "row"]).num_rows == 0
    assert none.to_arrow(2, "patches").read_all().num_rows == 0
    assert none.to_dask(2, "patches", patches=[1]).compute().shape == (0, 1, 3)
    assert none.where("true").rows.tolist() == []


# --- Arrow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("condition", ["true", "label = 1", "row >= 40", "NOT valid"])
def test_arrow_streams_columns_and_tokens(
    features: FeatureSet, patches: np.ndarray[Any, Any], block_bytes: int, condition: str
) -> None:
    rows = features.where(condition)
    reader = rows.to_arrow(2, "patches", patches=[3, 0], columns=["label", "row"], block_bytes=block_bytes)
    assert reader.schema == pa.schema(
        {"label": pa.int32(), "row": pa.int64(), "patches": pa.list_(pa.list_(pa.float16(), 3), 2)}
    )
    table = reader.read_all()
    table.validate(full=True)
    expected = [row for row in rows.rows.tolist() if row not in _INVALID]
    assert table["row"].to_pylist() == expected
    assert table["label"].to_pylist() == [row % 3 for row in expected]
    assert table["patches"].to_pylist() == patches[expected][:, [3, 0]].tolist()
    assert rows.to_arrow(kind=None).read_all()["row"].to_pylist() == rows.rows.tolist()


def test_arrow_batches_are_bounded_and_share_the_file(features: FeatureSet) -> None:
    batches = list(features.to_arrow(2, "cls", columns=[], block_bytes=30))
    # Four rows have no tokens: one and two of the first shard's 16, one of the last one's 13.
    assert [batch.num_rows for batch in batches] == [5, 5, 3, 5, 5, 5, 1, 5, 5, 2]
    (whole,) = features.where("row BETWEEN 16 AND 31").to_arrow(2, "cls", columns=[])
    (values,) = [block for _, block in features.iter_blocks(2, "cls", rows=np.arange(16, 32))]
    np.testing.assert_array_equal(whole["cls"].flatten().to_numpy(), values.reshape(-1))


def test_arrow_gives_columns_without_tokens(features: FeatureSet) -> None:
    rows = features.where("row < 2")
    table = rows.to_arrow(kind=None, columns=["uri"]).read_all()
    assert table.to_pydict() == {"uri": ["images/000.png", "images/001.png"]}
    with pytest.raises(QueryError, match="neither columns nor tokens"):
        rows.to_arrow(kind=None, columns=[])
    with pytest.raises(StoreError, match="has no 'registers' tokens"):
        rows.to_arrow(2, "registers")


# --- dask and xarray -------------------------------------------------------------------------------------------------


def test_a_dask_array_has_a_chunk_a_shard_and_computes_to_what_is_read(
    features: FeatureSet, patches: np.ndarray[Any, Any]
) -> None:
    whole = features.to_dask(2, "patches")
    assert isinstance(whole, da.Array)
    assert whole.chunks == ((16, 16, 13), (4,), (3,))
    np.testing.assert_array_equal(whole.compute(), patches)
    some = features.where("label = 1").to_dask(2, "patches", patches=[2, 0])
    assert some.chunks == ((5, 6, 4), (2,), (3,))
    np.testing.assert_array_equal(some.compute(), patches[1::3][:, [2, 0]])
    np.testing.assert_array_equal(some[7, 1].compute(), patches[22, 0])
    assert features.to_dask(2, "patches").name == whole.name
    assert features.to_dask(1, "patches").name != whole.name
    np.testing.assert_allclose(
        features.where("valid").to_dask(2, "cls").astype("f8").mean(axis=0).compute(),
        np.delete(all_tokens(features.spec, 2, "cls"), _INVALID, axis=0).astype("f8").mean(axis=0),
    )


def test_processes_of_a_dask_cluster_read_the_store_themselves(
    features: FeatureSet, patches: np.ndarray[Any, Any]
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        found = client.compute(features.where("row > 4").to_dask(2, "patches").astype("f4").sum(axis=(1, 2)))
        np.testing.assert_allclose(
            found.result(timeout=60), patches[5:].astype("f4").sum(axis=(1, 2)), rtol=1e-5, atol=1e-5
        )
        readers = client.run(lambda: __import__("os").getpid())
        assert len(set(readers.values())) == 2


def test_a_graph_does_not_carry_the_store(tmp_path: Path) -> None:
    """What goes to a worker grows with the shards asked for by some bytes each, not by receipts or manifests."""
    root = create_store(str(tmp_path / "s"))
    spec = make_spec(n_rows=800, rows_per_shard=8, layers=(1,), kinds=("cls",))
    write_missing(root, create_feature_set(root, "tiny", spec), spec)
    features = open_store(str(tmp_path / "s")).features()
    some = [FeatureRows(features, np.arange(n)).to_dask(1, "cls") for n in (8, 400, 800)]
    small, middle, large = (len(pickle.dumps(dict(lazy.dask))) for lazy in some)
    assert small < 10_000
    assert large - middle < 50 * 400
    assert len(pickle.dumps(features)) > 2 * small


def test_xarray_labels_rows_and_patches(features: FeatureSet, patches: np.ndarray[Any, Any]) -> None:
    pytest.importorskip("xarray")
    some = features.where("label = 1 AND row < 9").to_xarray(2, "patches", patches=[3, 1])
    assert some.dims == ("row", "patch", "feature")
    assert some.chunks == ((3,), (2,), (3,))
    assert some.name == "patches"
    np.testing.assert_array_equal(some.values, patches[[1, 4, 7]][:, [3, 1]])
    np.testing.assert_array_equal(some.sel(row=4, patch=1).values, patches[4, 1])
    assert some.coords["uri"].sel(row=7).item() == "images/007.png"
    assert some.coords["split"].values.tolist() == ["train"] * 3
    assert some.coords["label"].values.tolist() == [1, 1, 1]
    assert some.attrs["features"] == features.name
    cls = features.to_xarray("last", "cls", columns=["frame", "sequence", "ground_sample_distance_m"])
    assert cls.dims == ("row", "feature")
    assert set(cls.coords) == {"row", "frame", "sequence", "ground_sample_distance_m"}
    # What the manifest does not say is -1, "" and NaN.
    assert (cls.frame == -1).all()
    assert (cls.sequence == "").all()
    assert np.isnan(cls.ground_sample_distance_m).all()
    with pytest.raises(QueryError, match="does not fit a flat array"):
        features.to_xarray(2, "cls", columns=["tile"])


# --- what is missing -------------------------------------------------------------------------------------------------


def _one_shard_missing(url: str, *, partial: bool) -> FeatureSet:
    features = fill_store(url)
    Path(url, features.folder, "receipts", "000001.json").unlink()
    return open_store(url).features(partial=partial)


def test_rows_of_missing_shards_are_refused_by_every_way_out(tmp_path: Path) -> None:
    features = _one_shard_missing(str(tmp_path / "s"), partial=False)
    for way in (features.to_arrow, features.to_dask, features.to_torch, features.to_torch_map, features.read):
        with pytest.raises(IncompleteError, match=r"rows of shard 1 of .* are not committed"):
            way(1, "cls")
    assert len(features.where("row < 8").to_dask(1, "cls").compute()) == 8


def test_a_partial_feature_set_streams_what_is_there(tmp_path: Path) -> None:
    features = _one_shard_missing(str(tmp_path / "s"), partial=True)
    there = [*range(8), *range(16, 21)]
    assert features.to_arrow(1, "cls").read_all()["row"].to_pylist() == there
    assert features.where("valid").rows.tolist() == there


def test_arrow_survives_parquet(features: FeatureSet, tmp_path: Path) -> None:
    table = features.to_arrow(2, "patches", columns=["row"]).read_all()
    pq.write_table(table, tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").equals(table)


def test_a_changed_shard_is_noticed_while_arrow_streams(tmp_path: Path) -> None:
    features = fill_store(str(tmp_path / "s"))
    path = tmp_path / "s" / token_array(features.folder, 1, "cls") / "c/1/0"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="is not what its receipt says"):
        features.to_arrow(1, "cls").read_all()


def test_registers_have_an_axis_of_their_own(tmp_path: Path) -> None:
    root = create_store(str(tmp_path / "s"))
    dataset = register(root, 10)
    spec = make_spec(n_rows=10, layers=(1,), kinds=("registers",), views=dataset.views_digest)
    write_missing(root, create_feature_set(root, "tiny", spec), spec)
    features = open_store(str(tmp_path / "s")).features()
    values = all_tokens(spec, 1, "registers")
    assert features.to_arrow(1, "registers", columns=[]).read_all()["registers"].to_pylist() == values.tolist()
    np.testing.assert_array_equal(features.to_dask(1, "registers").compute(), values)
