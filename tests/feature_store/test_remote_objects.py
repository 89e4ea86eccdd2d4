"""Object stores over real HTTP: processes and threads, reads by range, errors in one line, and no secret anywhere."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from distributed import Client, LocalCluster

from feature_store import CorruptError, FeatureSet, StoreError, create_store, open_store
from feature_store.errors import StorageError
from feature_store.objects import ObjectRoot
from feature_store.roots import open_root
from tests.fault_proxy import FaultProxy
from tests.feature_store.samples import all_tokens, fill_store
from tests.s3_server import make_bucket, using_endpoint

_N_ROWS = 200


def _cls_of(url: str, _: int = 0) -> tuple[int, bytes]:
    return os.getpid(), open_store(url).features().read(1, "cls").tobytes()


def _read_there(root: ObjectRoot, path: str) -> tuple[int, bytes]:
    return os.getpid(), root.read(path)


@pytest.fixture
def features(s3_url: str) -> FeatureSet:
    return fill_store(s3_url, n_rows=_N_ROWS, rows_per_shard=64, invalid=(0, 70, 199))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_what_their_parent_has_read_before(features: FeatureSet, method: str) -> None:
    expected = all_tokens(features.spec, 1, "cls", (0, 70, 199)).tobytes()
    url = features.root.url
    assert _cls_of(url) == (os.getpid(), expected)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        child, found = pool.submit(_cls_of, url).result(timeout=60)
        assert child != os.getpid()
        assert found == expected
        # The very root of the parent, pickled.
        assert pool.submit(_read_there, features.root, "vitrine.json").result(timeout=60)[0] == child
    assert _cls_of(url)[1] == expected


def test_threads_share_a_root(features: FeatureSet) -> None:
    expected = all_tokens(features.spec, 1, "cls", (0, 70, 199))
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: features.read(1, "cls"), range(32)):
            np.testing.assert_array_equal(found, expected)


def test_dask_workers_take_a_pickled_root(features: FeatureSet) -> None:
    expected = all_tokens(features.spec, 1, "cls", (0, 70, 199)).tobytes()
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        tasks = [client.submit(_cls_of, features.root.url, number) for number in range(4)]
        assert {found for _, found in client.gather(tasks)} == {expected}
        assert client.submit(_read_there, features.root, "vitrine.json").result()[0] != os.getpid()


def test_a_pickled_root_is_the_same_place(features: FeatureSet) -> None:
    again = pickle.loads(pickle.dumps(features.root))
    assert again.url == features.root.url
    assert list(again.walk("")) == list(features.root.walk(""))


# --- reading by range -------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint).running() as running, using_endpoint(running.url):
        yield running


def test_a_read_of_rows_is_one_request_for_the_index_and_one_for_the_rows(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.remote_reads._SMALL_BYTES", 0)
    monkeypatch.setattr("feature_store.remote_reads._GAP_BYTES", 0)
    features = fill_store(f"s3://{make_bucket()}/store", n_rows=_N_ROWS, rows_per_shard=64)
    features.read(1, "patches", [0])
    proxy.requests.clear()
    passed = proxy.bytes_out
    found = features.read(1, "patches", [12, 13, 14, 13])
    np.testing.assert_array_equal(found, all_tokens(features.spec, 1, "patches")[[12, 13, 14, 13]])
    assert [method for method, _ in proxy.requests] == ["GET"] * 2
    row_bytes = 4 * 3 * 2
    assert proxy.bytes_out - passed == (64 // 8 * 16 + 4) + 3 * row_bytes


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_blocks_by_range_equal_those_by_map(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, block_bytes: int
) -> None:
    monkeypatch.setattr("feature_store.remote_reads._SMALL_BYTES", small)
    monkeypatch.setattr("feature_store.remote_reads._PIECE_BYTES", 100)
    arguments = {"n_rows": 45, "rows_per_shard": 16, "invalid": (0, 8, 9, 22, 44)}
    remote = fill_store(s3_url, **arguments)  # type: ignore[arg-type]
    local = fill_store(str(tmp_path / "store"), **arguments)  # type: ignore[arg-type]
    for rows in (None, np.arange(5, 40), np.array([1, 30, 43]), np.arange(0, 45, 2)):
        for gap in (0, 1 << 18):
            monkeypatch.setattr("feature_store.remote_reads._GAP_BYTES", gap)
            found = list(remote.iter_blocks(1, "patches", rows=rows, block_bytes=block_bytes))
            expected = list(local.iter_blocks(1, "patches", rows=rows, block_bytes=block_bytes))
            assert len(found) == len(expected)
            for (numbers, values), (numbers_there, values_there) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(numbers, numbers_there)
                np.testing.assert_array_equal(values, values_there)


@pytest.mark.parametrize("small", [0, 1 << 20])
@pytest.mark.parametrize("place", [0, 700, -200])
def test_one_changed_byte_of_a_shard_that_is_streamed_is_noticed(
    features: FeatureSet, monkeypatch: pytest.MonkeyPatch, small: int, place: int
) -> None:
    monkeypatch.setattr("feature_store.remote_reads._SMALL_BYTES", small)
    monkeypatch.setattr("feature_store.remote_reads._PIECE_BYTES", 100)
    path = f"{features.folder}/tokens.zarr/layer_1/patches/c/1/0/0"
    content = bytearray(features.root.read(path))
    content[place] ^= 1
    features.root.put(path, [bytes(content)])
    with pytest.raises(CorruptError, match=r"patches/c/1/0/0 is not what its receipt says \(checksum\)"):
        for _ in open_store(features.root.url).features().iter_blocks(1, "patches", block_bytes=100):
            pass


def test_a_shard_that_was_cut_off_or_is_gone_is_noticed(features: FeatureSet) -> None:
    path = f"{features.folder}/tokens.zarr/layer_1/patches/c/1/0/0"
    features.receipts  # noqa: B018, as it stood before
    features.root.put(path, [features.root.read(path)[:-1]])
    with pytest.raises(CorruptError, match=r"has \d+ bytes, and bytes .* of it are needed: it was cut off"):
        features.read(1, "patches", [70])
    features.root.remove(path)
    with pytest.raises(CorruptError, match=r"is missing, though its receipt says it is there"):
        features.read(1, "patches", [71])


def test_a_large_object_is_read_in_pieces(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.remote_objects.PIECE_BYTES", 1000)
    root = open_root(s3_url)
    content = bytes(range(256)) * 20
    root.put("a", [content])
    assert root.read("a") == content
    for most in (0, 1, 999, 1000, 1001, 5119, 5120, 9999):
        assert root.read("a", max_bytes=most) == content[:most]
    assert list(root.read_ranges("a", [(3, 5), (0, 1), (4000, 5120)])) == [content[3:5], content[:1], content[4000:]]


# --- errors and secrets -----------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_said(s3_url: str) -> None:
    for act in (create_store, open_store):
        with pytest.raises(StorageError, match=r"there is no bucket 'vitrine-none' for s3://vitrine-none/x; make it"):
            act("s3://vitrine-none/x")


def test_a_missing_store_is_said(s3_url: str) -> None:
    with pytest.raises(StoreError, match=r"no store at s3://.*: it has no vitrine.json\. `vitrine extract"):
        open_store(s3_url)


def test_no_network_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_RETRY_S", "0.2")
    with (
        using_endpoint("http://127.0.0.1:9"),
        pytest.raises(StorageError, match=r"s3://bucket/x cannot be reached \(EndpointConnectionError, \d+ attempts"),
    ):
        open_store("s3://bucket/x")


def test_a_patience_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRINE_RETRY_S", "soon")
    with pytest.raises(StoreError, match="VITRINE_RETRY_S is 'soon'; give seconds, such as 120, or unset it"):
        open_root("memory://x")


@pytest.mark.parametrize(
    "url",
    ["s3://key:CANARY@bucket/x", "s3://bucket/x?token=CANARY", "s3://bucket/x#CANARY", "s3a://CANARY@bucket/x"],
)
def test_secrets_in_an_s3_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StoreError, match="credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        open_root(url)
    assert "CANARY" not in str(caught.value)


def test_an_s3_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(StoreError, match="'s3://' names no bucket; write s3://BUCKET/PATH"):
        open_root("s3://")
