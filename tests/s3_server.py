"""A local S3 server over real HTTP, and what a client in this process needs to find it."""

import contextlib
import logging
import uuid
from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

ACCESS_KEY = "AKIAVITRINECANARY00"
SECRET_KEY = "canary-secret-8b1d5e77"
# What the clients that fsspec keeps were made for; making one takes a second.
_clients_of: list[str] = []


@contextlib.contextmanager
def running_s3_server() -> Iterator[str]:
    """The endpoint of a server on loopback."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request would bury a failure
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def using_endpoint(endpoint: str, *, key: str = ACCESS_KEY, secret: str = SECRET_KEY) -> Iterator[None]:
    """s3fs finds the endpoint and the credentials in the environment; what it kept of another is dropped."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        if _clients_of != [endpoint, key, secret]:
            forget_clients()
            _clients_of[:] = [endpoint, key, secret]
        yield


def forget_clients() -> None:
    """Drop fsspec's clients, which keep the endpoint that they were made with."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def make_bucket() -> str:
    """A new bucket; gives its name."""
    name = f"vitrine-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return name
