"""Every reader of a record of the store, on bytes that no Vitrine wrote. Run as a process, so that memory can be told.

Half of the inputs are changed bytes. The other half are well-formed records with another value somewhere and every
digest made right again: what a stranger with an editor and this source would write.
"""

import argparse
import copy
import io
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import StoreError, read_dataset, read_selection, write_selection
from feature_store.arrays import all_arrays
from feature_store.canonical import digest_of
from feature_store.datasets import dataset_in_force, read_manifest
from feature_store.durable_files import Buffer
from feature_store.manifest import check_manifest
from feature_store.objects import LocalRoot, ObjectRoot
from feature_store.reader import FeatureSet
from feature_store.receipts import Receipt
from feature_store.receipts_index import read_index
from feature_store.records import read_record, record_bytes
from feature_store.results import all_results, write_result
from feature_store.shards import shards_of
from feature_store.token_reader import TokenReader
from feature_store.writer import check_store, read_spec
from tests.feature_store.samples import fill_store, make_selection

MAX_SECONDS, MAX_GROWTH_BYTES = 1.0, 256 << 20
OTHER_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2.5, 1e300, -0.0, 1 << 24, 1 << 31, 1 << 53, 1 << 62, 10**400, "", "x", "0" * 64,
    "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "\u2028", "é" * 300, "float64", "object", "|O",
    "NaN", "x" * 100_000, [], [[]], [None], [1] * 10_000, {}, {"a": 1}, [[[[[[[[]]]]]]]], {"__class__": "os.system"},
)  # fmt: skip


class MemoryRoot(ObjectRoot):
    """Objects in a dictionary, so that fifty thousand inputs are not fifty thousand files."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects, self.url = objects, "memory"

    def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        if path not in self.objects:
            raise self.not_found(path)
        return self.objects[path][:max_bytes]

    def size_bytes(self, path: str) -> int | None:
        return len(self.objects[path]) if path in self.objects else None

    def list(self, folder: str) -> list[str]:
        start = f"{folder}/" if folder else ""
        return sorted({path[len(start) :].split("/")[0] for path in self.objects if path.startswith(start)})

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        raise AssertionError("reading wrote something")

    def local_path(self, path: str) -> Path | None:
        return None


def sound_store(folder: Path) -> dict[str, bytes]:
    """Every object of a store with something of everything, by path."""
    found = fill_store(str(folder), invalid=[2, 20])
    write_selection(found.root, make_selection())
    write_result(found.root, "knn", {"k": 1, "feature_set": found.digest}, {"miou": 0.5})
    root = LocalRoot(folder)
    return {path: root.read(path) for path, _ in root.walk("")}


def readers(objects: dict[str, bytes]) -> dict[str, Callable[[ObjectRoot], object]]:
    """What reads each record, by its path."""
    (folder,) = {path.removesuffix("/feature_set.json") for path in objects if path.endswith("feature_set.json")}
    (dataset_folder,) = {path.removesuffix("/dataset.json") for path in objects if path.endswith("/dataset.json")}
    (pointer,) = {path for path in objects if path.count("/") == 2 and path.startswith("datasets/")}
    root = MemoryRoot(objects)
    spec, dataset = read_spec(root, folder), read_dataset(root, dataset_folder)
    (array, layout), *_ = all_arrays(folder, spec)

    def feature_set(root: ObjectRoot) -> object:
        found = FeatureSet(root, folder.removeprefix("features/"))
        return shards_of(found.spec.n_rows, found.spec.rows_per_shard)

    def manifest(root: ObjectRoot) -> object:
        table = read_manifest(root, dataset)
        check_manifest(table)
        return table

    receipt = f"{folder}/receipts/000001.json"
    return {
        "vitrine.json": check_store,
        f"{folder}/feature_set.json": feature_set,
        receipt: lambda root: Receipt.from_json(read_record(root, receipt), name=receipt),
        f"{folder}/receipts.json": lambda root: read_index(root, folder, spec),
        f"{array}/zarr.json": lambda root: TokenReader(root, array, layout),
        f"{dataset_folder}/dataset.json": lambda root: read_dataset(root, dataset_folder),
        f"{dataset_folder}/manifest.parquet": manifest,
        pointer: lambda root: dataset_in_force(root, dataset.spec.name, dataset.views_digest),
        "selections/no1.json": lambda root: read_selection(root, "no1"),
        next(path for path in objects if path.startswith("results/")): all_results,
    }


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some damage to some bytes."""
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        content = _changed_once(content, chance)
    return content


def _changed_once(content: bytes, chance: random.Random) -> bytes:
    start, stop = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    head, middle, tail = content[:start], content[start:stop], content[stop:]
    flipped = bytes([middle[0] ^ (1 << chance.randrange(8))]) + middle[1:] if middle else b""
    token = chance.choice((b"[", b"{" * 99, b'"', b"\0", b"1" * 5000, b"\\ud800", chance.randbytes(8)))
    return chance.choice(
        (
            head + flipped + tail,
            head + token + middle + tail,
            head,
            head + tail,
            head + middle * 2 + tail,
            chance.randbytes(len(content)),
        )
    )


def changed_value(content: bytes, chance: random.Random) -> bytes:
    """The record with another value in one place, and its digests made right."""
    record = json.loads(content)
    record.pop("record_digest", None)
    places = list(_places(record))
    for _ in range(chance.choice((1, 1, 2))):
        _change(record, chance.choice(places), chance)
    if not isinstance(record, dict):
        return json.dumps(record).encode()
    try:
        if isinstance(record.get("identity"), dict) and "digest" in record and chance.random() < 0.9:
            record["digest"] = digest_of(record["identity"])
        if isinstance(record.get("result"), dict) and "result_digest" in record:
            record["result_digest"] = digest_of(record["result"])
        return record_bytes(record)
    except (TypeError, ValueError):
        return json.dumps(record).encode("utf-8", "surrogatepass")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _change(record: Any, place: tuple[Any, ...], chance: random.Random) -> None:
    try:
        for key in place[:-1]:
            record = record[key]
        if chance.random() < 0.1 and isinstance(record, dict):
            del record[place[-1]]
        elif chance.random() < 0.1 and isinstance(record, dict):
            record[str(chance.choice(OTHER_VALUES))[:50]] = copy.deepcopy(chance.choice(OTHER_VALUES))
        else:
            record[place[-1]] = copy.deepcopy(chance.choice(OTHER_VALUES))
    except (KeyError, IndexError, TypeError):
        return  # the first change took the second one's place away


def changed_table(content: bytes, chance: random.Random) -> bytes:
    """A manifest that Parquet reads and whose text, numbers or columns are a stranger's."""
    table = pq.read_table(pa.BufferReader(content))
    rows = table.to_pylist()
    row, column = chance.choice(rows), chance.choice(table.column_names)
    row[column] = chance.choice([value for value in OTHER_VALUES if isinstance(value, (str, int)) or value is None])
    buffer = io.BytesIO()
    try:
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), buffer)
    except Exception:
        return changed_bytes(content, chance)
    return buffer.getvalue()


def fuzz(folder: Path, *, n_inputs: int, seed: int) -> dict[str, Any]:
    """Hand `n_inputs` inputs to the readers by turns, and tell what came of them."""
    objects = sound_store(folder)
    of_path = readers(objects)
    for path, read in of_path.items():
        read(MemoryRoot(objects))
        assert path in objects
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    uncaught: list[str] = []
    slowest_s = 0.0
    before = _peak_bytes()
    for number in range(n_inputs):
        path = list(of_path)[number % len(of_path)]
        by_value = changed_table if path.endswith(".parquet") else changed_value
        data = (changed_bytes if chance.random() < 0.5 else by_value)(objects[path], chance)
        root = MemoryRoot({**objects, path: data})
        start = time.perf_counter()
        try:
            of_path[path](root)
            outcomes["read"] += 1
        except StoreError as error:
            outcomes["refused"] += 1
            if not str(error) or "\n" in str(error) or len(str(error)) > 2000:
                uncaught.append(f"{path}: a message of {len(str(error))} characters: {str(error)[:300]!r}")
        except BaseException as error:
            uncaught.append(f"{path}: {type(error).__name__}: {error} for {data[:200]!r}")
        slowest_s = max(slowest_s, time.perf_counter() - start)
    return {**outcomes, "uncaught": uncaught, "slowest_s": slowest_s, "growth_bytes": _peak_bytes() - before}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_inputs", type=int)
    parser.add_argument("seed", type=int)
    asked = parser.parse_args()
    json.dump(fuzz(asked.folder, n_inputs=asked.n_inputs, seed=asked.seed), sys.stdout)


if __name__ == "__main__":
    main()
