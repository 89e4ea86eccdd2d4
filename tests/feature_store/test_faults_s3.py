"""Object stores that fail: every fault is retried, nothing is lost, the objects are those of an undisturbed store."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

import fsspec

from feature_store import create_feature_set, create_store, open_store
from feature_store.errors import StorageError
from feature_store.remote_calls import Caller, RetryPolicy
from feature_store.remote_objects import RemoteRoot
from feature_store.roots import open_root, process_root
from tests.fault_proxy import FAULTS, FaultProxy, Plan, no_faults, random_faults
from tests.feature_store.samples import all_tokens, make_spec, register, write_missing
from tests.s3_server import make_bucket, using_endpoint

# Quick, or the test would mostly wait; what is waited for is the same.
_QUICK = RetryPolicy(first_delay_s=0.01, longest_delay_s=0.05, patience_s=20.0, unreached_s=0.3)
_N_ROWS, _INVALID = 45, (0, 8, 30)


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of the server, which the environment names, and clients that lose patience early."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.4, "connect_timeout": 2}})
    monkeypatch.setattr("feature_store.remote_calls.policy_from_environment", lambda: _QUICK)
    with FaultProxy(s3_endpoint).running() as running, using_endpoint(running.url):
        yield running


def _contents(url: str) -> dict[str, bytes]:
    root = open_root(url)
    return {path: root.read(path) for path, _ in root.walk("")}


def _write(url: str) -> None:
    root = create_store(url)
    dataset = register(root, _N_ROWS)
    spec = make_spec(n_rows=_N_ROWS, layers=(1, 2), views=dataset.views_digest)
    write_missing(root, create_feature_set(root, dataset.spec.name, spec), spec, _INVALID)


def _read_all(url: str) -> None:
    features = open_store(url).features()
    valid = np.setdiff1d(np.arange(_N_ROWS), _INVALID)
    for layer, kind in ((1, "patches"), (2, "cls")):
        expected = all_tokens(features.spec, layer, kind, _INVALID)  # type: ignore[arg-type]
        np.testing.assert_array_equal(features.read(layer, kind), expected)  # type: ignore[arg-type]
        rows, blocks = zip(*features.iter_blocks(layer, kind, block_bytes=64), strict=True)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate(rows), valid)
        np.testing.assert_array_equal(np.concatenate(blocks), expected[valid])


def test_two_hundred_faults_lose_nothing(proxy: FaultProxy) -> None:
    calm, stormy = (f"s3://{make_bucket()}/store" for _ in range(2))
    _write(calm)
    expected = _contents(calm)
    chance = itertools.count(1)
    written = 0
    while proxy.faults.total() < 200 or set(FAULTS) - set(proxy.faults):
        proxy.plan = random_faults(0.4, seed=next(chance))
        url = f"{stormy}-{written}"
        _write(url)
        _read_all(url)
        proxy.plan = no_faults
        assert _contents(url) == expected
        written += 1
    assert set(proxy.faults) == set(FAULTS)


_WITHOUT_A_BODY = [fault for fault in FAULTS if "body" not in fault]
_FEW = ["500", "reset before the answer", "applied, answer lost"]


@pytest.mark.parametrize(
    ("method", "fault"),
    [("GET", fault) for fault in FAULTS]
    + [("PUT", fault) for fault in _WITHOUT_A_BODY]
    + [(method, fault) for method in ("HEAD", "DELETE") for fault in _FEW],
)
def test_each_fault_of_each_request_is_survived_twice_in_a_row(proxy: FaultProxy, method: str, fault: str) -> None:
    root = open_root(f"s3://{make_bucket()}/place")
    root.put("a/b", [b"12345"])
    left = itertools.count(2, -1)
    proxy.plan = lambda verb, path, number: fault if verb == method and next(left) > 0 else None
    if method == "PUT":
        root.put("a/c", [b"67"])
        assert root.read("a/c") == b"67"
    elif method == "GET":
        assert root.read("a/b") == b"12345"
    elif method == "HEAD":
        assert root.size_bytes("a/b") == 5
    else:
        root.remove("a/b")
        assert not root.exists("a/b")
    assert proxy.faults.total() == 2


@pytest.mark.parametrize("fault", ["applied, answer lost", "reset before the answer", "503"])
def test_an_exclusive_creation_of_unknown_outcome_reads_and_compares(proxy: FaultProxy, fault: str) -> None:
    root = open_root(f"s3://{make_bucket()}/place")
    left = itertools.count(1, -1)
    proxy.plan = lambda verb, path, number: fault if verb == "PUT" and next(left) > 0 else None
    assert root.put_new("a", b"mine")
    assert proxy.faults.total() == 1
    assert not root.put_new("a", b"mine")
    assert root.read("a") == b"mine"


def test_an_exclusive_creation_that_another_won_meanwhile_says_so(proxy: FaultProxy) -> None:
    url = f"s3://{make_bucket()}/place"
    root, other = open_root(url), open_root(url)
    left = itertools.count(1, -1)

    def plan(verb: str, path: str, number: int) -> str | None:
        if verb != "PUT" or next(left) <= 0:
            return None
        other.put("a", [b"theirs"])
        return "reset before the answer"

    proxy.plan = plan
    proxy.lock = _NoLock()  # type: ignore[assignment]  # the plan itself makes a request
    assert not root.put_new("a", b"mine")
    assert root.read("a") == b"theirs"


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def test_a_multipart_upload_whose_completion_was_lost_is_put_again(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.remote_objects.PART_BYTES", 5 << 20)
    root = open_root(f"s3://{make_bucket()}/place")
    left = itertools.count(1, -1)
    proxy.plan = lambda verb, path, number: (
        "applied, answer lost" if verb == "POST" and "uploadId" in path and next(left) > 0 else None
    )
    content = bytes(11 << 20)
    root.put("large", [content])
    assert proxy.faults.total() == 1
    assert root.size_bytes("large") == len(content)
    assert root.read_range("large", len(content) - 3, len(content)) == bytes(3)


def test_what_never_gets_well_is_given_up_in_bounded_time_with_one_line(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = RetryPolicy(first_delay_s=0.01, longest_delay_s=0.05, patience_s=0.3, unreached_s=0.1)
    monkeypatch.setattr("feature_store.remote_calls.policy_from_environment", lambda: impatient)
    root = open_root(f"s3://{make_bucket()}/place")
    root.put("a", [b"1"])
    for fault, message in (
        ("503", r"keeps failing to read a \(503 SlowDown, \d+ attempts in \d+ s\); wait .*run the same command again"),
        ("reset before the answer", r"no longer answers \(\w+, \d+ attempts in \d+ s: read a\); mend the network"),
    ):
        proxy.plan = _always(fault)
        with pytest.raises(StorageError, match=message):
            root.read("a")
        assert 3 <= proxy.faults[fault] < 60


def _always(fault: str) -> Plan:
    return lambda verb, path, number: fault


def test_what_asks_for_patience_gets_it(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("feature_store.remote_calls.time.sleep", slept.append)
    monkeypatch.setattr("feature_store.remote_calls.policy_from_environment", RetryPolicy)
    root = open_root(f"s3://{make_bucket()}/place")
    left = itertools.count(3, -1)
    proxy.plan = lambda verb, path, number: "503 retry-after" if next(left) > 0 else None
    root.put("a", [b"1"])
    assert len(slept) == 3
    assert all(1 <= pause <= 1.001 for pause in slept)


def test_a_store_that_has_answered_this_process_is_waited_for_by_every_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard may open a root of its own; none of them takes a service that is away for a wrong address."""
    policy = RetryPolicy(first_delay_s=0.01, longest_delay_s=0.01, patience_s=0.5, unreached_s=0.0)
    monkeypatch.setattr("feature_store.remote_calls.policy_from_environment", lambda: policy)

    def refused() -> None:
        raise ConnectionRefusedError

    with pytest.raises(StorageError, match=r"s3://away cannot be reached \(ConnectionRefusedError, 3 attempts in 0 s"):
        Caller("s3://away").call("read a", refused)
    assert Caller("s3://away").call("read a", lambda: 1) == 1
    with pytest.raises(StorageError, match=r"s3://away no longer answers .*, \d\d+ attempts in"):
        Caller("s3://away").call("read a", refused)


def test_a_worker_has_one_root_for_all_of_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_root("memory://workers/store") is process_root("memory://workers/store")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert process_root("store").url == str(tmp_path / folder / "store")


def test_delays_grow_are_jittered_and_end() -> None:
    policy = RetryPolicy(first_delay_s=0.0, longest_delay_s=0.0, patience_s=0.0, least_attempts=5)
    calls = itertools.count(1)

    def failing() -> None:
        raise ConnectionError(next(calls))

    with pytest.raises(StorageError, match=r"s3://nowhere cannot be reached \(ConnectionError, 5 attempts in 0 s\)"):
        Caller("s3://nowhere", policy).call("read a", failing)
    assert next(calls) == 6


def test_a_mistake_of_ours_is_not_taken_for_the_storages() -> None:
    with pytest.raises(ZeroDivisionError):
        Caller("s3://b", _QUICK).call("read a", lambda: 1 // 0)


def test_clients_retries_are_off() -> None:
    with using_endpoint("http://127.0.0.1:9"):
        root = open_root("s3://bucket/place")
        assert isinstance(root, RemoteRoot)
        client = root._filesystem
        assert client.retries == 1
        assert client.config_kwargs["retries"] == {"total_max_attempts": 1}
