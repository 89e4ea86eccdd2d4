"""A command that waits for another process says for whom and since when, and Ctrl-C ends the wait."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feature_store import create_store
from feature_store.layout import STORE_FILE
from feature_store.lock_holder import HOLDER_FILE
from feature_store.roots import open_root
from feature_store.upkeep import collect_garbage, verify_store, without_writers
from tests.feature_store.samples import files_of


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store in which nobody is at work."""
    create_store(str(tmp_path / "store"))
    return tmp_path / "store"


def test_extract_says_for_whom_it_waits_and_ctrl_c_ends_it(store: Path, tiny_images: Path) -> None:
    command = ["extract", f"segmentation:{tiny_images}", "--model", "null", "--store", str(store)]
    with without_writers(open_root(str(store)), "repair"):
        before = files_of(store)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "vitrine", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        out, rest = waiting.communicate(timeout=60)
        assert files_of(store) == before
    holder = f"`vitrine repair` (process {os.getpid()} on {socket.gethostname()}, since "
    assert line.startswith(f"vitrine: waiting for {holder}")
    assert line.endswith(f"), which has {store} alone; Ctrl-C ends the wait\n")
    since = datetime.fromisoformat(line.removeprefix(f"vitrine: waiting for {holder}").partition(")")[0])
    assert timedelta(0) <= datetime.now(UTC) - since < timedelta(minutes=2)
    assert (waiting.returncode, out) == (130, "")
    assert "Traceback" not in rest


def test_the_file_that_names_the_holder_is_no_part_of_the_store(store: Path) -> None:
    before = files_of(store)
    with without_writers(open_root(str(store)), "remove"):
        said = json.loads((store / HOLDER_FILE).read_text())
        assert (said["command"], said["pid"]) == ("vitrine rm", os.getpid())
        root = open_root(str(store))
        assert [path for path, _ in root.walk("")] == root.list("") == [STORE_FILE]
        assert verify_store(root).sound
    assert files_of(store) == before
    collect_garbage(open_root(str(store)), remove=True)
    assert files_of(store) == before


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"command": "rm"}', b'{"command": "\\u001b[31m" }'])
def test_what_a_stranger_left_in_place_of_the_holder_is_passed_over(
    store: Path, left: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (store / HOLDER_FILE).write_bytes(left)
    holder = os.open(store / STORE_FILE, os.O_RDONLY)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        fcntl.flock(holder, fcntl.LOCK_EX)
        os.write(write, b".")
        time.sleep(0.6)
        os._exit(0)
    os.read(read, 1)
    os.close(holder)
    create_store(str(store))
    os.waitpid(child, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"vitrine: waiting for another process, which has {store} alone; Ctrl-C ends the wait"
    ]
