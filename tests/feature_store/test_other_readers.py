"""A store is read by others: plain zarr-python and plain xarray, with every option at its default."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from feature_store import FeatureSet
from feature_store.layout import tokens_group
from tests.feature_store.samples import all_tokens, fill_store

xarray = pytest.importorskip("xarray")

_N_ROWS = 45
_PLACES = {
    "first": (0, 1),
    "last": (43, 44),
    "middle": (8, 9, 22, 23),
    "nowhere": (),
    "everywhere": tuple(range(_N_ROWS)),
}


@pytest.fixture(params=_PLACES, scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """A store with its invalid rows in one place."""
    folder = tmp_path_factory.mktemp("others") / "store"
    return fill_store(
        str(folder), n_rows=_N_ROWS, rows_per_shard=16, layers=(1, 2), invalid=_PLACES[str(request.param)]
    )


def _group(found: FeatureSet) -> str:
    return str(Path(found.root.url, tokens_group(found.folder)))


def test_zarr_python_reads_what_the_map_reads(found: FeatureSet) -> None:
    group = zarr.open_group(_group(found), mode="r")
    assert sorted(group.group_keys()) == ["layer_1", "layer_2"]
    valid = np.asarray(group["valid"])
    np.testing.assert_array_equal(valid, found.valid)
    np.testing.assert_array_equal(valid, found.stored_valid())
    invalid = np.flatnonzero(~valid).tolist()
    for layer in (1, 2):
        for kind in found.spec.identity.token_kinds:
            expected = all_tokens(found.spec, layer, kind, invalid)
            np.testing.assert_array_equal(np.asarray(group[f"layer_{layer}/{kind}"]), expected)
            np.testing.assert_array_equal(found.read(layer, kind), expected)
            rows = [row for block_rows, _ in found.iter_blocks(layer, kind, block_bytes=100) for row in block_rows]
            assert rows == np.flatnonzero(valid).tolist()
            for block_rows, block in found.iter_blocks(layer, kind):
                np.testing.assert_array_equal(block, expected[block_rows])


@pytest.mark.parametrize("consolidated", [None, False])
def test_xarray_reads_rows_by_their_names(found: FeatureSet, consolidated: bool | None) -> None:
    with warnings.catch_warnings():
        # By default xarray first looks for consolidated metadata, which Zarr's version 3 does not have, and says so.
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
        with xarray.open_zarr(_group(found), group="layer_2", consolidated=consolidated) as dataset:
            assert dict(dataset.sizes) == {"row": _N_ROWS, "patch": 4, "feature": 3}
            assert dataset["patches"].dims == ("row", "patch", "feature")
            np.testing.assert_array_equal(dataset["patches"].to_numpy(), found.read(2, "patches"))
            np.testing.assert_array_equal(dataset["cls"].isel(row=[44, 0]).to_numpy(), found.read(2, "cls", [44, 0]))
        with xarray.open_zarr(_group(found), consolidated=consolidated) as dataset:
            np.testing.assert_array_equal(dataset["valid"].to_numpy(), found.valid)
