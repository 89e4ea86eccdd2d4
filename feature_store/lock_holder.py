"""Who has a store of this machine alone, for those who wait: a small file beside the lock, as long as it is held."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

# At the root of a store. No object of it: neither listed nor checked, and nothing depends on it.
HOLDER_FILE = ".alone.json"
_WORDS = ("command", "host", "pid", "since")
_MAX_BYTES, _MAX_CHARACTERS = 4096, 200
# Whoever is alone for less is not worth a word, and has said who it is by then.
_QUIET_S = 0.3
_POLL_S = 0.1
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def naming_holder(folder: Path, command: str) -> Iterator[None]:
    """Say who has the store in `folder` alone while the block runs."""
    place = folder / HOLDER_FILE
    new = place.with_name(f"{HOLDER_FILE}.{uuid.uuid4().hex}.partial")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    # Where nothing can be written, those who wait are told less.
    with contextlib.suppress(OSError):
        new.write_text(json.dumps(holder))
        new.replace(place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)


def share_or_wait(descriptor: int, folder: Path) -> None:
    """Lock an open file together with others who share it; while somebody has it alone, say for whom this waits.

    Polls, so that a signal ends the wait whatever its handler does. Without locks nobody is held off.
    """
    start, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told and time.monotonic() - start > _QUIET_S:
                told = True
                _log.warning(
                    "vitrine: waiting for %s, which has %s alone; Ctrl-C ends the wait", _holder(folder), folder
                )
            time.sleep(_POLL_S)
        except OSError:
            return
        else:
            return


def _holder(folder: Path) -> str:
    """Who has the store alone, in words; the file may be anybody's, so little of it is believed."""
    try:
        with (folder / HOLDER_FILE).open("rb") as file:
            said = json.loads(file.read(_MAX_BYTES))
        command, host, pid, since = (
            "".join(filter(str.isprintable, str(said[word])))[:_MAX_CHARACTERS] for word in _WORDS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return f"`{command}` (process {pid} on {host}, since {since})"
