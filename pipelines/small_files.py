"""Small JSON files through which the processes of a run tell one another how far they are.

Any of the processes may be killed at any instant. So a file is replaced as a whole, under a name that no other writer
uses meanwhile, and a reader takes one that cannot be read for one that is not there.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any


def replace_json(place: Path, value: dict[str, Any]) -> None:
    """Write a file whole, over any other of its name.

    Raises:
        OSError: the disk does not take it; what stood there stays.
    """
    new = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.new")
    new.write_text(json.dumps(value))
    new.replace(place)


def append_json(place: Path, value: dict[str, Any]) -> None:
    """Add a record to a file of records, with one write.

    Raises:
        OSError: the disk does not take it.
    """
    # The line break comes first: it ends a record that a killed writer left half.
    record = f"\n{json.dumps(value)}".encode()
    descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, record)
    finally:
        os.close(descriptor)


def read_json(place: Path) -> dict[str, Any] | None:
    """What a file says; None where there is none, or it cannot be read."""
    try:
        return _object(place.read_bytes())
    except OSError:
        return None


def read_records(place: Path) -> list[dict[str, Any]]:
    """The records of a file that `append_json` wrote, without one that its writer was killed in."""
    try:
        lines = place.read_bytes().splitlines()
    except OSError:
        return []
    return [record for record in map(_object, lines) if record is not None]


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
