"""`webdataset`: a folder of tar shards, two members a view: its values as npy, its row of the manifest as JSON."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from feature_store.canonical import canonical_json, pretty_json
from feature_store.exports.atomic import appearing_folder
from feature_store.exports.subject import ExportSubject, Values, plain_rows

_SHARD_BYTES = 256 << 20
_NAME = "{:06d}.tar"


def write_webdataset(subject: ExportSubject, place: Path, *, overwrite: bool, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write `000000.tar`, `000001.tar`, ... and `export.json` into the folder `place`.

    The members of a view are `VIEW_ID.npy` and `VIEW_ID.json`; a view id that several rows share is followed by a
    `-` and the row, since a key stands for one sample. The bytes are a function of the content.

    Raises:
        ExportRefusedError: something stands at `place`.
    """
    with appearing_folder(place, overwrite=overwrite) as folder:
        written, index = 0, 0
        tar = _open(folder, index)
        try:
            for key, values, row in _samples(subject):
                if written >= shard_bytes:
                    tar.close()
                    written, index = 0, index + 1
                    tar = _open(folder, index)
                written += _add(tar, f"{key}.npy", _npy(values)) + _add(
                    tar, f"{key}.json", canonical_json(row).encode()
                )
        finally:
            tar.close()
        (folder / "export.json").write_bytes(pretty_json(subject.record("webdataset")))


def _open(folder: Path, index: int) -> tarfile.TarFile:
    return tarfile.open(folder / _NAME.format(index), "w", format=tarfile.USTAR_FORMAT)


def _samples(subject: ExportSubject) -> Iterator[tuple[str, Values, dict[str, Any]]]:
    shared = _shared_ids(subject)
    for block in subject.blocks():
        for values, row in zip(block.values, plain_rows(block), strict=True):
            name = subject.class_name(row.get("label"))
            key = f"{row['view_id']}-{row['row']}" if row["view_id"] in shared else row["view_id"]
            yield key, values, row if name is None else {**row, "class": name}


def _shared_ids(subject: ExportSubject) -> frozenset[str]:
    """The view ids of more than one row: the same image under several names."""
    counts = pc.value_counts(subject.manifest["view_id"])
    counts = counts.filter(pc.greater(counts.field("counts"), 1))
    return frozenset(counts.field("values").to_pylist())


def _npy(values: Values) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    return len(content)
