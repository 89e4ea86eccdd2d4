"""`clip-retrieval:FOLDER`: what `clip-retrieval inference` writes.

    img_emb/img_emb_0.npy  metadata/metadata_0.parquet   one pair a partition, the number filled with zeros

The metadata has `image_path` and whatever the user's data set had, of which `split` and `label` are taken; captions and
text embeddings are passed over.
"""

import re
from pathlib import Path

from pipelines.datasets.assemble import Row
from pipelines.imports.rows_file import read_rows
from pipelines.imports.source_arrays import ImportRefusedError, Joined, NpyFile
from pipelines.imports.vectors import ImportOptions, Vectors, kinds_of

_READ = ("uri", "split", "label", "image_sha256")


def open_clip_retrieval(path: Path, options: ImportOptions) -> Vectors:
    """The image embeddings of a folder, its partitions one after another.

    Raises:
        ImportRefusedError: no partition, one without its metadata, or other counts on the two sides.
    """
    embeddings, metadata = _partitions(path / "img_emb", "npy"), _partitions(path / "metadata", "parquet")
    if not embeddings or set(embeddings) != set(metadata):
        alone = sorted(set(embeddings) ^ set(metadata))
        what = f"partition {alone[0]} has no partner" if alone else "no img_emb/img_emb_0.npy stands there"
        raise ImportRefusedError(
            f"{path} is not a whole output of clip-retrieval: {what}. Give the --output_folder of it."
        )
    renamed = {"uri": "image_path", **options.columns}
    parts, rows = [], list[Row]()
    for number in sorted(embeddings):
        part, some = NpyFile(embeddings[number]), read_rows(metadata[number], renamed=renamed, only=_READ)
        if part.n_rows != len(some):
            raise ImportRefusedError(
                f"{part.name} has {part.n_rows} vectors and {metadata[number].name} {len(some)} rows; run that "
                "partition of clip-retrieval again."
            )
        parts.append(part)
        rows += some
    return Vectors(layout="clip-retrieval", arrays=kinds_of(Joined(parts)), rows=rows, name=path.resolve().name)


def _partitions(folder: Path, suffix: str) -> dict[int, Path]:
    found = {}
    for place in sorted(folder.glob(f"*.{suffix}")):
        number = re.fullmatch(r"\w*?_?(\d{1,9})", place.stem)
        if number:
            found[int(number[1])] = place
    return found
