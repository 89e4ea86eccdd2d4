"""manifest: two digests of content alone, and no manifest that leads out of its root."""

import io
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import DatasetSpec, ManifestError, annotations_digest, manifest_table, mask_digest, views_digest
from feature_store.manifest import (
    ANNOTATION_FIELDS,
    MANIFEST_SCHEMA,
    MAX_OBJECTS_PER_VIEW,
    MAX_POLYGON_VALUES,
    VIEW_FIELDS,
    check_manifest,
    check_relative_uri,
)
from feature_store.masks import checked_mask

_SPEC = DatasetSpec(name="d", classes=("a", "b"), void=9)
_BOX = {"x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}
_OBJECT = {"box": _BOX, "instance_id": 5, "category": 1, "polygon": [0.0, 1.0, 2.5]}


def _rows() -> list[dict[str, Any]]:
    tiles = [{"x": x, "y": y, "width": 8, "height": 8} for y, x in itertools.product((0, 8), (0, 8))]
    rows: list[dict[str, Any]] = [
        {"uri": f"{name}.png", "image_sha256": f"{index:064x}", "tile": tile, "split": "train", "label": index}
        for index, name in enumerate(["a", "ab", "b", "\u00e9"])
        for tile in tiles
    ]
    rows[3] |= {"objects": [_OBJECT, {"box": None}], "sequence": "s", "frame": 3, "ground_sample_distance_m": 0.3}
    rows[5] |= {"objects": [], "split": None, "label": None, "mask_uri": "m/5.png"}
    rows.append({"uri": "c.png", "image_sha256": "f" * 64, "transform": {"name": "blur", "parameters": '{"px":2}'}})
    rows.append({"uri": "c.png", "image_sha256": "f" * 64, "source_view_id": "0" * 32})
    return rows


def _digests(table: pa.Table) -> tuple[str, str]:
    return views_digest(table), annotations_digest(table, [None] * table.num_rows, _SPEC)


def test_rows_stand_in_the_stated_order_whatever_order_they_came_in() -> None:
    rows = _rows()
    expected = manifest_table(rows)
    keys = [
        (row["uri"].encode(), tuple((row["tile"] or {}).values()), tuple((row["transform"] or {}).values()))
        for row in expected.to_pylist()
    ]
    assert keys == sorted(keys)
    for seed in range(5):
        shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
        assert manifest_table(shuffled).equals(expected)


def test_view_ids_tell_views_of_one_image_apart_and_not_files() -> None:
    ids = manifest_table(_rows())["view_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    moved = manifest_table({**row, "uri": f"elsewhere/{row['uri']}"} for row in _rows())["view_id"].to_pylist()
    assert moved == ids


@settings(max_examples=30)
@given(st.lists(st.integers(0, 18), max_size=5))
def test_digests_do_not_depend_on_chunks(cuts: list[int]) -> None:
    table = manifest_table(_rows())
    edges = [0, *sorted(cuts), table.num_rows]
    parts = [table.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    assert _digests(pa.concat_tables(parts)) == _digests(table)


@pytest.mark.parametrize(
    "options",
    [
        {"row_group_size": 1},
        {"row_group_size": 5, "compression": "zstd"},
        {"use_dictionary": False},
        {"version": "1.0"},
    ],
)
def test_digests_do_not_depend_on_the_bytes_of_a_parquet_file(options: dict[str, Any]) -> None:
    table = manifest_table(_rows())
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    assert _digests(pq.read_table(buffer)) == _digests(table)


def test_digests_do_not_depend_on_what_lies_hidden_under_nulls() -> None:
    table = manifest_table(_rows())
    label = table["label"].combine_chunks()
    valid = label.is_valid().to_numpy(zero_copy_only=False)
    hidden = np.where(valid, label.fill_null(0).to_numpy(zero_copy_only=False), 77).astype(np.int32)
    changed = table.set_column(
        table.column_names.index("label"), "label", pa.array(hidden, pa.int32(), mask=~valid)
    ).cast(MANIFEST_SCHEMA)
    assert changed.equals(table)
    assert _digests(changed) == _digests(table)


def test_digests_span_more_rows_than_are_fed_at_once() -> None:
    rows = [{"uri": f"{index:06d}", "image_sha256": f"{index:064x}", "label": index % 5} for index in range(9_000)]
    table = manifest_table(rows)
    assert _digests(pa.concat_tables([table.slice(0, 8_500), table.slice(8_500)])) == _digests(table)
    rows[8_999]["label"] = 3
    changed = manifest_table(rows)
    assert views_digest(changed) == views_digest(table)
    assert _digests(changed) != _digests(table)


_OTHER_VALUES: dict[str, Any] = {
    "view_id": "0" * 32,
    "image_sha256": "1" * 64,
    "uri": "zzz.png",
    "tile": {"x": 1, "y": 0, "width": 8, "height": 8},
    "transform": {"name": "blur", "parameters": "{}"},
    "ground_sample_distance_m": 0.25,
    "split": "test",
    "label": 17,
    "sequence": "t",
    "frame": 4,
    "objects": [_OBJECT, {**_OBJECT, "polygon": [0.0, 1.0, 2.75]}],
    "source_view_id": "1" * 32,
}


@pytest.mark.parametrize("column", sorted(_OTHER_VALUES))
@pytest.mark.parametrize("row", [0, 3, 17])
def test_every_column_decides_the_digest_of_its_group_alone(column: str, row: int) -> None:
    table = manifest_table(_rows())
    values = table[column].to_pylist()
    assert values[row] != _OTHER_VALUES[column]
    digests = [_digests(table)]
    for other in (_OTHER_VALUES[column], None):
        if values[row] == other:
            continue
        changed = [*values[:row], other, *values[row + 1 :]]
        field = pa.field(column, MANIFEST_SCHEMA.field(column).type)
        digests.append(
            _digests(table.set_column(table.column_names.index(column), field, pa.array(changed, field.type)))
        )
    views, annotations = zip(*digests, strict=True)
    decides_pixels = column in {field.name for field in VIEW_FIELDS}
    assert decides_pixels != (column in {field.name for field in ANNOTATION_FIELDS})
    assert len(set(views)) == (len(digests) if decides_pixels else 1)
    assert len(set(annotations)) == (1 if decides_pixels else len(digests))


def test_the_place_of_a_mask_decides_nothing_and_its_values_do() -> None:
    table = manifest_table(_rows())
    moved = manifest_table({**row, "mask_uri": "elsewhere.png"} for row in _rows())
    masks: list[str | None] = [None] * table.num_rows
    assert annotations_digest(moved, masks, _SPEC) == annotations_digest(table, masks, _SPEC)
    mask = np.zeros((2, 3), np.uint8)
    changed = mask.copy()
    changed[1, 2] = 1
    found = {
        annotations_digest(table, [digest, *masks[1:]], _SPEC)
        for digest in (None, mask_digest(mask), mask_digest(changed), mask_digest(mask.T))
    }
    assert len(found) == 4


def test_what_mask_values_mean_decides_the_digest_of_annotations() -> None:
    table = manifest_table(_rows())
    masks = [None] * table.num_rows
    specs = [
        _SPEC,
        DatasetSpec(name="d", classes=("a", "c"), void=9),
        DatasetSpec(name="d", classes=("b", "a"), void=9),
        DatasetSpec(name="d", classes=("a", "b"), void=8),
        DatasetSpec(name="d", classes=("a", "b")),
    ]
    assert len({annotations_digest(table, masks, spec) for spec in specs}) == len(specs)
    other = DatasetSpec(name="e", classes=("a", "b"), void=9, colours=((0, 0, 0), (1, 1, 1)), license="CC0", source="x")
    assert annotations_digest(table, masks, other) == annotations_digest(table, masks, _SPEC)


def test_a_masks_digest_does_not_depend_on_the_width_of_its_integers_or_its_strides() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert mask_digest(mask.astype(np.uint16)) == mask_digest(mask)
    assert mask_digest(np.asfortranarray(mask)) == mask_digest(mask)
    assert mask_digest(mask.reshape(4, 3)) != mask_digest(mask)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 2), np.int32),
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2), bool),
        np.zeros((2, 2, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_what_is_no_mask_is_refused(mask: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ManifestError, match=r"masks are \[height, width\] of uint8 or uint16, .* Convert it"):
        checked_mask(mask)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        ".",
        "./",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "/etc/passwd",
        "//host/share",
        "a\0b",
        "http://host/a",
        "file:///etc/passwd",
        "s3://bucket/a",
    ],
)
@pytest.mark.parametrize("column", ["uri", "mask_uri"])
def test_a_path_that_could_leave_the_root_is_refused(uri: str, column: str) -> None:
    row = {"uri": "a.png", "image_sha256": "0" * 64, column: uri}
    with pytest.raises(ManifestError, match="is not inside the dataset's root; write it relative to the root, with"):
        manifest_table([row])


@pytest.mark.parametrize("distance_m", [0.0, -0.3, 1e300, float("inf"), float("nan")])
def test_a_pixel_of_impossible_size_on_the_ground_is_refused(distance_m: float) -> None:
    row = {"uri": "a.png", "image_sha256": "0" * 64, "ground_sample_distance_m": distance_m}
    with pytest.raises(ManifestError, match=r"write the metres of ground a pixel, above 0 and at most 6\.4e"):
        manifest_table([row])


@pytest.mark.parametrize(
    "uri",
    [
        "a",
        "a/b c.png",
        "a..b/...c",
        "\u00fc/\u65e5\u672c.png",
        "~/a",
        "ab:c",
        "-rf",
        "a\nb",
        "a\\b.png",
        "..\\a",
        "C:/a",
    ],
)
def test_a_path_inside_the_root_is_accepted(uri: str) -> None:
    check_relative_uri(uri)


def test_a_path_beyond_all_bounds_and_one_that_is_no_unicode_are_refused() -> None:
    with pytest.raises(ManifestError, match="has 5000 bytes; at most 4096 are read") as caught:
        check_relative_uri("x" * 5000)
    assert len(str(caught.value)) < 400
    with pytest.raises(ManifestError, match="is not UTF-8; rename the file"):
        check_relative_uri("a\udcff.png")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"uri": "a"}, "has uri 'a' and image_sha256 None; every view needs both, as text"),
        ({"image_sha256": "0"}, "has uri None and image_sha256 '0'; every view needs both"),
        ({"uri": 3, "image_sha256": "0"}, "has uri 3 and"),
        ({"uri": "a", "image_sha256": b"0"}, "has uri 'a' and image_sha256 b'0'"),
        ({"uri": "a", "image_sha256": "0", "lable": 3}, r"a row has columns \['lable'\], and a manifest has view_id, "),
        ({"uri": "a", "image_sha256": "0", "label": "x"}, "does not fit the manifest's schema"),
        ({"uri": "a", "image_sha256": "0", "label": 1 << 40}, "does not fit the manifest's schema"),
        ({"uri": "a", "image_sha256": "0", "split": 3}, "does not fit the manifest's schema"),
        ({"uri": "a", "image_sha256": "0", "split": "\ud800"}, "does not fit the manifest's schema"),
        ({"uri": "a", "image_sha256": "0", "tile": [0, 0, 8, 8]}, "a tile has x, y, width and height"),
        ({"uri": "a", "image_sha256": "0", "tile": {"x": 0}}, "a tile has x, y, width and height"),
        ({"uri": "a", "image_sha256": "0", "transform": {"name": "x"}}, "a transform name and parameters"),
        ({"uri": "a", "image_sha256": "0", "objects": [{"box": 3}]}, "does not fit the manifest's schema"),
        (
            {"uri": "a", "image_sha256": "0", "objects": [{"polygon": [0.0] * (MAX_POLYGON_VALUES + 1)}]},
            "a row has 100001 values in 'polygon'; at most 100000 are read",
        ),
        (
            {"uri": "a", "image_sha256": "0", "objects": [None] * (MAX_OBJECTS_PER_VIEW + 1)},
            "a row has 100001 values in 'objects'; at most 100000 are read",
        ),
    ],
)
def test_a_hostile_row_is_refused_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        manifest_table([{"uri": "first", "image_sha256": "1" * 64}, row])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def _with_column(name: str, values: pa.Array) -> pa.Table:
    table = manifest_table(_rows())
    return table.set_column(table.column_names.index(name), pa.field(name, values.type, values.null_count > 0), values)


def test_a_strangers_table_is_held_to_schema_and_rules() -> None:
    table = manifest_table(_rows())
    n_rows = table.num_rows
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], "<i4")), pa.py_buffer(b"\xff\xfe")]
    )
    half_a_tile = pa.array([{"x": None, "y": 0, "width": 8, "height": 8}] * n_rows, MANIFEST_SCHEMA.field("tile").type)
    cases = [
        (table.drop_columns("tile"), r"columns \['tile'\] differ from the schema"),
        (table.append_column("x", pa.nulls(n_rows)), r"columns \['x'\] differ from the schema"),
        (table.select(table.column_names[::-1]), "differ from the schema; .* in order"),
        (_with_column("label", pa.array(range(n_rows), pa.int64())), r"columns \['label'\] differ"),
        (_with_column("uri", pa.nulls(n_rows, pa.string())), r"columns \['uri'\] differ"),
        (table.slice(0, 0), "has no rows; a dataset needs at least one image"),
        (
            table.slice(0, 1).set_column(2, MANIFEST_SCHEMA.field("uri"), pa.chunked_array([broken])),
            "not a sound Arrow table .*; write it again",
        ),
        (
            table.set_column(3, MANIFEST_SCHEMA.field("tile"), half_a_tile),
            f"{n_rows} rows have a tile without 'x'; fill it in",
        ),
    ]
    for changed, message in cases:
        with pytest.raises(ManifestError, match=message):
            check_manifest(changed)


def test_nulls_in_a_column_that_every_view_needs_are_refused() -> None:
    table = manifest_table(_rows())
    nulls = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    changed = table.set_column(1, MANIFEST_SCHEMA.field("image_sha256"), nulls)
    with pytest.raises(ManifestError, match=r"image_sha256"):
        check_manifest(changed)


def test_no_rows_make_no_manifest() -> None:
    with pytest.raises(ManifestError, match="has no rows"):
        manifest_table([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "dataset name ''"),
        ({"name": "../x"}, r"dataset name '\.\./x': use 1 to 64 letters"),
        ({"name": ".hidden"}, r"dataset name '\.hidden'"),
        ({"name": "x" * 65}, "use 1 to 64 letters"),
        ({"name": "a", "classes": ("x", "y"), "void": 1}, "void label 1 is also class 'y'; give void a value outside"),
        ({"name": "a", "classes": ("x", "y"), "colours": ((1, 2, 3),)}, "1 colours for 2 classes; give one a class"),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        DatasetSpec(**arguments)
