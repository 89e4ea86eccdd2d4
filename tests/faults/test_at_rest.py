"""A store that was sound, and is damaged where it stands: `verify --deep` finds every single damage."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feature_store.roots import open_root
from feature_store.upkeep import verify_store
from tests.faults.harness import Lab, Row, check, times

NewRow = Callable[[str], Row]
_FOREIGN = ("notes.txt", "c/9", "zarr.json", "000099.json", "0", ".hidden", "copy of 0", "x.partial.bak", "001.parquet")


class Damage:
    """A store that is damaged and made good again, one trial after another.

    Args:
        store: a sound one, with two feature sets of equal shapes.
        chance: decides what is damaged, and where.
    """

    def __init__(self, store: Path, chance: random.Random) -> None:
        self.store, self.chance = store, chance
        self.files = sorted(path for path in store.rglob("*") if path.is_file())
        self.data = [path for path in self.files if "/c/" in path.as_posix()]
        self.records = [path for path in self.files if path not in self.data]
        self.receipts = [path for path in self.files if path.parent.name == "receipts"]
        self.tokens = [path for path in self.data if "tokens.zarr" in path.as_posix()]
        self._before: dict[Path, bytes | None] = {}

    def make_good(self) -> None:
        """Put everything back."""
        for path, content in self._before.items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        self._before.clear()

    def _write(self, path: Path, content: bytes | None) -> None:
        self._before.setdefault(path, path.read_bytes() if path.exists() else None)
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _flip(self, path: Path) -> str:
        content = bytearray(path.read_bytes())
        bit = self.chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        self._write(path, bytes(content))
        return f"bit {bit} of {path}"

    def flip_in_record(self) -> str:
        """One bit of a file of metadata."""
        return self._flip(self.chance.choice(self.records))

    def flip_in_data(self) -> str:
        """One bit of a shard or of packed masks."""
        return self._flip(self.chance.choice(self.data))

    def truncate(self) -> str:
        """Any file, cut anywhere."""
        path = self.chance.choice(self.files)
        content = path.read_bytes()
        length = self.chance.randrange(len(content))
        self._write(path, content[:length])
        return f"{path} cut to {length} bytes"

    def lengthen(self) -> str:
        """Any file, with bytes after its end."""
        path = self.chance.choice(self.files)
        self._write(path, path.read_bytes() + self.chance.choice([b"\0", b"\n", b"x" * 40]))
        return f"{path} made longer"

    def swap(self) -> str:
        """Two files of one kind that take each other's place."""
        kind = self.chance.choice([self.tokens, self.receipts])
        one, other = self.chance.sample(kind, 2)
        first, second = one.read_bytes(), other.read_bytes()
        if first == second:
            return ""
        self._write(one, second)
        self._write(other, first)
        return f"{one} and {other} swapped"

    def take_from_another_identity(self) -> str:
        """A shard or receipt of one feature set in the place of the same of the other."""
        path = self.chance.choice(self.tokens + self.receipts)
        own = path.relative_to(self.store).parts[2]
        for folder in sorted(path.parents[len(path.relative_to(self.store).parts) - 3].iterdir()):
            other = folder.joinpath(*path.relative_to(self.store).parts[3:])
            twin = Path(str(other).replace("layer_1", "layer_2") if "layer_1" in str(path) else
                        str(other).replace("layer_2", "layer_1"))  # fmt: skip
            if folder.name != own and twin.exists() and twin.read_bytes() != path.read_bytes():
                self._write(path, twin.read_bytes())
                return f"{path} is {twin}"
        return ""

    def remove_shard(self) -> str:
        """A receipt without one of its objects."""
        path = self.chance.choice(self.tokens)
        self._write(path, None)
        return f"{path} removed"

    def remove_receipt(self) -> str:
        """Objects without their receipt."""
        path = self.chance.choice(self.receipts)
        self._write(path, None)
        return f"{path} removed"

    def remove_record(self) -> str:
        """Any other file of metadata that nothing may lack."""
        path = self.chance.choice([path for path in self.records if path not in self.receipts and _needed(path)])
        self._write(path, None)
        return f"{path} removed"

    def add(self) -> str:
        """A file that does not belong."""
        folder = self.chance.choice([path.parent for path in self.files])
        path = folder / self.chance.choice(_FOREIGN)
        if path.exists() or path.parent.is_file():
            return ""
        self._write(path, os.urandom(self.chance.randrange(200)))
        return f"{path} added"


def _needed(path: Path) -> bool:
    """Whether the store is not whole without it: runs, answers and the index of receipts are not needed by anything."""
    return not {"runs", "results", "selections", "receipts.json"} & set(path.parts)


_KINDS = {
    "a bit of any metadata file": ("flip_in_record", 2200, 20),
    "a bit of a shard or of masks": ("flip_in_data", 1000, 8),
    "any file truncated": ("truncate", 600, 6),
    "any file lengthened": ("lengthen", 200, 3),
    "shards or receipts swapped": ("swap", 200, 3),
    "a shard or receipt of another identity": ("take_from_another_identity", 200, 3),
    "a receipt without its shard": ("remove_shard", 200, 3),
    "a shard without its receipt": ("remove_receipt", 100, 3),
    "a metadata file removed": ("remove_record", 100, 3),
    "a file that does not belong": ("add", 300, 4),
}


@pytest.fixture(scope="module")
def sound(lab: Lab) -> Iterator[Path]:
    """A store with two feature sets of equal shapes, an answer and a selection."""
    store = lab.new_store()
    shutil.copytree(lab.undisturbed, store)
    assert lab.run(store, "--layers", "1")["code"] == 3
    name = next(path.name for path in store.glob("features/*/*") if (path / "tokens.zarr/layer_2").exists())
    for question in (["variance"], ["prune", "--drop-top-variance", "4", "--name", "less"]):
        words = [question[0], str(store), "--features", name, *question[1:]]
        answer = lab.server.ask({**lab.job(store), "arguments": words})
        assert answer["code"] == 0, answer
    yield store
    shutil.rmtree(store)


@pytest.mark.parametrize("what", _KINDS)
def test_verify_finds_every_damage(lab: Lab, new_row: NewRow, sound: Path, what: str) -> None:
    method, full, sample = _KINDS[what]
    row = new_row(f"at rest: {what}")
    root = open_root(str(sound))
    before = verify_store(root, deep=True)
    assert (before.problems, before.notes) == ((), ())
    damage = Damage(sound, random.Random(what))
    while row.tried < times(full, sample):
        done = getattr(damage, method)()
        if not done:
            continue
        row.tried += 1
        report = verify_store(root, deep=True)
        # A shard without a receipt is what an interrupted run leaves: said, and no damage.
        found = report.problems or (method == "remove_receipt" and report.notes)
        if found:
            row.saw[f"{found[0].kind}" if hasattr(found[0], "kind") else "found"] += 1
        else:
            row.wrong.append(f"{done}: not found")
        damage.make_good()
    after = verify_store(root, deep=True)
    assert (after.problems, after.notes) == ((), ())
    check(row)
