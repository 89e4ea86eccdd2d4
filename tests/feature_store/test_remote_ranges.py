"""remote_ranges: a server that passes over `Range` costs no more memory than was asked for, and is named."""

import functools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from feature_store import StoreError, open_store
from feature_store.objects import ObjectRoot
from feature_store.roots import open_root
from tests.feature_store.samples import all_tokens, fill_store

_OBJECT_BYTES = 512 << 20
_ASKED_BYTES = 1000
# What the kernel's buffers between server and client may hold.
_ON_THE_WAY_BYTES = 32 << 20


class _WholeObjects(BaseHTTPRequestHandler):
    """Answers every GET with half a gigabyte, whatever part is asked for, and counts what the client takes of it."""

    protocol_version = "HTTP/1.1"
    sent_bytes = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(_OBJECT_BYTES))
        self.end_headers()
        piece = bytes(range(256)) * (1 << 12)
        try:
            for _ in range(_OBJECT_BYTES // len(piece)):
                self.wfile.write(piece)
                type(self).sent_bytes += len(piece)
        except OSError:
            self.close_connection = True  # the client has read enough

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


class _Folder(SimpleHTTPRequestHandler):
    """A folder as `python -m http.server` shows it, which passes over `Range`."""

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def served(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=["http", "s3"])
def root(request: pytest.FixtureRequest, serve: Any) -> Iterator[ObjectRoot]:
    """A place behind a server that sends whole objects."""
    _WholeObjects.sent_bytes = 0
    url = serve(_WholeObjects)
    if request.param == "http":
        yield open_root(f"{url}/store")
        return
    pytest.importorskip("s3fs")
    from tests.s3_server import using_endpoint

    with using_endpoint(url):
        yield open_root("s3://whole-objects/store")


def test_no_more_is_read_than_was_asked_for(root: ObjectRoot) -> None:
    start = root.read("object", max_bytes=_ASKED_BYTES)
    assert start == (bytes(range(256)) * 4)[:_ASKED_BYTES]
    assert root.read_range("object", 0, _ASKED_BYTES) == start
    assert _WholeObjects.sent_bytes < _ON_THE_WAY_BYTES


def test_a_part_from_the_middle_is_refused_in_one_line_and_unread(root: ObjectRoot) -> None:
    with pytest.raises(StoreError, match="passes over the header `Range`") as refused:
        root.read_range("object", 500, 500 + _ASKED_BYTES)
    assert "\n" not in str(refused.value)
    assert _WholeObjects.sent_bytes < _ON_THE_WAY_BYTES


def test_a_small_store_is_read_from_a_plain_server_of_files(tmp_path: Path, serve: Any) -> None:
    fill_store(str(tmp_path / "store"), n_rows=45)
    features = open_store(f"{serve(functools.partial(_Folder, directory=tmp_path))}/store").features()
    assert features.complete
    np.testing.assert_array_equal(features.read(1, "cls"), all_tokens(features.spec, 1, "cls"))
