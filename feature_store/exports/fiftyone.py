"""`fiftyone`: a FiftyOneDataset folder, one sample a view, its vector in the field `embedding`.

FiftyOne's own serialisation, as `Dataset.from_dir(..., dataset_type=fiftyone.types.FiftyOneDataset)` reads it: a
document of the dataset with its fields, and one document a sample, both as MongoDB's extended JSON. A vector is what
numpy.save writes, through zlib.
"""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.exports.atomic import appearing_folder
from feature_store.exports.places import ExportRefusedError
from feature_store.exports.subject import ExportSubject, Values, plain_rows
from feature_store.manifest import TILE_AXES

# Of the documents below; a newer FiftyOne brings them up to itself when it reads them.
_FIFTYONE_VERSION = "1.0.0"
_FIELDS = "fiftyone.core.fields."
_OBJECT_ID_DIGITS = 24
_ZLIB_LEVEL = 1  # float values hardly compress


def write_fiftyone(subject: ExportSubject, place: Path, *, overwrite: bool, images: Path | None = None) -> None:
    """Write `metadata.json` and `samples.json` into the folder `place`; images stay where they are.

    Args:
        subject: one vector a view.
        place: the folder.
        overwrite: whether what stands there gives way.
        images: the folder that the images' paths are relative to; without it paths stay relative, and whoever loads the
            dataset says so with `rel_dir`.

    Raises:
        ExportRefusedError: something stands at `place`, or the subject has more than one vector a view.
    """
    if len(subject.row_shape) != 1:
        raise ExportRefusedError(f"fiftyone holds one vector a view; export --kind cls or mean, not {subject.kind}.")
    root = None if images is None else images.expanduser().absolute()
    with appearing_folder(place, overwrite=overwrite) as folder:
        (folder / "metadata.json").write_text(json.dumps(_dataset(subject), indent=1), encoding="utf-8")
        with (folder / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            separator = "\n"
            for block in subject.blocks():
                for values, row in zip(block.values, plain_rows(block), strict=True):
                    file.write(separator + json.dumps(_sample(subject, values, row, root), ensure_ascii=False))
                    separator = ",\n"
            file.write("\n]}\n")


def _sample(subject: ExportSubject, values: Values, row: dict[str, Any], root: Path | None) -> dict[str, Any]:
    name = subject.class_name(row.get("label"))
    tile = row.get("tile")
    identifier = row["view_id"][:_OBJECT_ID_DIGITS]
    label: dict[str, Any] = {"_cls": "Classification", "_id": {"$oid": identifier}, "tags": [], "label": name}
    return {
        "filepath": row["uri"] if root is None else str(root / row["uri"]),
        "tags": [row["split"]] if row.get("split") else [],
        "metadata": None,
        "_media_type": "image",
        # FiftyOne draws samples by this number.
        "_rand": int(row["view_id"][:8], 16) / (1 << 32),
        "ground_truth": None if name is None else label,
        "embedding": {"$binary": {"base64": _vector(values), "subType": "00"}},
        "view_id": row["view_id"],
        "row": row["row"],
        "uri": row["uri"],
        "tile": None if tile is None else [tile[axis] for axis in TILE_AXES],
    }


def _vector(values: Values) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values, dtype=np.float32), allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue(), _ZLIB_LEVEL)).decode("ascii")


def _dataset(subject: ExportSubject) -> dict[str, Any]:
    record = subject.record("fiftyone")
    fields = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield="StringField"),
        _field("metadata", "EmbeddedDocumentField", document="fiftyone.core.metadata.ImageMetadata"),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        _field("ground_truth", "EmbeddedDocumentField", document="fiftyone.core.labels.Classification"),
        _field("embedding", "VectorField"),
        _field("view_id", "StringField"),
        _field("row", "IntField"),
        _field("uri", "StringField"),
        _field("tile", "ListField", subfield="IntField"),
    ]
    return {
        "name": subject.features.dataset_name,
        "version": _FIFTYONE_VERSION,
        "media_type": "image",
        "tags": [],
        "info": {"vitrine": record},
        "classes": {"ground_truth": list(subject.classes)} if subject.classes else {},
        "sample_fields": fields,
    }


def _field(
    name: str,
    kind: str,
    *,
    db_field: str | None = None,
    subfield: str | None = None,
    document: str | None = None,
    read_only: bool = False,
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": _FIELDS + kind,
        "embedded_doc_type": document,
        "subfield": None if subfield is None else _FIELDS + subfield,
        "fields": [],
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": read_only,
        "created_at": None,
    }
