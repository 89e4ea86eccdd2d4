"""What a disk may hold after the power failed, computed from the traced calls of a run.

The rules are those of POSIX and no kinder: only fsync makes anything stay. Of a file, what was written since its last
fsync may be absent, empty, cut, zero or there. Of a folder, every name that changed since the folder's last fsync has,
each for itself, what it had then or anything that it had since: so a rename may be undone, or its two halves part.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.tracer import FileCall


@dataclass
class _File:
    content: bytes = b""
    synced: bytes | None = None


_FOLDER = "a folder"
_Entry = _File | str | None


@dataclass
class Disk:
    """A disk that saw some calls.

    Args:
        top: everything is under this folder, which stands and stays.
        deaf_to: a part of the paths of files whose fsync this disk ignores, to show that it matters.
    """

    top: str
    deaf_to: str | None = None
    _now: dict[str, _Entry] = field(default_factory=dict)
    _since: dict[str, list[_Entry]] = field(default_factory=dict)

    def see(self, call: FileCall) -> None:
        """Do what the call does; one that fails changes nothing."""
        path = call.paths[-1]
        if call.name == "fsync" and self.deaf_to and self.deaf_to in path and isinstance(self._now.get(path), _File):
            return
        if call.name == "open" and call.creates and self._now.get(path) is None:
            self._set(path, _File())
        elif call.name == "write":
            file = self._now.get(path)
            if isinstance(file, _File):
                file.content += call.data
        elif call.name == "mkdir" and self._now.get(path) is None:
            self._set(path, _FOLDER)
        elif call.name == "unlink" and self._now.get(path) is not None:
            self._set(path, None)
        elif call.name == "rename" and self._now.get(call.paths[0]) is not None:
            self._set(path, self._now[call.paths[0]])
            self._set(call.paths[0], None)
        elif call.name == "link" and self._now.get(path) is None:
            self._set(path, self._now[call.paths[0]])
        elif call.name == "fsync":
            self._sync(path)

    def _set(self, path: str, entry: _Entry) -> None:
        self._since.setdefault(path, [self._now.get(path)]).append(entry)
        self._now[path] = entry

    def _sync(self, path: str) -> None:
        file = self._now.get(path)
        if isinstance(file, _File):
            file.synced = file.content
            return
        for name in [name for name in self._since if str(Path(name).parent) == path]:
            del self._since[name]

    def after_power_loss(self, chance: random.Random, folder: Path) -> list[str]:
        """Put one legal state into `folder`, which takes the place of `top`; gives what was lost, in words."""
        lost = []
        # Parents come before what is in them, since they are shorter.
        for path in sorted(self._now, key=len):
            history = self._since.get(path)
            entry = self._now[path] if history is None else chance.choice(history)
            if entry is not self._now[path]:
                lost.append(f"{path} is as it was")
            place = folder / Path(path).relative_to(self.top)
            if entry is None or not place.parent.is_dir():
                continue
            if isinstance(entry, str):
                place.mkdir()
                continue
            content, how = _after_loss(entry, chance)
            place.write_bytes(content)
            if how:
                lost.append(f"{path} is {how}")
        return lost


def _after_loss(file: _File, chance: random.Random) -> tuple[bytes, str]:
    if file.synced == file.content:
        return file.content, ""
    kept = file.synced or b""
    new = file.content[len(kept) :]
    how = chance.choice(["empty", "cut", "zero", ""])
    if how == "empty":
        return kept, how
    if how == "cut":
        return kept + new[: chance.randrange(len(new) + 1)], how
    return (kept + bytes(len(new)), how) if how == "zero" else (file.content, "")
