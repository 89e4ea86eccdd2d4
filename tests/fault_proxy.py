"""An HTTP proxy in front of a local S3 server that fails as networks and services do."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = (
    "500",
    "503",
    "503 retry-after",
    "reset before the answer",
    "reset in the headers",
    "reset in the body",
    "reset after the body",
    "truncated body",
    "stall",
    "applied, answer lost",
)
# Beside these, a plan may name any answer: "403 AccessDenied".
STALL_S = 0.8
_SKIPPED_HEADERS = {"connection", "transfer-encoding", "keep-alive", "date", "server"}
# Decides what befalls a request: its method, its path, and how many requests came before.
Plan = Callable[[str, str, int], str | None]


def no_faults(method: str, path: str, number: int) -> str | None:
    return None


def random_faults(share: float, seed: int, most_in_a_row: int = 4) -> Plan:
    """A share of the requests fails, each in a way drawn by chance; never the same request too often in a row."""
    chance = random.Random(seed)
    rows: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    def plan(method: str, path: str, number: int) -> str | None:
        with lock:
            fault = chance.choice(FAULTS) if chance.random() < share else None
            key = (method, path)
            rows[key] = rows[key] + 1 if fault and rows[key] < most_in_a_row else 0
            return fault if rows[key] else None

    return plan


class FaultProxy:
    """Passes requests on to `target`, unless the plan names a fault.

    Attributes:
        plan: may be changed while it runs.
        faults: how often each fault was made.
        requests: (method, path with query) of every request that came.
        bytes_out: octets of the bodies that were passed back.
        forgotten_headers: lower-case names of request headers that the server never sees.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.plan: Plan = no_faults
        self.faults: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.bytes_out = 0
        self.forgotten_headers: set[str] = set()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def next_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            fault = self.plan(method, path, len(self.requests))
            self.requests.append((method, path))
            if fault:
                self.faults[fault] += 1
        return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that are cut are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.next_fault(self.command, self.path)
        if fault == "reset before the answer":
            self._reset()
        elif fault == "stall":
            time.sleep(STALL_S)
            self._reset()
        elif fault and fault[:3].isdigit():
            self._fail(fault)
        else:
            self._pass_on(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815, the names that http.server asks for

    def _fail(self, fault: str) -> None:
        code = {"500": "InternalError", "503": "SlowDown", "503 retry-after": "SlowDown"}.get(fault, fault[4:])
        body = f"<Error><Code>{code}</Code><Message>try again</Message></Error>".encode()
        headers = [("Content-Type", "application/xml")]
        if fault.endswith("retry-after"):
            headers.append(("Retry-After", "1"))
        self._answer(int(fault[:3]), headers, b"" if self.command == "HEAD" else body, len(body))

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        target = self.server.proxy.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=30)
        try:
            left_out = {"connection", "expect", *self.server.proxy.forgotten_headers}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault == "applied, answer lost":
            self._reset()
            return
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _SKIPPED_HEADERS]
        length = next((int(value) for name, value in kept if name.lower() == "content-length"), len(data))
        kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
        with self.server.proxy.lock:
            self.server.proxy.bytes_out += len(data)
        if fault is None:
            self._answer(answer.status, kept, data, length)
        else:
            self._cut(answer.status, kept, data, length, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        self._begin(status, headers, length)
        self.wfile.write(data)

    def _begin(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _cut(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int, fault: str) -> None:
        if fault == "reset in the headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-")
            self._reset()
            return
        self._begin(status, headers, length)
        self.wfile.write(data if fault == "reset after the body" else data[: len(data) // 2])
        self.wfile.flush()
        if fault == "truncated body":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._reset()

    def _reset(self) -> None:
        """End the connection so that the other side sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
