"""`manifest:FILE` as CSV and JSON lines: the same as Parquet, bounded, and every wrong line is named."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_store.canonical import canonical_json
from feature_store.errors import ManifestError
from feature_store.manifest import MANIFEST_SCHEMA
from pipelines.datasets import Dataset, DatasetOptions, open_dataset, text_table

ROWS: list[dict[str, Any]] = [
    {
        "uri": "a.png",
        "tile": {"x": 5, "y": 0, "width": 5, "height": 5},
        "transform": {"name": "resize", "parameters": '{"height":5,"width":10}'},
        "ground_sample_distance_m": 0.25,
        "split": "train",
        "label": 2,
        "sequence": 'a "quoted", name\nof two lines',
        "frame": 4,
        "objects": [
            {
                "box": {"x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0},
                "instance_id": 1,
                "category": 0,
                "polygon": [0.5, 1.5],
            }
        ],
    },
    {"uri": "b.png", "split": "test", "label": 0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (10, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def opened(path: Path) -> Dataset:
    return open_dataset(f"manifest:{path}")


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST_SCHEMA.names)
        for row in ROWS:
            cells = [row.get(name, "") for name in MANIFEST_SCHEMA.names]
            writer.writerow([canonical_json(cell) if isinstance(cell, dict | list) else cell for cell in cells])
    return path


def test_csv_json_lines_and_parquet_make_one_manifest(folder: Path) -> None:
    lines = written(folder / "rows.jsonl", "\n\n".join(map(json.dumps, ROWS)))
    from_lines = opened(lines).table
    assert from_lines.num_rows == 2
    assert opened(as_csv(folder / "rows.csv")).table.equals(from_lines)
    pq.write_table(from_lines, folder / "rows.parquet")
    assert opened(folder / "rows.parquet").table.equals(from_lines)


def test_a_byte_order_mark_and_blank_lines_are_no_content(folder: Path) -> None:
    path = written(folder / "rows.csv", b"\xef\xbb\xbfuri,split\r\n\r\na.png,train\r\n\r\n")
    assert opened(path).table["split"].to_pylist() == ["train"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "uri,frame\na.png,1\nb.png,cat\n", r"x\.csv, line 3 has 'cat' in column 'frame', which holds int32"),
        (
            "x.csv",
            "uri,label\na.png,1\nb.png,99999\n",
            r"x\.csv, line 3: label 99999: class numbers go from 0 to 65535",
        ),
        ("x.csv", 'uri,sequence\n"a\n.png",s\nb.png\n', r"line 4 has 1 cells, and the header has 2"),
        ("x.csv", "uri,uri\na.png,b.png\n", r"line 1 has a column twice"),
        ("x.csv", "split\ntrain\n", r"a column 'uri' is needed, the path of each image; it has \['split'\]"),
        ("x.csv", "uri\n", r"has no rows"),
        ("x.csv", "", r"has no rows"),
        ("x.csv", "uri,tile\na.png,[1\n", r"line 2 has '\[1' in column 'tile'"),
        (
            "x.csv",
            'uri,tile\na.png,"{""x"":""left""}"\n',
            r"""in column 'tile', which holds values such as {"x":0,"y":""",
        ),
        ("x.csv", "uri,tile\na.png,5\n", r"""line 2 has 5 in column 'tile', which holds values such as {"x":0"""),
        ("x.jsonl", '{"uri":"a.png","objects":[7]}\n', r"""line 1 has \[7\] in column 'objects'.* such as \[{"box":"""),
        ("x.jsonl", '{"uri":"a.png"}\n{"uri":"b.png","uri":"c.png"}\n', r"line 2 is not .* 'uri' stands there twice"),
        ("x.jsonl", '{"uri":"a.png","tile":{"x":1,"x":2}}\n', r"line 1 is not one JSON object: .* 'x' stands there tw"),
        ("x.csv", 'uri,tile\na.png,"{""x"":1,""x"":2}"\n', r"line 2 has '{\"x\":1,\"x\":2}' in column 'tile'"),
        ("x.csv", "uri\nb.png\n\na.png\nb.png\n", r"line 5: a view of 'b\.png' stands .* twice, first in line 2"),
        ("x.csv", 'uri\n"a.png"x\n', r"line 2 is not CSV"),
        ("x.csv", "uri\na\0.png\n", r"line 2 holds a NUL"),
        ("x.csv", b"uri\n\xff\xfe.png\n", r"is not UTF-8"),
        ("x.csv", "uri,ground_sample_distance_m\na.png,nan\n", r"line 2 has NaN in column 'ground_sample"),
        (
            "x.csv",
            "uri,ground_sample_distance_m\na.png,0\n",
            r"x\.csv, line 2: ground_sample_distance_m 0.0: .* above 0",
        ),
        (
            "x.csv",
            "uri,ground_sample_distance_m\na.png,-1\n",
            r"line 2: ground_sample_distance_m -1.0: write the metres",
        ),
        (
            "x.csv",
            "uri,ground_sample_distance_m\na.png,1e300\n",
            r"ground_sample_distance_m 1e\+300: .* at most 6.4e\+06",
        ),
        ("x.csv", "uri,label\na.png,-4\n", r"x\.csv, line 2: label -4: class numbers go from 0 to 65535"),
        ("x.csv", f"uri,split\na.png,{'s' * 5000}\n", r"line 2 has a text of more than 4096 bytes in column 'split'"),
        ("x.jsonl", '{"uri":"a.png"}\n\n{"uri":"b.png"\n', r"x\.jsonl, line 3 is not one JSON object"),
        (
            "x.jsonl",
            '{"uri":"a.png","label":1.5}\n',
            r"line 1 has 1\.5 in column 'label', which holds a class number or a class name",
        ),
        ("x.jsonl", '{"uri":"a.png","label":true}\n', r"line 1 has true in column 'label'"),
        ("x.jsonl", '{"uri":7}\n', r"line 1 has 7 in column 'uri', which holds string"),
        ("x.jsonl", "[1]\n", r"line 1 is not one JSON object"),
        ("x.jsonl", "[" * 100_000 + "\n", r"line 1 is not one JSON object"),
        ("x.jsonl", '{"uri":"../a.png"}\n', r"line 1: path '\.\./a\.png' is not inside the dataset's root"),
        ("x.ndjson", '{"split":"train"}\n', r"a column 'uri' is needed"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(folder: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        opened(written(folder / name, text))


@pytest.mark.parametrize("column", ["tile", "transform", "objects"])
def test_the_examples_in_messages_are_values_of_their_columns(folder: Path, column: str) -> None:
    example = text_table._EXAMPLES[column]
    line = f'{{"uri":"a.png","image_sha256":"{"0" * 64}","{column}":{example}}}\n'
    assert opened(written(folder / "x.jsonl", line)).table[column][0].as_py() is not None


def test_rows_and_bytes_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder / "x.csv", "uri\na.png\nb.png\n")
    monkeypatch.setattr(text_table, "MAX_ROWS", 1)
    with pytest.raises(ManifestError, match="has more than 1 rows"):
        opened(path)
    monkeypatch.setattr(text_table, "MAX_FILE_BYTES", 10)
    with pytest.raises(ManifestError, match="has 16 bytes; at most 10 are read"):
        opened(path)


def test_a_line_beyond_the_bound_is_not_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_table, "_MAX_LINE_BYTES", 64)
    with pytest.raises(ManifestError, match="line 2 has more than 64 characters"):
        opened(written(folder / "x.csv", "uri\n" + "a" * 100 + "\n"))


def test_rows_of_many_batches_keep_their_order_and_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_table, "_ROWS_PER_BATCH", 3)
    rows = [f'{{"uri":"{index:02d}.png","frame":{index}}}' for index in range(10)]
    types = {field.name: field.type for field in MANIFEST_SCHEMA}
    read = text_table.read_text_table(written(folder / "x.jsonl", "\n".join(rows)), types)
    assert read.table.column_names == ["uri", "frame"]
    assert read.table["frame"].to_pylist() == list(range(10))
    assert list(read.lines) == list(range(1, 11))


def test_absolute_paths_inside_the_root_become_relative(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "photos"
    link.symlink_to(folder)
    text = f"uri\n{folder}/a.png\n{link}/b.png\n"
    assert opened(written(link / "x.csv", text)).table["uri"].to_pylist() == ["a.png", "b.png"]


@pytest.mark.parametrize("path", ["/etc/passwd", "{folder}/../x.png", "{folder}-other/a.png", "{folder}"])
def test_an_absolute_path_elsewhere_is_refused_with_the_root_and_the_way_out(folder: Path, path: str) -> None:
    with pytest.raises(ManifestError, match=r"x\.csv, line 2: path .* is not under the dataset's root .* with --root"):
        opened(written(folder / "x.csv", f"uri\n{path.format(folder=folder)}\n"))


def test_two_spellings_of_a_path_are_one_image(folder: Path) -> None:
    assert opened(written(folder / "x.csv", "uri\n./a.png\n.//b.png\n")).table["uri"].to_pylist() == ["a.png", "b.png"]
    with pytest.raises(
        ManifestError, match=r"line 3: a view of 'a\.png' stands in the manifest twice, first in line 2"
    ):
        opened(written(folder / "x.csv", "uri\na.png\n./a.png\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_labels_may_be_class_names(folder: Path, name: str) -> None:
    path = folder / name
    if name == "x.csv":
        written(path, "uri,label\na.png,dog\nb.png,cat\n")
    elif name == "x.jsonl":
        written(path, '{"uri":"a.png","label":"dog"}\n{"uri":"b.png","label":"cat"}\n')
    else:
        pq.write_table(pa.table({"uri": ["a.png", "b.png"], "label": ["dog", "cat"]}), path)
    dataset = opened(path)
    assert (dataset.spec.classes, dataset.table["label"].to_pylist()) == (("cat", "dog"), [1, 0])
    stated = open_dataset(f"manifest:{path}", options=DatasetOptions(classes=("bird", "dog", "cat")))
    assert stated.table["label"].to_pylist() == [1, 2]
    with pytest.raises(ManifestError, match=r"label 'dog' is none of the 1 classes \('cat'\).* to --classes"):
        open_dataset(f"manifest:{path}", options=DatasetOptions(classes=("cat",)))


@pytest.mark.parametrize("text", ["uri,label\na.png,1.0\nb.png,\n", "uri,label\na.png,1\nb.png,\n"])
def test_whole_numbers_with_gaps_as_pandas_writes_them_are_class_numbers(folder: Path, text: str) -> None:
    dataset = opened(written(folder / "x.csv", text))
    assert (dataset.spec.classes, dataset.table["label"].to_pylist()) == (("0", "1"), [1, None])


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_columns_that_no_manifest_has_are_counted_and_named(folder: Path, name: str) -> None:
    path = folder / name
    if name == "x.csv":
        written(path, "uri,width,lable\na.png,4,dog\n")
    elif name == "x.jsonl":
        written(path, '{"uri":"a.png","width":4}\n{"uri":"b.png","lable":"dog"}\n')
    else:
        pq.write_table(pa.table({"uri": ["a.png"], "width": [4], "lable": ["dog"]}), path)
    passed = opened(path).findings[0]
    assert (passed.what, passed.count, passed.names) == ("columns that no manifest has", 2, ("lable", "width"))


def test_tab_separated_values_are_read(folder: Path) -> None:
    dataset = opened(written(folder / "x.tsv", "uri\tsplit\na.png\ttrain, part 1\n"))
    assert dataset.table["split"].to_pylist() == ["train, part 1"]


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("x.csv", "uri;label", r"header 'uri;label' is separated by ';', and \.csv is read with commas\. Separate by"),
        ("x.csv", "uri\tlabel", r"is separated by '\\t', and \.csv is read with commas\. .* tabs in a \.tsv"),
        ("x.tsv", "label , uri", r"is separated by ',', and \.tsv is read with tabs\. Separate by commas in a \.csv"),
    ],
)
def test_a_header_with_another_separator_is_told_from_one_without_paths(
    folder: Path, name: str, header: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        opened(written(folder / name, f"{header}\n{header}\n"))


@pytest.mark.parametrize(
    ("name", "said"), [("m.txt", r"ends in '\.txt'"), ("m.json", r"ends in '\.json'"), ("m", r"has no ending")]
)
def test_a_table_whose_name_does_not_say_its_form_is_refused_with_the_endings(
    folder: Path, name: str, said: str
) -> None:
    with pytest.raises(ManifestError, match=rf"is no Parquet, and its name {said}.*\.csv .*\.tsv .*\.jsonl and"):
        opened(written(folder / name, "uri\na.png\n"))


def test_parquet_is_read_under_any_name(folder: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.png"]}), folder / "m.txt")
    assert opened(folder / "m.txt").table["uri"].to_pylist() == ["a.png"]


@pytest.mark.parametrize("path", ["images\\a.png", "C:\\images\\a.png", ".\\a.png"])
def test_paths_of_windows_are_refused_as_such(folder: Path, path: str) -> None:
    with pytest.raises(ManifestError, match=r"none of the 1 images is there.* with backslashes.* write '/' instead"):
        opened(written(folder / "x.csv", f"uri\n{path}\n"))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_space_around_labels_and_splits_is_no_part_of_them(folder: Path, name: str) -> None:
    labels, splits = [" cat", "cat "], ["train ", "train"]
    rows = {"uri": ["a.png", "b.png"], "label": labels, "split": splits}
    path = folder / name
    if name == "x.csv":
        written(path, "uri,label,split\na.png, cat,train \nb.png,cat ,train\n")
    elif name == "x.jsonl":
        written(
            path, "\n".join(json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True))
        )
    else:
        pq.write_table(pa.table(rows), path)
    dataset = opened(path)
    assert (dataset.spec.classes, dataset.table["label"].to_pylist()) == (("cat",), [0, 0])
    assert dataset.table["split"].to_pylist() == ["train", "train"]


@pytest.mark.parametrize("word", ["NaN", "nan", "None", "NA", " NULL "])
@pytest.mark.parametrize(("label", "classes"), [("cat", ("cat",)), ("1", ("0", "1"))])
def test_words_for_a_missing_value_are_no_class_and_are_told(
    folder: Path, word: str, label: str, classes: tuple[str, ...]
) -> None:
    path = written(folder / "x.csv", f"uri,label\na.png,{word}\nb.png,{label}\n")
    dataset = opened(path)
    assert (dataset.spec.classes, dataset.table["label"].to_pylist()) == (classes, [None, len(classes) - 1])
    (told,) = [found for found in dataset.findings if found.kind == "labels"]
    assert (told.count, told.names) == (1, (word.strip(),))
    stated = open_dataset(f"manifest:{path}", options=DatasetOptions(classes=(word.strip(), label)))
    assert stated.table["label"].to_pylist() == [0, 1]


def test_a_class_called_none_stays_a_class(folder: Path) -> None:
    assert opened(written(folder / "x.csv", "uri,label\na.png,none\nb.png,cat\n")).spec.classes == ("cat", "none")


def test_numbers_among_names_are_told(folder: Path) -> None:
    dataset = opened(written(folder / "x.csv", "uri,label\na.png,10\nb.png,cat\n"))
    assert dataset.spec.classes == ("10", "cat")
    (told,) = [found for found in dataset.findings if found.kind == "labels"]
    assert (told.kind, told.names) == ("labels", ("10",))


def test_gaps_in_class_numbers_are_told_with_the_first_numbers_alone(folder: Path) -> None:
    dataset = opened(written(folder / "x.csv", "uri,label\na.png,60000\nb.png,1\n"))
    (told,) = [found for found in dataset.findings if found.kind == "class_without_images"]
    assert (told.kind, told.count) == ("class_without_images", 59_999)
    assert told.names == ("0", "2", "3", "4", "5", "6", "7", "8", "9", "10")
    assert told.detail == "labels have gaps: 2 of the numbers from 0 to 60000 are used"
