"""intact: a checksum is taken again exactly when the file may be another."""

import os
from pathlib import Path

import pytest

from feature_store import intact
from feature_store.objects import crc32c


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "object"
    found.write_bytes(b"frozen")
    return found


def _old(place: Path) -> None:
    os.utime(place, (1_000_000, 1_000_000))


def test_a_file_has_its_own_checksum_and_no_other(place: Path) -> None:
    assert intact.has_checksum(place, crc32c([b"frozen"]))
    assert not intact.has_checksum(place, crc32c([b"thawed"]))
    place.write_bytes(b"")
    assert intact.has_checksum(place, 0)
    with pytest.raises(FileNotFoundError):
        intact.has_checksum(place.with_name("gone"), 0)


def test_a_file_written_just_now_is_checked_each_time(place: Path) -> None:
    assert intact.has_checksum(place, crc32c([b"frozen"]))
    place.write_bytes(b"thawed")
    assert not intact.has_checksum(place, crc32c([b"frozen"]))


def test_a_settled_file_is_read_once_until_it_changes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intact, "_SETTLED_S", -1)
    read = []

    def checksum(path: Path) -> int:
        read.append(path)
        return crc32c([path.read_bytes()])

    monkeypatch.setattr(intact, "file_crc32c", checksum)
    _old(place)
    for _ in range(3):
        assert intact.has_checksum(place, crc32c([b"frozen"]))
    assert len(read) == 1
    place.write_bytes(b"thawed")
    assert not intact.has_checksum(place, crc32c([b"frozen"]))
    other = place.with_name("other")
    other.write_bytes(b"frozen")
    other.replace(place)
    assert intact.has_checksum(place, crc32c([b"frozen"]))
    assert len(read) == 3


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intact, "_SETTLED_S", -1)
    monkeypatch.setattr(intact, "_MOST_REMEMBERED", 4)
    monkeypatch.setattr(intact, "_found", {})
    for number in range(10):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]))
        assert intact.has_checksum(path, crc32c([bytes([number])]))
        assert len(intact._found) <= 4
