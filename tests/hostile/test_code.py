"""Nothing that a stranger stored runs: no gadget in a checkpoint, an array, a store or a table ever sings."""

import builtins
import functools
import importlib
import json
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from feature_store import StoreError, open_store
from feature_store.datasets import read_manifest
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.weight_files import BackboneError
from pipelines.datasets.dataset import DatasetOptions
from pipelines.datasets.manifest_file import open_manifest_file
from pipelines.imports.source_arrays import ImportRefusedError
from pipelines.imports.sources import open_vectors
from tests.feature_store.samples import copy_store, fill_store


class Gadget:
    """What unpickling calls, and with what."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._call, self._arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call, self._arguments


def gadgets(canary: Path, script: Path) -> dict[str, Gadget]:
    """Ways to touch `canary` by nothing but being unpickled; `script` is a Python file that touches it."""
    name, code = str(canary), f"open({str(canary)!r}, 'w').close()"
    return {
        "system": Gadget(os.system, f"touch {name}"),
        "popen": Gadget(os.popen, f"touch {name}"),
        "call": Gadget(subprocess.call, ["touch", name]),
        "check_output": Gadget(subprocess.check_output, ["touch", name]),
        "eval": Gadget(eval, f"open({name!r}, 'w').close()"),
        "exec": Gadget(exec, code),
        "open": Gadget(builtins.open, name, "w"),
        "touch": Gadget(Path.touch, canary),
        "mkdir": Gadget(os.mkdir, name),
        "copy": Gadget(shutil.copy, str(script), name),
        "symlink": Gadget(os.symlink, str(script), name),
        "run_path": Gadget(runpy.run_path, str(script)),
        "partial": Gadget(operator.call, Gadget(functools.partial, os.system, f"touch {name}")),
        "map": Gadget(list, Gadget(map, os.system, [f"touch {name}"])),
        "import": Gadget(exec, f"import os; os.system('touch {name}')"),
        "getattr": Gadget(operator.call, Gadget(getattr, Gadget(importlib.import_module, "os"), "mkdir"), name),
        "numpy save": Gadget(np.save, name + ".npy", 0),
        "tofile": Gadget(np.ndarray.tofile, np.zeros(1), name),
        "torch save": Gadget(torch.save, 0, name),
        "numpy load": Gadget(np.load, str(script.with_suffix(".npy")), None, True),
    }


NAMES = tuple(gadgets(Path("canary"), Path("script")))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Where gadgets sing; the folder of the canary holds nothing else."""
    folder = tmp_path / "cage"
    folder.mkdir()
    yield folder / "canary"
    assert list(folder.iterdir()) == []


def _gadget(name: str, canary: Path, tmp_path: Path) -> Gadget:
    script = tmp_path / "script.py"
    script.write_text(f"open({str(canary)!r}, 'w').close()\n")
    np.save(script.with_suffix(".npy"), np.array([Gadget(os.system, f"touch {canary}")], dtype=object))
    return gadgets(canary, script)[name]


def test_every_gadget_sings_where_code_does_run(tmp_path: Path) -> None:
    cages = {name: tmp_path / str(number) / "cage" for number, name in enumerate(NAMES)}
    for name, cage in cages.items():
        cage.mkdir(parents=True)
        (cage.parent / "pickle").write_bytes(pickle.dumps(_gadget(name, cage / "canary", cage.parent)))
    program = """
import pickle, sys
for path in sys.argv[1:]:
    try:
        pickle.load(open(path, "rb"))
    except Exception:
        pass
"""
    pickles = [str(cage.parent / "pickle") for cage in cages.values()]
    subprocess.run([sys.executable, "-c", program, *pickles], check=False, capture_output=True)
    deadline = time.monotonic() + 20
    while silent := [name for name, cage in cages.items() if not list(cage.iterdir())]:  # popen does not wait
        assert time.monotonic() < deadline, f"{silent} do nothing"
        time.sleep(0.05)


def _pickle(content: object, protocol: int, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("name", NAMES)
def test_no_checkpoint_runs_code(name: str, canary: Path, tmp_path: Path) -> None:
    gadget = _gadget(name, canary, tmp_path)
    contents = {
        "bare": gadget,
        "model": {"model": {"a": torch.zeros(2), "b": gadget}},
        "key": {gadget: gadget, "a": torch.zeros(2)},
    }
    for form, content in contents.items():
        ways: dict[str, Callable[[Path], object]] = {
            "zip": functools.partial(torch.save, content),
            "legacy": functools.partial(torch.save, content, _use_new_zipfile_serialization=False),
            "protocol 2": functools.partial(_pickle, content, 2),
            "protocol 5": functools.partial(_pickle, content, 5),
        }
        for way, write in ways.items():
            for suffix in (".pth", ".safetensors"):
                path = tmp_path / f"weights{suffix}"
                write(path)
                if form != "bare" and way in {"zip", "legacy"}:
                    # The tensors beside a gadget are read, whatever the file is called, and the gadget is not.
                    assert list(read_state(path)) == ["a"], (form, way, suffix)
                else:
                    with pytest.raises(BackboneError):
                        read_state(path)
                assert not canary.exists(), (form, way, suffix)
    folder = tmp_path / "tensors"
    folder.mkdir()
    torch.save({"cls": torch.zeros(2), "label": gadget}, folder / "a.pt")
    with pytest.raises((ImportRefusedError, BackboneError)):
        open_vectors(f"pt:{folder}")


@pytest.mark.parametrize("name", NAMES)
def test_no_array_runs_code(name: str, canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.array([_gadget(name, canary, tmp_path), None], dtype=object), allow_pickle=True)
    with pytest.raises((ImportRefusedError, StoreError)):
        open_vectors(f"npy:{path}")


def _zarr_attacks(pickled: bytes) -> dict[str, dict[str, bytes]]:
    """Files that take the place of an array's, by name."""
    plain = {
        "shape": [21, 4, 3],
        "chunks": [8, 4, 3],
        "dtype": "<f2",
        "fill_value": 0,
        "order": "C",
        "compressor": None,
        "zarr_format": 2,
    }
    version_3 = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [21, 4, 3],
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 4, 3]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "attributes": {},
    }
    return {
        "a pickle filter": {
            ".zarray": json.dumps({**plain, "dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}).encode(),
            "0.0.0": pickled,
        },
        "a pickle compressor": {
            ".zarray": json.dumps({**plain, "filters": None, "compressor": {"id": "pickle"}}).encode(),
            "0.0.0": pickled,
        },
        "numcodecs.pickle": {
            "zarr.json": json.dumps(
                {**version_3, "codecs": [{"name": "numcodecs.pickle", "configuration": {}}]}
            ).encode(),
            "c/0/0/0": pickled,
        },
        "a codec by its import path": {
            "zarr.json": json.dumps(
                {**version_3, "codecs": [{"name": "os.system", "configuration": {"id": "x"}}]}
            ).encode(),
            "c/0/0/0": pickled,
        },
        "an object data type": {
            "zarr.json": json.dumps({**version_3, "data_type": "object", "codecs": [{"name": "bytes"}]}).encode(),
            "c/0/0/0": pickled,
        },
    }


@pytest.mark.parametrize("name", ["system", "eval", "open", "run_path"])
def test_no_zarr_array_runs_code(name: str, canary: Path, tmp_path: Path) -> None:
    pickled = pickle.dumps(np.array([_gadget(name, canary, tmp_path)], dtype=object))
    sound = tmp_path / "sound"
    folder = fill_store(str(sound)).folder
    for kept in (False, True):
        for attack, files in _zarr_attacks(pickled).items():
            store = copy_store(sound, tmp_path / "store")
            arrays = [store / folder / "tokens.zarr/layer_1/patches", store / folder / "tokens.zarr/valid"]
            arrays += sorted(store.glob("datasets/*/*/annotations.zarr/*/"))
            for array in arrays:
                if not kept:
                    (array / "zarr.json").unlink()
                for file, content in files.items():
                    if file.endswith(("json", ".zarray")) or array.name == "patches":
                        (array / file).write_bytes(content)
            found = open_store(str(store)).features()
            for ask in (
                lambda found=found: found.read(1, "patches"),
                lambda found=found: list(found.masks.iter_masks([0])),
            ):
                if kept and ".zarray" in files:
                    ask()  # beside a sound zarr.json, other files are nobody's
                else:
                    with pytest.raises(StoreError):
                        ask()
            assert not canary.exists(), attack
            shutil.rmtree(store)


@pytest.mark.parametrize("name", NAMES)
def test_no_metadata_of_a_table_runs_code(name: str, canary: Path, tmp_path: Path) -> None:
    """Arrow once unpickled extension types out of a file's metadata (CVE-2023-47248)."""
    pickled = pickle.dumps(_gadget(name, canary, tmp_path))
    found = fill_store(str(tmp_path / "store"))
    path = Path(found.root.url, found.dataset.folder, "manifest.parquet")
    table = pq.read_table(path)
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    fields = [field.with_metadata(extension) if field.name == "uri" else field for field in table.schema]
    schema = pa.schema(fields, metadata={b"pandas": pickled, b"ARROW:schema": pickled})
    pq.write_table(table.cast(pa.schema(fields)).replace_schema_metadata(schema.metadata), path)
    with pytest.raises(StoreError):
        read_manifest(found.root, found.dataset)
    path.rename(tmp_path / "manifest.parquet")
    with pytest.raises(StoreError):
        open_manifest_file(tmp_path / "manifest.parquet", DatasetOptions())
