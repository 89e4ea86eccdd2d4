"""No host is called that nobody named, and no secret of a URL is said or written."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import StoreError, open_store
from feature_store.objects import redact
from pipelines.datasets.dataset import DatasetOptions
from pipelines.datasets.manifest_file import open_manifest_file
from tests.feature_store.samples import fill_store
from tests.hostile.watching import watching

_ROOT = Path(__file__).resolve().parents[2]
_SECRET = "hunter2"


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine, and who called it."""
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, address = server.accept()
                    connection.close()
                    calls.append(str(address))

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], calls
        stop.set()
        thread.join()


def _urls(port: int) -> list[str]:
    host = f"127.0.0.1:{port}/x.png"
    return [
        *(
            f"{scheme}://{host}"
            for scheme in ("http", "https", "ftp", "s3", "gs", "hf", "git", "smb", "webdav", "reference")
        ),
        *(f"//{host}", f"http:/{host}", f"HTTP://{host}", f"filecache::http://{host}", f"zip://x::http://{host}"),
        *(f"\\\\127.0.0.1@{port}\\x", f"file://127.0.0.1:{port}/x", f"http://127.0.0.1:{port}", f"url=http://{host}"),
    ]


def test_a_url_in_a_manifest_calls_nobody(tmp_path: Path, listener: tuple[int, list[str]]) -> None:
    port, calls = listener
    for number, url in enumerate(_urls(port)):
        for column in ("uri", "mask_uri"):
            row = {"uri": "a.png", "image_sha256": f"{number:064x}", "split": "train", column: url}
            path = tmp_path / f"{number}-{column}.parquet"
            pq.write_table(pa.Table.from_pylist([row]), path)
            with watching() as watched:
                try:
                    dataset = open_manifest_file(path, DatasetOptions())
                    list(dataset.iter_masks())
                except StoreError:
                    pass
            assert watched.called == [], (url, column)
            assert watched.outside(tmp_path) == [], (url, column)
    assert calls == []


def test_a_url_in_a_record_calls_nobody(tmp_path: Path, listener: tuple[int, list[str]]) -> None:
    port, calls = listener
    fill_store(str(tmp_path / "store"))
    url = f"http://127.0.0.1:{port}/x"
    for path in (tmp_path / "store").rglob("zarr.json"):
        record = json.loads(path.read_bytes())
        path.write_text(json.dumps({**record, "attributes": {"_nc": url, "url": url, "multiscales": [{"path": url}]}}))
    with watching() as watched:
        opened = open_store(str(tmp_path / "store")).features()
        assert opened.read().any()
        assert len(list(opened.masks.iter_masks([0, 1]))) == 2
        for name in _urls(port):
            with pytest.raises(StoreError):
                open_store(str(tmp_path / "store")).features(name)
    assert watched.called == []
    assert watched.outside(tmp_path / "store") == []
    assert calls == []


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("ls", f"s3://key:{_SECRET}@bucket/store"),
        ("knn", f"s3://bucket/store?secret={_SECRET}"),
        ("verify", f"sftp://user:{_SECRET}@127.0.0.1:1/store"),
        ("ls", f"https://user:{_SECRET}@127.0.0.1:1/store?sig={_SECRET}"),
        ("verify", f"nonsense://user:{_SECRET}@host/store"),
        ("variance", f"memory://user:{_SECRET}@host/store?token={_SECRET}"),
        ("results", f"abfs://container@account/store?sig={_SECRET}"),
    ],
)
def test_a_command_never_says_a_secret(url: str, command: str) -> None:
    program = "import sys; from vitrine.__main__ import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, command, url],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert _SECRET not in done.stdout + done.stderr


def test_a_password_with_an_at_sign_is_taken_out_whole() -> None:
    assert redact("sftp://user:hun@ter2@host/a@b?x=1#y") == "sftp://host/a@b"


def test_nothing_in_a_store_holds_the_secrets_of_its_url() -> None:
    url = f"memory://user:{_SECRET}@host/store?token={_SECRET}"
    try:
        found = fill_store(url)
        assert found.root.url == redact(url)
        for path, _ in found.root.walk(""):
            assert _SECRET not in path
            assert _SECRET.encode() not in found.root.read(path), path
        with pytest.raises(StoreError) as caught:
            found.root.read("nothing")
        assert _SECRET not in str(caught.value) + repr(caught.value)
        assert _SECRET not in repr(found) + repr(found.root) + repr(open_store(url))
    finally:
        memory = fsspec.filesystem("memory")
        for name in list(memory.store):
            if _SECRET in name:
                memory.rm(name)
