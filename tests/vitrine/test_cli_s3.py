"""The command line on an object store: everything works, no secret comes out, and errors are one clear line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

import fsspec

from feature_store import open_store
from feature_store.roots import open_root
from tests.fault_proxy import FaultProxy, random_faults
from tests.feature_store.samples import files_of
from tests.s3_server import ACCESS_KEY, SECRET_KEY, make_bucket, using_endpoint
from tests.vitrine.conftest import Ran, Run

_QUICK = {"config_kwargs": {"read_timeout": 2, "connect_timeout": 2}}


def _holds_no_secret(*texts: str) -> None:
    for text in texts:
        assert ACCESS_KEY not in text
        assert SECRET_KEY not in text


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setenv("VITRINE_RETRY_S", "10")
    monkeypatch.setitem(fsspec.config.conf, "s3", _QUICK)
    with FaultProxy(s3_endpoint).running() as running, using_endpoint(running.url):
        yield running


def _extract(vitrine: Run, images: Path, model: str, weights: Path, store: object) -> Ran:
    return vitrine(
        "extract", f"segmentation:{images}", "--model", model, "--weights", weights, "--store", store, "--json",
        "--rows-per-shard", 8, "--batch-size", 8,
    )  # fmt: skip


def test_a_store_behind_faults_equals_one_on_disk_and_answers_alike(
    proxy: FaultProxy, vitrine: Run, tiny_images: Path, tiny_model: str, tiny_weights: Path, tmp_path: Path
) -> None:
    url = f"s3://{make_bucket()}/a/store"
    proxy.plan = random_faults(0.1, seed=1)
    said = [_extract(vitrine, tiny_images, tiny_model, tiny_weights, url)]
    assert said[0].code == 0, said[0].err
    local = tmp_path / "store"
    assert _extract(vitrine, tiny_images, tiny_model, tiny_weights, local).code == 0
    # Resumed: one shard's receipt is lost.
    root = open_root(url)
    before = {path: root.read(path) for path, _ in root.walk("features")}
    lost = next(path for path in before if path.endswith("receipts/000001.json"))
    root.remove(lost)
    said.append(_extract(vitrine, tiny_images, tiny_model, tiny_weights, url))
    assert (said[1].json["committed"], said[1].json["already"]) == (1, 2)
    assert {path: root.read(path) for path, _ in root.walk("features")} == before
    assert {f"features/{name}": content for name, content in files_of(local / "features").items()} == before
    for command in (
        ("variance", "--json"),
        ("prune", "--drop-top-variance", 5, "--name", "no5", "--json"),
        ("knn", "--selection", "no5", "--k", "1", "--json"),
    ):
        there, here = (vitrine(command[0], place, *command[1:]) for place in (url, local))
        assert there.code == here.code == 0, there.err
        assert _numbers(there) == _numbers(here)
        said.append(there)
    said += [vitrine(command, url, "--json") for command in ("linear", "ls", "show", "results")]
    assert [ran.code for ran in said] == [0] * len(said)
    assert proxy.faults.total() > 10
    _holds_no_secret(*(ran.out + ran.err for ran in said))
    _holds_no_secret(*(root.read(path).decode("latin-1") for path, _ in root.walk("")))


def _numbers(ran: Ran) -> dict[str, object]:
    return {name: value for name, value in ran.json.items() if name not in {"seconds", "took", "features"}}


@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("GET", "403 InvalidAccessKeyId", "does not accept the credentials (InvalidAccessKeyId); correct AWS_ACCESS"),
        ("GET", "403 SignatureDoesNotMatch", "does not accept the credentials (SignatureDoesNotMatch); correct AWS_"),
        ("GET", "403 AccessDenied", "does not let these credentials read vitrine.json (AccessDenied); ask its owner"),
        ("GET", "400 Strange", "does not read vitrine.json (400 Strange); correct the URL"),
    ],
)
def test_a_refusal_is_one_line(
    proxy: FaultProxy, vitrine: Run, capfd: pytest.CaptureFixture[str], method: str, fault: str, message: str
) -> None:
    url = f"s3://{make_bucket()}/store"
    proxy.plan = lambda verb, path, number: fault if verb == method else None
    ran = vitrine("ls", url)
    assert ran.code == 1
    assert ran.err.startswith(f"vitrine: error: {url} ")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert ran.out == ""
    _holds_no_secret(ran.err)
    # A refusal is no reason to ask again.
    assert proxy.faults.total() == 1


def test_a_read_only_bucket_stops_an_extraction_with_one_line(
    proxy: FaultProxy, vitrine: Run, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    url = f"s3://{make_bucket()}/store"
    proxy.plan = lambda verb, path, number: "403 AccessDenied" if verb == "PUT" else None
    ran = _extract(vitrine, tiny_images, tiny_model, tiny_weights, url)
    reason = (
        f"{url} does not let these credentials write vitrine.json (AccessDenied); ask its owner for "
        "that right, or use credentials that have it."
    )
    assert (ran.code, ran.json) == (1, {"error": reason, "exit_code": 1})
    assert ran.err == f"vitrine: error: {reason}\n"


def test_a_bucket_that_becomes_read_only_midway_fails_the_rest_and_is_resumed(
    proxy: FaultProxy, vitrine: Run, tiny_images: Path, tiny_model: str, tiny_weights: Path
) -> None:
    url = f"s3://{make_bucket()}/store"
    proxy.plan = lambda verb, path, number: "403 AccessDenied" if verb == "PUT" and "receipts/000001" in path else None
    ran = _extract(vitrine, tiny_images, tiny_model, tiny_weights, url)
    assert ran.code == 3
    (first, *_) = ran.json["failures"]
    assert first["shard"] == 1
    assert "does not let these credentials write" in first["reason"]
    proxy.plan = random_faults(0.1, seed=2)
    assert _extract(vitrine, tiny_images, tiny_model, tiny_weights, url).code == 0
    assert open_store(url).features().complete


def test_no_network_and_no_credentials_are_one_line(
    vitrine: Run, monkeypatch: pytest.MonkeyPatch, s3_endpoint: str
) -> None:
    monkeypatch.setenv("VITRINE_RETRY_S", "0.1")
    with using_endpoint("http://127.0.0.1:9"):
        ran = vitrine("ls", "s3://bucket/store")
    assert ran.code == 1
    assert "s3://bucket/store cannot be reached (EndpointConnectionError" in ran.err
    assert "check network and AWS_ENDPOINT_URL, and run the same command again" in ran.err
    with using_endpoint(s3_endpoint, key="", secret=""):
        ran = vitrine("ls", "s3://bucket/store")
    assert ran.code == 1
    assert "wants credentials, and none were found; set AWS_ACCESS_KEY_ID" in ran.err
    with using_endpoint(s3_endpoint):
        ran = vitrine("ls", "s3://vitrine-nothing/store")
    assert ran.code == 1
    assert "there is no bucket 'vitrine-nothing'" in ran.err


def test_secrets_in_the_url_are_refused_and_not_repeated(vitrine: Run, tiny_images: Path) -> None:
    for store in (f"s3://{ACCESS_KEY}:{SECRET_KEY}@bucket/store", f"s3://bucket/store?key={SECRET_KEY}"):
        for command in (("ls", store), ("doctor", store), ("knn", store, "--json")):
            ran = vitrine(*command)
            assert ran.code == 1
            _holds_no_secret(ran.out, ran.err)
            assert "credentials come from AWS_ACCESS_KEY_ID" in ran.err


def test_the_doctor_finds_an_s3_store_sufficient_and_leaves_nothing(s3_url: str, vitrine: Run) -> None:
    ran = vitrine("doctor", s3_url, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["suffices"] is True
    kept = {probe["name"]: probe["kept"] for probe in ran.json["probes"]}
    assert kept == {
        "read after write": True,
        "list after write": True,
        "gone after removal": True,
        "ranged reads": True,
        "writing in parts": True,
        "exclusive creation": True,
        "write": None,
        "read": None,
        "latency": None,
    }
    assert list(open_root(s3_url).walk("")) == []
    _holds_no_secret(ran.out)


def test_the_doctor_sees_what_a_storage_ignores(
    proxy: FaultProxy, vitrine: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_store.probing._LARGE_BYTES", 1 << 20)
    url = f"s3://{make_bucket()}/store"
    proxy.forgotten_headers = {"if-none-match"}
    ran = vitrine("doctor", url)
    assert ran.code == 0
    assert "exclusive creation: two runs that start within one request could both make" in ran.out
    proxy.forgotten_headers = {"range"}
    ran = vitrine("doctor", url, "--json")
    assert ran.code == 1
    broken = {probe["name"]: probe["found"] for probe in ran.json["probes"] if probe["needed"] and not probe["kept"]}
    assert "sends whole objects where a part is asked for" in broken["ranged reads"]
