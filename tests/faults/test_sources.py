"""The images change while they are extracted: one vanishes, one has other bytes, one more appears."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Lab, Row, check, times

NewRow = Callable[[str], Row]
_KINDS = {"remove": "an image vanishes", "replace": "an image's bytes change", "add": "the folder grows"}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", _KINDS)
def test_a_source_that_changes_midway_gives_no_wrong_row(lab: Lab, new_row: NewRow, kind: str) -> None:
    """Changed for good, the same command makes the feature set of what is there now; put back, it finishes the old."""
    row = new_row(f"the source changes midway: {_KINDS[kind]}")
    chance = random.Random(kind)
    source, spare = lab.folder / f"source-{kind}" / "photos", lab.folder / f"spare-{kind}.png"
    _make_class_folders(lab, source)
    target = source / "b" / ("999.png" if kind == "add" else "031.png")
    before, after = lab.new_store(), lab.new_store()
    command = _command(lab, before, source)
    assert lab.server.ask(command)["code"] == 3
    shutil.copyfile(source / "a" / "002.png", spare)
    original = target.read_bytes() if target.exists() else None
    change = {"kind": kind, "path": str(target), "by": str(spare)}
    _change(change)
    assert lab.server.ask(_command(lab, after, source))["code"] == 3
    for trial in range(times(17, 2)):
        _put_back(target, original)
        store = lab.new_store()
        job = _command(lab, store, source)
        # Calls on the store come when the manifest has been made, and before, between and after the shards.
        at = chance.randrange(300)
        answer = lab.server.ask({**job, "fault": {"kind": "pause", "at": at}, "change": change})
        assert answer["hit"], answer
        what = f"{kind} at call {at}, trial {trial}"
        lab.note_seen(row, answer, what)
        if trial % 2:
            _put_back(target, original)
        again = lab.server.ask(_command(lab, store, source))
        lab.compare(row, store, what, again, undisturbed=before if trial % 2 else after, among_others=True)
        row.tried += 1
        lab.remove(store)
    for folder in (before, after, source.parent):
        lab.remove(folder)
    check(row)


def _make_class_folders(lab: Lab, folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for path in sorted(lab.source.glob("t*/*.png")):
        if "annot" not in path.parent.name:
            shutil.copyfile(path, folder / ("a" if int(path.stem) % 2 else "b") / path.name)
    shutil.copyfile(lab.source / "train" / "002.png", folder / "a" / "002.png")
    shutil.copyfile(lab.source / "train" / "031.png", folder / "b" / "031.png")


def _command(lab: Lab, store: Path, source: Path) -> dict[str, object]:
    job = lab.job(store)
    # In the order of a fresh dataset: where the disturbed run had ended first, the next one would grow out of it.
    return {**job, "arguments": [*job["arguments"][:1], f"images:{source}", *job["arguments"][2:], "--order", "uri"]}


def _change(change: dict[str, str]) -> None:
    if change["kind"] == "remove":
        Path(change["path"]).unlink()
    else:
        shutil.copyfile(change["by"], change["path"])


def _put_back(target: Path, original: bytes | None) -> None:
    if original is None:
        target.unlink(missing_ok=True)
    else:
        target.write_bytes(original)
