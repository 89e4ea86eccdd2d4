"""`manifest:FILE`: a user's Parquet with no more than paths, with everything, and with what must be refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from feature_store.errors import ManifestError
from feature_store.manifest import MANIFEST_SCHEMA, views_digest
from pipelines.datasets import Dataset, DatasetOptions, open_dataset
from pipelines.datasets.manifest_file import MAX_PARQUET_ROWS
from pipelines.datasets.text_table import MAX_TEXT

RANDOM = np.random.default_rng(3)
KEY = "0" * 64


def _tile(x: int, y: int) -> dict[str, int]:
    return {"x": x, "y": y, "width": 5, "height": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.fromarray(RANDOM.integers(0, 256, (10, 20, 3), dtype=np.uint8)).save(tmp_path / name)
    Image.fromarray(RANDOM.integers(0, 2, (10, 20), dtype=np.uint8)).save(tmp_path / "mask.png")
    return tmp_path


def opened(folder: Path, columns: dict[str, Any], **options: Any) -> Dataset:
    pq.write_table(pa.table(columns), folder / "views.parquet")
    return open_dataset(f"manifest:{folder / 'views.parquet'}", options=DatasetOptions(**options))


def test_paths_alone_are_enough(folder: Path) -> None:
    dataset = opened(folder, {"uri": ["b.png", "a.png"]})
    rows = dataset.table.to_pylist()
    assert [row["uri"] for row in rows] == ["a.png", "b.png"]
    for row in rows:
        assert row["image_sha256"] == hashlib.sha256((folder / row["uri"]).read_bytes()).hexdigest()
    assert dataset.spec.classes == ()


def test_manifest_of_an_adapter_comes_back_the_same(folder: Path) -> None:
    made = open_dataset(f"images:{folder}", options=DatasetOptions(tile=10))
    pq.write_table(made.table, folder / "views.parquet")
    again = open_dataset(f"manifest:{folder / 'views.parquet'}")
    assert again.table.equals(made.table)


def test_all_columns_are_carried_over(folder: Path) -> None:
    row = {
        "uri": "a.png",
        "tile": {"x": 5, "y": 0, "width": 5, "height": 5},
        "transform": {"name": "resize", "parameters": '{"height":5,"width":10}'},
        "ground_sample_distance_m": 0.3,
        "split": "train",
        "label": 2,
        "sequence": "s",
        "frame": 4,
        "objects": [
            {"box": {"x": 0, "y": 0, "width": 2, "height": 2}, "instance_id": 7, "category": 1, "polygon": None}
        ],
        "source_view_id": "0" * 32,
    }
    schema = pa.schema([field for field in MANIFEST_SCHEMA if field.name in row])
    pq.write_table(pa.Table.from_pylist([row], schema=schema), folder / "views.parquet")
    dataset = open_dataset(f"manifest:{folder / 'views.parquet'}")
    found = dataset.table.to_pylist()[0]
    assert {name: found[name] for name in row} == row
    # Labels without names are numbered.
    assert dataset.spec.classes == ("0", "1", "2")


def test_dictionary_and_wider_types_are_cast(folder: Path) -> None:
    dataset = opened(
        folder,
        {
            "uri": pa.array(["a.png", "b.png"]).dictionary_encode(),
            "split": pa.array(["train", None], pa.large_string()),
            "label": pa.array([0, 1], pa.int64()),
        },
        classes=("cat", "dog"),
    )
    assert dataset.table.schema.equals(MANIFEST_SCHEMA)
    assert dataset.table["split"].to_pylist() == ["train", None]
    assert dataset.spec.classes == ("cat", "dog")


def test_given_keys_are_taken_and_missing_ones_computed(folder: Path) -> None:
    dataset = opened(folder, {"uri": ["a.png", "b.png"], "image_sha256": [KEY, None]})
    expected = [KEY, hashlib.sha256((folder / "b.png").read_bytes()).hexdigest()]
    assert dataset.table["image_sha256"].to_pylist() == expected


def test_paths_may_be_relative_to_another_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    dataset = opened(elsewhere, {"uri": ["a.png"]}, root=folder)
    assert dataset.root == folder.resolve()
    assert views_digest(dataset.table) == views_digest(opened(folder, {"uri": ["a.png"]}).table)


def test_views_without_tiles_are_cut(folder: Path) -> None:
    dataset = opened(folder, {"uri": ["a.png"], "split": ["test"]}, tile=10)
    assert [tile["x"] for tile in dataset.table["tile"].to_pylist()] == [0, 10]
    assert dataset.table["split"].to_pylist() == ["test", "test"]


def test_masks_are_cut_to_the_views(folder: Path) -> None:
    columns = {"uri": ["a.png", "b.png"], "mask_uri": ["mask.png", None]}
    masks = list(opened(folder, columns, tile=10, classes=("no", "yes")).iter_masks())
    with Image.open(folder / "mask.png") as image:
        expected = np.asarray(image)
    assert masks[0] is not None
    assert masks[1] is not None
    assert np.array_equal(np.concatenate([masks[0], masks[1]], axis=1), expected)
    assert masks[2:] == [None, None]


def test_missing_image_keeps_its_row(folder: Path) -> None:
    dataset = opened(folder, {"uri": ["a.png", "gone.png"]})
    assert dataset.table["image_sha256"].to_pylist()[1] == "missing"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"url": ["a.png"]}, {}, r"a column 'uri' is needed, the path of each image; it has \['url'\]"),
        ({"split": ["train"]}, {}, "a column 'uri' is needed"),
        ({"uri": pa.array([], pa.string())}, {}, "has no rows"),
        ({"uri": pa.array([None], pa.string())}, {}, "a row has no uri"),
        ({"uri": [1]}, {"classes": ()}, "path '1'|none of the 1 images"),
        ({"uri": ["/etc/passwd"]}, {}, "is not under the dataset's root"),
        ({"uri": ["../a.png"]}, {}, "is not inside the dataset's root"),
        ({"uri": ["s3://bucket/a.png"]}, {}, "is not inside the dataset's root"),
        ({"uri": ["a.png"], "mask_uri": ["../mask.png"]}, {"classes": ("a",)}, "is not inside the dataset's root"),
        ({"uri": ["gone.png"]}, {}, r"none of the 1 images is there; the first is 'gone\.png'"),
        ({"uri": ["a.png", "a.png"]}, {}, r"a view of 'a\.png' stands in the manifest twice"),
        ({"uri": ["a.png"], "view_id": ["f" * 32]}, {}, "is not that of its image, tile and transform"),
        ({"uri": ["a.png"], "image_sha256": ["abc"]}, {}, "write 64 lower-case hexadecimal digits"),
        ({"uri": ["a.png"], "label": [-1]}, {}, "row 0: label -1: class numbers go from 0 to 65535"),
        ({"uri": ["a.png"], "label": [2**40]}, {}, "label '1099511627776' is none of|class numbers go from 0 to 65535"),
        ({"uri": ["a.png"], "label": [1]}, {"classes": ("cat",)}, r"label '1' is none of the 1 classes \('cat'\)"),
        ({"uri": ["a.png"], "label": [0.5]}, {}, "column 'label' has type double, which is neither whole numbers nor"),
        ({"uri": ["a.png"], "mask_uri": ["mask.png"]}, {}, "masks need class names"),
        ({"uri": ["a.png"], "split": ["x" * (MAX_TEXT + 1)]}, {}, "a text in column 'split' has 4097 bytes"),
        ({"uri": pa.array([b"\xff.png"]).view(pa.string())}, {}, "cannot be read as Parquet: .*UTF8"),
        ({"uri": ["a.png"], "tile": [{"x": None, "y": 0, "width": 1, "height": 1}]}, {}, "must be positive"),
        ({"uri": ["a.png"], "transform": [{"name": "resize", "parameters": None}]}, {}, "got 'None'"),
        (
            {"uri": ["a.png"], "transform": [{"name": "resize", "parameters": " " * (MAX_TEXT + 1)}]},
            {},
            "a text in column 'transform' has 4097 bytes",
        ),
        ({"uri": ["a.png"], "tile": [{"x": 0, "y": 0, "width": 0, "height": 1}]}, {}, "must be positive"),
        ({"uri": ["a.png"], "tile": [{"x": 0, "y": 0, "width": 5, "height": 5}]}, {"tile": 5}, "has tiles of its own"),
        ({"uri": ["a.png"], "tile": [_tile(20, 0)]}, {}, r"tile .* has no pixel of its image 'a\.png' of 20 x 10\. "),
        (
            {"uri": ["b.png", "a.png"], "tile": [None, _tile(0, -5)]},
            {},
            r"views\.parquet, row 1: tile .* has no pixel of its image 'a\.png'\. Correct",
        ),
        (
            {
                "uri": ["a.png"],
                "tile": [_tile(0, 5)],
                "transform": [{"name": "resize", "parameters": '{"height":5,"width":10}'}],
                "image_sha256": ["0" * 64],
            },
            {},
            r"row 0: tile .* has no pixel of its image 'a\.png' of 10 x 5\. ",
        ),
        ({"uri": ["a.png"], "transform": [{"name": "fog", "parameters": "{}"}]}, {}, "transform 'fog' is not known"),
    ],
)
def test_bad_manifests_are_refused(
    folder: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        opened(folder, columns, **options)


def test_image_behind_a_link_out_of_the_root_is_refused(folder: Path) -> None:
    (folder / "root").mkdir()
    (folder / "root/link.png").symlink_to(folder / "a.png")
    with pytest.raises(ManifestError, match=r"image 'link\.png' leads out of"):
        opened(folder / "root", {"uri": ["link.png"]})


@pytest.mark.parametrize("content", [b"", b"PAR1", b"uri\na.png\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_other_files_are_refused(folder: Path, content: bytes) -> None:
    (folder / "views.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        open_dataset(f"manifest:{folder / 'views.parquet'}")


def test_too_many_rows_are_refused_before_they_are_read(folder: Path) -> None:
    # One text in a dictionary: a file of some kilobytes that would become gigabytes of rows.
    uris = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MAX_PARQUET_ROWS + 1, np.int32)), pa.array(["a.png"]))
    pq.write_table(pa.table({"uri": uris}), folder / "views.parquet", row_group_size=MAX_PARQUET_ROWS + 1)
    with pytest.raises(ManifestError, match=f"declares {MAX_PARQUET_ROWS + 1} rows"):
        open_dataset(f"manifest:{folder / 'views.parquet'}")
