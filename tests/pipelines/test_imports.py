"""Vectors of others: every layout gives the same feature set, and what does not fit together is refused in one line."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from evaluators import KnnParameters, Subject, evaluate_knn, evaluate_linear
from evaluators.parameters import LinearParameters
from feature_store import FeatureSet, IdentityMismatchError, StoreError, open_store
from feature_store.exports import ExportSubject, export_features
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.imports import (
    ImportOptions,
    ImportOutcome,
    ImportRefusedError,
    ImportStatement,
    import_vectors,
    imported_dataset,
    open_vectors,
)
from pipelines.imports import run as run_module
from pipelines.stopping import stop_requested
from tests.feature_store.samples import files_of

N, WIDTH = 40, 6
CLASSES = ("cat", "dog")


def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two clouds, one a class, in an order that is not that of the names."""
    random = np.random.default_rng(5)
    centres = np.repeat([[0.0] * WIDTH, [1.0] * WIDTH], N // 2, axis=0)
    values = (centres + random.normal(0, 0.4, (N, WIDTH))).astype(np.float32)
    shuffled: np.ndarray[Any, np.dtype[np.float32]] = values[order()]
    return shuffled


def order() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(6).permutation(N)


def rows() -> list[dict[str, str]]:
    """The first of four of each class are test."""
    return [
        {
            "uri": f"{'test' if index % 4 == 0 else 'train'}/{CLASSES[index // (N // 2)]}/{index:02d}.png",
            "split": "test" if index % 4 == 0 else "train",
            "label": CLASSES[index // (N // 2)],
        }
        for index in order().tolist()
    ]


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def as_npy(folder: Path) -> str:
    np.save(folder / "v.npy", vectors())
    write_csv(folder / "v.csv", rows())
    return f"npy:{folder / 'v.npy'}"


def as_npy_folder(folder: Path) -> str:
    np.save(folder / "cls.npy", vectors())
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return f"npy:{folder}"


def as_parquet(folder: Path) -> str:
    table = {name: [row[name] for row in rows()] for name in ("uri", "split", "label")}
    pq.write_table(pa.table({**table, "vector": list(vectors())}), folder / "v.parquet", row_group_size=7)
    return f"parquet:{folder / 'v.parquet'}"


def as_clip_retrieval(folder: Path) -> str:
    """As `clip-retrieval inference` lays it out: partitions with numbers filled up, pandas' metadata, other columns."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    for number, part in enumerate(np.array_split(np.arange(N), 11)):
        np.save(folder / "img_emb" / f"img_emb_{number:02d}.npy", vectors()[part])
        np.save(folder / "text_emb" / f"text_emb_{number:02d}.npy", vectors()[part])
        some = [rows()[place] for place in part]
        table = {
            "image_path": [f"/data/images/{row['uri']}" for row in some],
            "caption": ["a photo" for _ in some],
            "split": [row["split"] for row in some],
            "label": [row["label"] for row in some],
            "frame": ["not a number" for _ in some],
        }
        pq.write_table(pa.table(table), folder / "metadata" / f"metadata_{number:02d}.parquet")
    return f"clip-retrieval:{folder}"


def as_pt(folder: Path) -> str:
    """A file a view under split and class folders: a tensor, and dictionaries as DINOv2 and others name them."""
    for index, (row, vector) in enumerate(zip(rows(), torch.from_numpy(vectors()), strict=True)):
        path = (folder / row["uri"]).with_suffix(".pt")
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {"x_norm_clstoken": vector[None], "x_norm_regtokens": torch.zeros(1, 0, WIDTH), "x_prenorm": vector}
        torch.save([vector, vector[None], {"cls": vector}, named][index % 4], path)
    return f"pt:{folder}"


def run(
    source: str,
    store: Path,
    *,
    options: ImportOptions | None = None,
    root: Path | None = None,
    void: int | None = None,
    **statement: Any,
) -> tuple[ImportOutcome, FeatureSet]:
    found = open_vectors(source, options)
    imported = imported_dataset(found, DatasetOptions(name="pets", void=void), root=root)
    said = ImportStatement(**{"model": "somebody's ViT", **statement})
    outcome = import_vectors(found, imported, said, store=str(store))
    return outcome, open_store(str(store)).features(outcome.feature_set)


LAYOUTS = (as_npy, as_npy_folder, as_parquet, as_clip_retrieval, as_pt)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_each_name_its_vector_and_label(tmp_path: Path, layout: Callable[[Path], str]) -> None:
    (tmp_path / "in").mkdir()
    outcome, features = run(layout(tmp_path / "in"), tmp_path / "store")
    assert (outcome.rows, outcome.committed, outcome.invalid) == (N, outcome.total, {})
    read = features.read("last", "cls")
    assert read.dtype == np.float32
    stem = [Path(uri).stem for uri in features.column("uri")]
    expected = {Path(row["uri"]).stem: (vector, row) for row, vector in zip(rows(), vectors(), strict=True)}
    np.testing.assert_array_equal(read, [expected[name][0] for name in stem])
    assert features.column("split") == [expected[name][1]["split"] for name in stem]
    assert features.dataset.spec.classes == CLASSES
    assert [CLASSES[label] for label in features.column("label")] == [expected[name][1]["label"] for name in stem]
    assert features.spec.title == "imported: somebody's ViT"


def test_the_layout_and_the_order_of_the_source_do_not_count(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    first, _ = run(as_npy(tmp_path / "a"), tmp_path / "store")
    second, _ = run(as_parquet(tmp_path / "b"), tmp_path / "store")
    assert second.feature_set == first.feature_set
    assert (second.committed, second.already) == (0, first.total)
    np.save(tmp_path / "c" / "v.npy", vectors()[::-1])
    write_csv(tmp_path / "c" / "v.csv", rows()[::-1])
    assert run(f"npy:{tmp_path / 'c' / 'v.npy'}", tmp_path / "store")[0].feature_set == first.feature_set
    changed = vectors()
    changed[7, 3] += 1e-6
    np.save(tmp_path / "d" / "v.npy", changed)
    write_csv(tmp_path / "d" / "v.csv", rows())
    other, _ = run(f"npy:{tmp_path / 'd' / 'v.npy'}", tmp_path / "store")
    assert other.feature_set != first.feature_set
    assert other.feature_set.split("/")[0] == first.feature_set.split("/")[0]


@pytest.mark.parametrize("change", [{"model": "another"}, {"layer": 2}, {"fit": "crop"}, {"storage": "float16"}])
def test_what_the_user_states_is_part_of_the_identity(tmp_path: Path, change: dict[str, Any]) -> None:
    source = as_npy(tmp_path)
    _, plain = run(source, tmp_path / "store")
    _, stated = run(source, tmp_path / "store", **change)
    assert stated.digest != plain.digest


def test_selections_fit_the_sets_of_one_stated_model_and_no_other(tmp_path: Path) -> None:
    source = as_npy(tmp_path)
    statements: list[dict[str, Any]] = [{}, {"storage": "float16"}, {"model": "another"}]
    sets = [run(source, tmp_path / "store", **statement)[1] for statement in statements]
    weights = [features.spec.identity.weights_sha256 for features in sets]
    assert weights[0] == weights[1] != weights[2]


def test_knn_and_linear_agree_with_scikit_learn_on_imported_vectors(tmp_path: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    _, features = run(as_npy(tmp_path), tmp_path / "store")
    values, table = vectors(), rows()
    train = np.array([row["split"] == "train" for row in table])
    labels = np.array([CLASSES.index(row["label"]) for row in table])
    for k in (1, 3):
        model = KNeighborsClassifier(k, metric="cosine").fit(values[train], labels[train])
        result = evaluate_knn(features, KnnParameters(subject=Subject(on="cls"), k=k, metric="cosine"))
        assert result.scores.accuracy == model.score(values[~train], labels[~train])  # type: ignore[union-attr]
    linear = evaluate_linear(features, LinearParameters(subject=Subject(on="cls")))
    assert linear.to_json()["accuracy"] >= 0.8  # the clouds lie six deviations apart


@pytest.mark.parametrize("storage", ["auto", "float32"])
def test_half_precision_stays_half_precision_unless_asked(tmp_path: Path, storage: str) -> None:
    np.save(tmp_path / "v.npy", vectors().astype(np.float16))
    write_csv(tmp_path / "v.csv", rows())
    _, features = run(f"npy:{tmp_path / 'v.npy'}", tmp_path / "store", storage=storage)
    assert features.read("last", "cls").dtype == (np.float16 if storage == "auto" else np.float32)


def tokens() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A class token, two registers and 2 x 4 patches a row."""
    return np.random.default_rng(8).normal(size=(N, 11, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("layout", ["npy", "parquet", "pt"])
def test_tokens_before_the_patches_become_cls_and_registers(tmp_path: Path, layout: str) -> None:
    table = [{**row, "uri": f"{index:02d}.png"} for index, row in enumerate(rows())]
    write_csv(tmp_path / "rows.csv", table)
    (tmp_path / "pt").mkdir()
    np.save(tmp_path / "v.npy", tokens())
    flat = pa.array(tokens().reshape(-1))
    nested = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, WIDTH), 11)
    pq.write_table(pa.table({"tokens": nested}), tmp_path / "v.parquet")
    for index, some in enumerate(torch.from_numpy(tokens())):
        torch.save(some, tmp_path / "pt" / f"{index:02d}.pt")
    place = {"npy": "v.npy", "parquet": "v.parquet", "pt": "pt"}[layout]
    options = ImportOptions(rows=tmp_path / "rows.csv", prefix_tokens=3)
    _, features = run(f"{layout}:{tmp_path / place}", tmp_path / "store", options=options, grid=(2, 4))
    assert features.spec.grid == (2, 4)
    np.testing.assert_array_equal(features.read("last", "cls"), tokens()[:, 0])
    np.testing.assert_array_equal(features.read("last", "registers"), tokens()[:, 1:3])
    np.testing.assert_array_equal(features.read("last", "patches"), tokens()[:, 3:])


def test_batches_in_pt_files_bring_their_labels_and_paths(tmp_path: Path) -> None:
    (tmp_path / "pt").mkdir()
    half = torch.from_numpy(vectors()).to(torch.bfloat16)
    for number, part in enumerate((slice(0, 25), slice(25, N))):
        some = rows()[part]
        labels = torch.tensor([CLASSES.index(row["label"]) for row in some])
        batch = {"features": half[part], "labels": labels, "paths": [row["uri"] for row in some]}
        torch.save(batch, tmp_path / "pt" / f"{number}.pt")
    _, features = run(f"pt:{tmp_path / 'pt'}", tmp_path / "store", options=ImportOptions(batched=True))
    expected = {row["uri"]: (value, row) for row, value in zip(rows(), half.float().numpy(), strict=True)}
    uris = features.column("uri")
    np.testing.assert_array_equal(features.read("last", "cls"), [expected[uri][0] for uri in uris])
    assert features.column("label") == [CLASSES.index(expected[uri][1]["label"]) for uri in uris]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Six images in two splits with masks of 2 x 4 squares; classes and void stand in dataset.json."""
    root = tmp_path / "scenes"
    random = np.random.default_rng(2)
    for split in ("train", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(3):
            mask = np.kron(random.integers(0, 3, (2, 4), dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
            mask[mask == 2] = 255
            Image.fromarray(random.integers(0, 256, (16, 32, 3), dtype=np.uint8)).save(root / split / f"{index}.png")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{index}.png")
    (root / "dataset.json").write_text(json.dumps({"name": "scenes", "classes": ["sky", "road"], "void": 255}))
    return root


def test_with_a_root_the_views_are_those_of_an_extraction_and_patches_have_labels(tmp_path: Path, scenes: Path) -> None:
    made = open_dataset(f"segmentation:{scenes}")
    table = made.table.select(["uri", "split", "mask_uri"]).to_pylist()[::-1]
    # One feature that is the class itself, so that 1-NN must be perfect wherever the bank has the class.
    masks = {row["uri"]: mask for row, mask in zip(made.table.to_pylist(), made.iter_masks(), strict=True)}
    patches = np.zeros((len(table), 8, 2), dtype=np.float32)
    for index, row in enumerate(table):
        mask = masks[row["uri"]]
        assert mask is not None
        patches[index, :, 0] = mask[4::8, 4::8].reshape(-1)
        patches[index, :, 1] = 1
    np.save(tmp_path / "v.npy", patches)
    write_csv(tmp_path / "v.csv", table)
    source = f"npy:{tmp_path / 'v.npy'}"
    options = ImportOptions(root=scenes)
    found = open_vectors(source, options)
    imported = imported_dataset(found, DatasetOptions(), root=scenes)
    statement = ImportStatement(model="mask reader", grid=(2, 4))
    outcome = import_vectors(found, imported, statement, store=str(tmp_path / "store"))
    features = open_store(str(tmp_path / "store")).features()
    assert imported.dataset.table.equals(made.table)
    assert outcome.feature_set.startswith("scenes-")
    result = evaluate_knn(features, KnnParameters(k=1, metric="l2"))
    assert result.scores.miou == 1.0  # type: ignore[union-attr]


def test_pt_files_find_their_images_by_stem(tmp_path: Path, scenes: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "pt" / split).mkdir(parents=True)
        for index in range(3):
            torch.save(torch.ones(4) * index, tmp_path / "pt" / split / f"{index}.pt")
    _, features = run(f"pt:{tmp_path / 'pt'}", tmp_path / "store", options=ImportOptions(root=scenes), root=scenes)
    assert features.column("uri") == [f"{split}/{index}.png" for split in ("test", "train") for index in range(3)]
    contents = [hashlib.sha256((scenes / uri).read_bytes()).hexdigest() for uri in features.column("uri")]
    assert features.column("image_sha256") == contents


def test_rows_that_are_not_finite_become_invalid_rows(tmp_path: Path) -> None:
    values = vectors()
    values[3, 0], values[9, 1], values[11, 2] = np.nan, np.inf, 1e6
    np.save(tmp_path / "v.npy", values)
    write_csv(tmp_path / "v.csv", rows())
    outcome, features = run(f"npy:{tmp_path / 'v.npy'}", tmp_path / "store", storage="float16")
    assert outcome.invalid == {"non_finite": 3}
    broken = sorted(rows()[place]["uri"] for place in (3, 9, 11))
    assert [features.column("uri")[entry.row] for entry in features.invalid_rows] == broken
    assert outcome.first_invalid == broken[0]
    assert not features.read("last", "cls", [entry.row for entry in features.invalid_rows]).any()


def test_an_import_that_is_stopped_and_run_again_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_npy(tmp_path)
    whole, _ = run(source, tmp_path / "whole")
    assert whole.total > 3
    real = run_module._commit_shard
    left = 2

    def stop_after_two(*arguments: Any) -> None:
        nonlocal left
        real(*arguments)
        left -= 1
        if left == 0:
            stop_requested.set()

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_commit_shard", stop_after_two)
        stopped, _ = run(source, tmp_path / "store")
    assert (stopped.committed, stopped.total) == (2, whole.total)
    rest, _ = run(source, tmp_path / "store")
    assert (rest.committed, rest.already) == (whole.total - 2, 2)
    features = [sorted((tmp_path / name / "features").rglob("*")) for name in ("whole", "store")]
    contents = [{p.relative_to(p.parents[-3]).name: p.read_bytes() for p in some if p.is_file()} for some in features]
    assert [len(some) for some in features] == [len(features[0])] * 2
    assert contents[0] == contents[1]


def test_a_source_that_changes_between_the_passes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_npy(tmp_path)
    real = run_module._commit

    def change_first(*arguments: Any) -> Any:
        file = np.load(tmp_path / "v.npy", mmap_mode="r+")
        file[0] += 1
        file.flush()
        return real(*arguments)

    monkeypatch.setattr(run_module, "_commit", change_first)
    with pytest.raises(StoreError, match="changed while it was imported"):
        run(source, tmp_path / "store")


def npy(folder: Path, values: np.ndarray[Any, Any], table: Sequence[dict[str, Any]] | None = None) -> str:
    np.save(folder / "v.npy", values, allow_pickle=True)
    write_csv(folder / "v.csv", table or rows())
    return f"npy:{folder / 'v.npy'}"


def parquet(folder: Path, column: Any) -> str:
    pq.write_table(
        pa.table({"uri": [f"{index}.png" for index in range(len(column))], "vector": column}), folder / "v.parquet"
    )
    return f"parquet:{folder / 'v.parquet'}"


def cut_npy(folder: Path) -> str:
    source = npy(folder, vectors())
    whole = (folder / "v.npy").read_bytes()
    (folder / "v.npy").write_bytes(whole[: len(whole) // 2])
    return source


def clip_without_metadata(folder: Path) -> str:
    source = as_clip_retrieval(folder)
    (folder / "metadata" / "metadata_03.parquet").unlink()
    return source


def clip_of_other_counts(folder: Path) -> str:
    source = as_clip_retrieval(folder)
    np.save(folder / "img_emb" / "img_emb_03.npy", vectors()[:9])
    return source


def pt(folder: Path, *contents: Any) -> str:
    for index, content in enumerate(contents):
        torch.save(content, folder / f"{index}.pt")
    return f"pt:{folder}"


class Canary:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def hostile_pt(folder: Path) -> str:
    return pt(folder, {"cls": Canary()})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: npy(folder, vectors()[:-1]), r"39 rows of cls, and 40 rows say what they are"),
        (lambda folder: npy(folder, vectors().astype(np.int32)), r"v\.npy holds int32; vectors are float16"),
        (lambda folder: npy(folder, np.array([Canary()] * N, dtype=object)), r"cannot be read as an npy file"),
        (lambda folder: npy(folder, vectors()[:, 0]), r"has shape \[40\]; vectors are \[rows, features\]"),
        (
            lambda folder: npy(folder, np.full((N, 3), np.nan, dtype=np.float32)),
            r"no row of .* has values that are fin",
        ),
        (lambda folder: npy(folder, tokens()), r"11 patches a row, which do not fill a square; state --grid"),
        (lambda folder: npy(folder, vectors(), [{"split": "train"}] * N), r"row 0 of the vectors: a row has no uri"),
        (
            lambda folder: npy(folder, vectors(), [{"uri": "a.png"}] * N),
            r"row 1 of the vectors: a view of 'a\.png' stands .* twice, first in row 0 of the vectors",
        ),
        (lambda folder: npy(folder, vectors(), [{"uri": f"../{i}.png"} for i in range(N)]), r"not inside the dataset"),
        (
            lambda folder: npy(folder, vectors(), [{"uri": f"{i}.png", "mask_uri": f"{i}.m.png"} for i in range(N)]),
            r"40 rows name masks, such as '0\.m\.png', and nobody says where they are; give their folder with --root",
        ),
        (cut_npy, r"v\.npy cannot be read as an npy file of numbers"),
        (lambda folder: f"npy:{folder / 'none.npy'}", r"none\.npy does not exist"),
        (lambda folder: f"npy:{folder}", r"holds none of cls\.npy, patches\.npy and registers\.npy"),
        (lambda folder: parquet(folder, [[1.0, 2.0], [1.0]]), r"lists of 1 and of 2 numbers in rows 0 to 1"),
        (lambda folder: parquet(folder, [[1.0, 2.0], None]), r"has no vector in a row of rows 0 to 1"),
        (lambda folder: parquet(folder, [[1.0, 2.0], [None, 1.0]]), r"has nulls inside vectors of rows 0 to 1"),
        (lambda folder: parquet(folder, ["a", "b"]), r"has no column of lists of numbers"),
        (clip_without_metadata, r"not a whole output of clip-retrieval: partition 3 has no partner"),
        (clip_of_other_counts, r"img_emb_03\.npy has 9 vectors and metadata_03\.parquet 4 rows"),
        (lambda folder: f"clip-retrieval:{folder}", r"no img_emb/img_emb_0\.npy stands there"),
        (
            lambda folder: pt(folder, torch.ones(4), torch.ones(5)),
            r"1\.pt has rows of \[5\] float32, and those before it",
        ),
        (
            lambda folder: pt(folder, torch.ones(4), {"patches": torch.ones(4, 4)}),
            r"holds \['patches'\], and the files b",
        ),
        (lambda folder: pt(folder, torch.ones(2, 3, 4)), r"shape \[2, 3, 4\].*a file of many views needs --batched"),
        (lambda folder: pt(folder, {"a": torch.ones(3)}), r"holds \['a'\]; name the tensors among patches"),
        (lambda folder: pt(folder, torch.ones(3, dtype=torch.int64)), r"holds int64; vectors are float16"),
        (
            lambda folder: pt(folder, torch.ones(1).expand(1 << 40)),
            r"in a form that is not \[1099511627776\] plain num",
        ),
        (hostile_pt, r"hold objects other than tensors, which loading would execute"),
        (lambda folder: f"pt:{folder}", r"no \.pt file under"),
        (lambda folder: f"pickle:{folder}", r"source 'pickle:.*' is not known; write npy:FILE"),
    ],
)
def test_what_does_not_fit_is_refused_and_no_store_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], str], message: str
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((StoreError, ValueError), match=message):
        run(source(tmp_path / "in"), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"foo": "uri"}, r"--column foo=uri: a manifest has no column 'foo'; it has view_id, image_sha256, uri"),
        ({"uri": "nope"}, r"has no column 'nope' to take uri from; it has 'uri', 'split', 'label'\. Name one of them"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, columns: dict[str, str], message: str, suffix: str
) -> None:
    np.save(tmp_path / "v.npy", vectors())
    table = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows()), table)
    elif suffix == "csv":
        write_csv(table, rows())
    else:
        table.write_text("\n".join(map(json.dumps, rows())))
    with pytest.raises(ImportRefusedError, match=message):
        open_vectors(f"npy:{tmp_path / 'v.npy'}", ImportOptions(rows=table, columns=columns))


def test_a_grid_for_vectors_without_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"--grid 3x3 has no meaning here: .*v\.npy has no patches"):
        run(as_npy(tmp_path), tmp_path / "store", grid=(3, 3))
    assert not (tmp_path / "store").exists()


def test_a_refused_import_leaves_the_annotations_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "v.npy", tokens()[:, 3:])
    source = f"npy:{tmp_path / 'v.npy'}"
    write_csv(tmp_path / "v.csv", rows())
    run(source, tmp_path / "store", grid=(2, 4))
    before = files_of(tmp_path / "store")
    write_csv(tmp_path / "v.csv", [{**row, "label": CLASSES[0]} for row in rows()])
    with pytest.raises(IdentityMismatchError, match="grid"):
        run(source, tmp_path / "store", grid=(4, 2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(StoreError, match="free"):
        run(source, tmp_path / "store", model="another", grid=(2, 4))
    assert files_of(tmp_path / "store") == before


@pytest.mark.parametrize("to", ["npy", "parquet"])
def test_an_export_comes_back_under_the_name_of_its_dataset(tmp_path: Path, to: str) -> None:
    _, features = run(as_npy(tmp_path), tmp_path / "store")
    place = tmp_path / ("out" if to == "npy" else "out.parquet")
    export_features(ExportSubject(features), to, place)
    found = open_vectors(f"{to}:{place}")
    assert imported_dataset(found, DatasetOptions(), root=None).dataset.spec.name == "pets"
    assert imported_dataset(found, DatasetOptions(name="mine"), root=None).dataset.spec.name == "mine"


def test_images_that_cannot_be_read_under_the_root_are_counted(tmp_path: Path, scenes: Path) -> None:
    table = [{"uri": "train/0.png"}, {"uri": "train/9.png"}, {"uri": "train/8.png"}]
    np.save(tmp_path / "v.npy", np.ones((3, 4), dtype=np.float32))
    write_csv(tmp_path / "v.csv", table)
    with pytest.raises(
        StoreError, match=r"2 of 3 images cannot be read under .* \(the first is 'train/8\.png': missing\)"
    ):
        run(f"npy:{tmp_path / 'v.npy'}", tmp_path / "store", root=scenes)
