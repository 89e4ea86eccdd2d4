"""A damaged or hostile store is refused by name, whatever was done to which file; it never ends in another error."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store import FeatureSet, StoreError, open_store, read_selection, selection_names, write_selection
from feature_store.records import RECORD_DIGEST, record_bytes
from feature_store.results import all_results, write_result
from feature_store.roots import open_root
from tests.feature_store.samples import all_tokens, copy_store, fill_store, make_selection

_OTHER_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    7,
    2.5,
    1e300,
    1 << 62,
    10**40,
    "",
    "x",
    "../../etc",
    "a\0b",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    "\u2028",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with something of everything; nobody changes it."""
    folder = tmp_path_factory.mktemp("sound") / "store"
    found = fill_store(str(folder), invalid=[2])
    write_selection(found.root, make_selection())
    write_result(found.root, "knn", {"k": 1}, {"miou": 0.5})
    return folder


def _ask_everything(store: Path) -> FeatureSet:
    """Read all there is; what is committed must also be right, unless a shard itself was changed."""
    opened = open_store(str(store))
    for name in selection_names(opened.root):
        read_selection(opened.root, name)
    all_results(opened.root)
    found = opened.features()
    assert found.spec.n_rows > 0
    assert isinstance(found.stored_bytes, int)
    for kind in found.spec.identity.token_kinds:
        found.read("last", kind)
        for _ in found.iter_blocks("last", kind):
            pass
    for column in ("label", "split", "uri", "objects", "tile"):
        found.column(column)
    list(found.masks.iter_masks(range(found.spec.n_rows)))
    return found


def _check(store: Path, *, changed: Path) -> bool:
    """Whether the store is refused; if it is not, its tokens are those that were written."""
    try:
        found = _ask_everything(store)
    except StoreError as error:
        message = str(error)
        assert message, "an error says something"
        assert "\n" not in message
        return True
    if "c" not in changed.parts:
        expected = all_tokens(found.spec, 1, "patches", invalid=[2])
        np.testing.assert_array_equal(found.read(1, "patches"), expected)
    return False


def _files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def _flip_bit(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _other_byte(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _drop_middle(content: bytes, chance: random.Random) -> bytes:
    start, stop = sorted((chance.randrange(len(content)), chance.randrange(len(content))))
    return content[:start] + content[stop:]


def _garbage(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(content))


@pytest.mark.parametrize("damage", [_flip_bit, _other_byte, _cut, _drop_middle, _garbage])
def test_changed_bytes_are_refused_or_change_nothing(
    sound: Path, tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    store = copy_store(sound, tmp_path / "store")
    chance = random.Random(0)
    refused = 0
    for _ in range(3):
        for path in _files(store):
            content = path.read_bytes()
            path.write_bytes(damage(content, chance))
            refused += _check(store, changed=path.relative_to(store))
            path.write_bytes(content)
    assert refused > len(_files(store))
    assert not _check(store, changed=Path())


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every part of a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _leaves(item, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copy = value.copy()
    copy[path[0]] = _replaced(value[path[0]], path[1:], other)
    return copy


def test_changed_types_are_refused_or_change_nothing(sound: Path, tmp_path: Path) -> None:
    store = copy_store(sound, tmp_path / "store")
    chance = random.Random(1)
    refused = cases = 0
    for path in _files(store):
        if path.suffix != ".json":
            continue
        content = path.read_bytes()
        value = json.loads(content)
        sealed = value.pop(RECORD_DIGEST, None) is not None
        for place in _leaves(value):
            other = _replaced(value, place, chance.choice(_OTHER_VALUES))
            # A stranger gives a changed record its digest again, so the fields must stand on their own.
            resealed = sealed and isinstance(other, dict)
            path.write_bytes(record_bytes(other) if resealed else json.dumps(other).encode())
            refused += _check(store, changed=path.relative_to(store))
            cases += 1
        path.write_bytes(content)
    assert cases > 300
    assert refused > cases // 2


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "receipts alone"])
def test_missing_files_are_refused_or_change_nothing(sound: Path, tmp_path: Path, indexed: bool) -> None:
    store = copy_store(sound, tmp_path / "store")
    if not indexed:
        next(store.rglob("receipts.json")).unlink()
    refused = {}
    for path in _files(store):
        content = path.read_bytes()
        path.unlink()
        refused[path.relative_to(store)] = _check(store, changed=path.relative_to(store))
        path.write_bytes(content)
    unneeded = {path for path, was_refused in refused.items() if not was_refused}
    assert all(path.parts[0] in ("features", "datasets", "selections", "results") for path in unneeded)
    # Groups are for other readers; a selection or a result that is gone was never asked for. The index says again what
    # receipts say, and both say what the array of valid rows does.
    needless = {path for path in unneeded if path.parts[0] in ("features", "datasets") and path.name != "zarr.json"}
    assert {path.parts[3] for path in needless} == ({"receipts.json", "tokens.zarr"} if indexed else set())
    assert all("valid" in path.parts for path in needless if path.parts[3] == "tokens.zarr")


def test_a_folder_or_a_link_in_the_place_of_a_file_is_refused(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    secret = tmp_path / "secret" / "file"
    for original in _files(sound):
        path = original.relative_to(sound)
        secret.write_bytes(original.read_bytes())
        for kind in ("folder", "link out"):
            store = copy_store(sound, tmp_path / "store")
            next(store.rglob("receipts.json")).unlink()  # beside it receipts and the array of valid rows are not read
            (store / path).unlink(missing_ok=True)
            if kind == "folder":
                (store / path).mkdir()
            else:
                (store / path).symlink_to(secret)
            needed = path.name not in ("zarr.json", "receipts.json") and path.parts[0] not in ("selections", "results")
            assert _check(store, changed=path) or not needed, (kind, path)
            shutil.rmtree(store)


def test_a_store_inside_a_store_is_not_seen(sound: Path, tmp_path: Path) -> None:
    store = copy_store(sound, tmp_path / "store")
    shutil.copytree(sound, store / "features" / "nested")
    (store / "features" / "stray").write_text("x")
    assert len(open_store(str(store)).names()) == 1
    assert open_root(str(store)).list("features/stray") == []
