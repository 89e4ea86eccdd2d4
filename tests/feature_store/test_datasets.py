"""datasets and masks: what evaluators need is in the store, once, and checked when it is read."""

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import CorruptError, DatasetSpec, ManifestError, StoreNotFoundError, create_store, read_manifest
from feature_store import masks as masks_module
from feature_store.datasets import dataset_in_force, open_masks, read_dataset, register_dataset
from feature_store.masks import MaskPacker, MaskReader
from feature_store.objects import ObjectRoot, crc32c
from feature_store.records import parse_record, record_bytes, write_record
from feature_store.roots import open_root
from tests.feature_store.samples import CLASSES, VOID, files_of, make_masks, make_table, register

_Masks = list[np.ndarray[Any, Any] | None]


def _store_masks(folder: Path, masks: _Masks) -> MaskReader:
    root = open_root(str(folder))
    packer = MaskPacker()
    for mask in masks:
        packer.append(mask)
    for name, content in packer.objects():
        root.put(f"d/annotations.zarr/{name}", [content])
    packer.close()
    return MaskReader(root, "d/annotations.zarr", len(masks))


def test_what_was_registered_is_read_back(store_url: str) -> None:
    root = create_store(store_url)
    stored = register(root, 21)
    assert read_dataset(root, stored.folder) == stored == dataset_in_force(root, "tiny", stored.views_digest)
    assert read_manifest(root, stored).equals(make_table(21))
    assert read_manifest(root, stored, ["label", "uri"]).equals(make_table(21).select(["label", "uri"]))
    reader = open_masks(root, stored)
    for row, mask in enumerate(make_masks(21)):
        assert reader.has_mask(row) == (mask is not None)
        found = reader.read(row)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, np.empty((0, 0)) if mask is None else mask)


def test_registering_again_changes_nothing(tmp_path: Path) -> None:
    root = create_store(str(tmp_path / "s"))
    stored = register(root, 21)
    before = files_of(tmp_path)
    assert register(root, 21) == stored
    assert files_of(tmp_path) == before


def test_a_corrected_label_makes_other_annotations_of_the_same_views_and_puts_them_in_force(store_url: str) -> None:
    root = create_store(store_url)
    old = register(root, 21)
    new = register(root, 21, label_of_first=2)
    assert new.views_digest == old.views_digest
    assert new.annotations_digest != old.annotations_digest
    assert dataset_in_force(root, "tiny", old.views_digest) == new
    assert read_manifest(root, new)["label"][0].as_py() == 2
    assert read_manifest(root, old)["label"][0].as_py() == 0
    register(root, 21)
    assert dataset_in_force(root, "tiny", old.views_digest) == old


def test_a_changed_mask_value_makes_other_annotations(store_url: str) -> None:
    root = create_store(store_url)
    spec = DatasetSpec(name="tiny", classes=CLASSES, void=VOID)
    masks = make_masks(5)
    first = register_dataset(root, spec, make_table(5), masks)
    assert masks[0] is not None
    changed = masks[0].copy()
    changed[0, 0] = (changed[0, 0] + 1) % 3
    second = register_dataset(root, spec, make_table(5), [changed, *masks[1:]])
    assert second.folder != first.folder
    np.testing.assert_array_equal(open_masks(root, second).read(0), changed)
    np.testing.assert_array_equal(open_masks(root, first).read(0), masks[0])


def test_what_changes_no_annotation_is_updated_in_place(store_url: str) -> None:
    root = create_store(store_url)
    first = register_dataset(root, DatasetSpec(name="d", classes=("a",)), make_table(3), [None] * 3)
    second = register_dataset(root, DatasetSpec(name="d", classes=("a",), license="CC0"), make_table(3), [None] * 3)
    assert second.folder == first.folder
    assert dataset_in_force(root, "d", first.views_digest).spec.license == "CC0"


@pytest.mark.parametrize("n_kept", range(7))
def test_a_registration_that_was_killed_midway_is_finished_by_the_next(tmp_path: Path, n_kept: int) -> None:
    """Objects appear whole and in a fixed order, so being killed is keeping the first few of them."""
    root = create_store(str(tmp_path / "s"))
    stored = register(root, 21)
    whole = files_of(tmp_path)
    folder = tmp_path / "s" / stored.folder
    in_order = [folder / "manifest.parquet"]
    in_order += [folder / "annotations.zarr" / name for name, _ in _packed(make_masks(21))]
    in_order += [folder / "dataset.json", Path(f"{tmp_path}/s/datasets/tiny/{stored.views_digest[:8]}.json")]
    assert set(map(str, in_order)) == {str(tmp_path / path) for path in whole if "vitrine.json" not in path}
    for path in in_order[n_kept:]:
        path.unlink()
    with pytest.raises(StoreNotFoundError, match=r"the store has no dataset 'tiny' with views \w+; run the same"):
        dataset_in_force(root, "tiny", stored.views_digest)
    register(root, 21)
    assert files_of(tmp_path) == whole


def _packed(masks: _Masks) -> list[tuple[str, bytes]]:
    packer = MaskPacker()
    for mask in masks:
        packer.append(mask)
    objects = list(packer.objects())
    packer.close()
    return objects


@pytest.mark.parametrize("masks", [[], [None] * 20, [None] * 22])
def test_other_than_one_mask_a_row_is_refused(tmp_path: Path, masks: _Masks) -> None:
    root = create_store(str(tmp_path / "s"))
    with pytest.raises(
        ManifestError, match=rf"^{len(masks)} masks for 21 rows; give one a row, None where there is none"
    ):
        register_dataset(root, DatasetSpec(name="d"), make_table(21), masks)
    assert set(files_of(tmp_path)) == {"s/vitrine.json"}


def test_a_table_that_breaks_the_rules_is_not_registered(tmp_path: Path) -> None:
    root = create_store(str(tmp_path / "s"))
    with pytest.raises(ManifestError, match="differ from the schema"):
        register_dataset(root, DatasetSpec(name="d"), pa.table({"uri": ["a"]}), [None])
    assert set(files_of(tmp_path)) == {"s/vitrine.json"}


_MASKS = st.lists(
    st.none()
    | st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([np.uint8, np.uint16]), st.integers(0, 999)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=40)
@given(shapes=_MASKS, chunk_values=st.sampled_from([7, 64, 1 << 22]), chunk_rows=st.sampled_from([3, 1 << 16]))
def test_masks_of_any_sizes_are_read_back_however_chunks_cut_them(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[Any], chunk_values: int, chunk_rows: int
) -> None:
    masks: _Masks = [
        None
        if shape is None
        else np.random.default_rng(shape[3]).integers(0, np.iinfo(shape[2]).max, shape[:2], shape[2], endpoint=True)
        for shape in shapes
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Chunks of 8 MB cut no small mask.
        patch.setattr(masks_module, "_CHUNK_VALUES", chunk_values)
        patch.setattr(masks_module, "_CHUNK_ROWS", chunk_rows)
        folder = tmp_path_factory.mktemp("masks")
        reader = _store_masks(folder, masks)
        expected = [np.empty((0, 0)) if mask is None else mask for mask in masks]
        rows = range(len(masks))
        for order in (rows, rows[::-1], rows[::2]):
            for row, found in zip(order, reader.iter_masks(order), strict=True):
                np.testing.assert_array_equal(found, expected[row])
                np.testing.assert_array_equal(reader.read(row), expected[row])
        assert reader.any_mask == any(mask is not None for mask in masks)
        assert reader.all_shaped_as(7, 7) == all(mask.shape[0] == mask.shape[1] for mask in expected)
        assert reader.all_shaped_as(2, 3) == all(mask.shape[0] * 3 == mask.shape[1] * 2 for mask in expected)
    group: Any = zarr.open_group(folder / "d/annotations.zarr", mode="r")
    np.testing.assert_array_equal(np.asarray(group["mask_sizes"][...]), [mask.shape for mask in expected])
    np.testing.assert_array_equal(
        np.asarray(group["mask_values"][...]), np.concatenate([mask.reshape(-1) for mask in expected])
    )


def test_a_mask_that_was_read_may_be_changed(tmp_path: Path) -> None:
    reader = _store_masks(tmp_path, [np.ones((2, 3), np.uint8)])
    reader.read(0)[:] = 9
    np.testing.assert_array_equal(reader.read(0), np.ones((2, 3)))


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_does_not_exist_has_no_mask(tmp_path: Path, row: int) -> None:
    reader = _store_masks(tmp_path, [None, None])
    with pytest.raises(IndexError, match=rf"^row {row} asked of masks of rows 0\.\.1"):
        reader.read(row)


def _large_masks(n_masks: int) -> Iterator[np.ndarray[Any, Any]]:
    for index in range(n_masks):
        yield np.random.default_rng(index).integers(0, 255, size=(1000, 1000), dtype=np.uint8)


def test_masks_are_packed_and_read_in_bounded_memory(tmp_path: Path) -> None:
    """120 masks of a megapixel are 240 MB as they are stored, and incompressible as they are here."""
    n_masks = 120
    root = create_store(str(tmp_path / "s"))
    spec = DatasetSpec(name="d", classes=tuple(map(str, range(255))))
    tracemalloc.start()
    try:
        stored = register_dataset(root, spec, make_table(n_masks), _large_masks(n_masks))
        _, packing_peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        reader = open_masks(root, stored)
        for found, mask in itertools.islice(
            zip(reader.iter_masks(range(n_masks)), _large_masks(n_masks), strict=True), 9
        ):
            np.testing.assert_array_equal(found, mask)
        _, reading_peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The spool keeps 64 MB before it takes to the disk; the rest is a few chunks of 8 MB.
    assert packing_peak_bytes < 160 << 20
    assert reading_peak_bytes < 60 << 20


def _registered(folder: Path) -> tuple[ObjectRoot, Path, str]:
    root = create_store(str(folder))
    stored = register(root, 21)
    return root, folder / stored.folder, stored.views_digest


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("mask_values/c/0", "flip", "was changed after it was written"),
        ("mask_values/c/0", "unlink", "is missing"),
        ("mask_values/c/0", "empty", "was changed after it was written"),
        ("mask_sizes/c/0/0", "flip", "was changed after it was written"),
        ("mask_sizes/zarr.json", "unlink", "is missing"),
        ("mask_values/zarr.json", "flip", "zarr.json"),
    ],
)
def test_damaged_masks_are_noticed(tmp_path: Path, name: str, damage: str, message: str) -> None:
    root, folder, views = _registered(tmp_path / "s")
    victim = folder / "annotations.zarr" / name
    if damage == "unlink":
        victim.unlink()
    else:
        content = victim.read_bytes()
        victim.write_bytes(b"" if damage == "empty" else content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(CorruptError, match=message):
        open_masks(root, dataset_in_force(root, "tiny", views)).read(0)


def test_a_chunk_that_claims_more_than_it_may_is_refused(tmp_path: Path) -> None:
    """Zeros compress a thousandfold, and a stranger can make checksums fit."""
    root, folder, views = _registered(tmp_path / "s")
    body = bytes(pa.Codec("zstd").compress(bytes(1 << 28), asbytes=True))
    assert len(body) < 1 << 20
    checksum = crc32c([body]).to_bytes(4, "little")
    (folder / "annotations.zarr/mask_values/c/0").write_bytes(body + checksum)
    reader = open_masks(root, dataset_in_force(root, "tiny", views))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match=r"cannot be decompressed .* Move datasets/.* away and run the same"):
            reader.read(0)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_codec_of_a_strangers_choice_is_never_run(tmp_path: Path) -> None:
    root, folder, views = _registered(tmp_path / "s")
    metadata = folder / "annotations.zarr/mask_values/zarr.json"
    metadata.write_text(metadata.read_text().replace('"zstd"', '"pickle"'))
    with pytest.raises(CorruptError, match=r"has codecs .*pickle.*, and its record asks for"):
        open_masks(root, dataset_in_force(root, "tiny", views))


@pytest.mark.parametrize(
    "target",
    [
        "../../elsewhere",
        "datasets/../features",
        "/etc",
        "",
        "features/x",
        "datasets/tiny/aaaaaaaa-bbbbbbbb",
        "a\0b",
        "datasets/other/{views}-00000000",
        "datasets/tiny/{views}-../..",
    ],
)
def test_a_pointer_that_leads_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    root, folder, views = _registered(tmp_path / "s")
    pointer = folder.parent / f"{views[:8]}.json"
    write_record(
        root, str(pointer.relative_to(tmp_path / "s")), {"annotations_in_force": target.format(views=views[:8])}
    )
    with pytest.raises(CorruptError, match=r"it points to .*, which is no dataset of these views. Run the same"):
        dataset_in_force(root, "tiny", views)


def test_a_void_label_that_was_changed_in_place_is_noticed(tmp_path: Path) -> None:
    """It would change every number without a trace."""
    root, folder, views = _registered(tmp_path / "s")
    record = folder / "dataset.json"
    record.write_text(record.read_text().replace('"void": 255', '"void": 254'))
    with pytest.raises(CorruptError, match=r"dataset\.json is not what its 'record_digest' says, so it was changed"):
        dataset_in_force(root, "tiny", views)


def test_a_record_with_two_classes_of_one_name_is_corrupt(tmp_path: Path) -> None:
    """A stranger may have written it; one of the two would be lost from every answer."""
    root, folder, _ = _registered(tmp_path / "s")
    content = parse_record((folder / "dataset.json").read_bytes(), name="dataset.json")
    content["classes"][1] = f" {content['classes'][0]}"
    (folder / "dataset.json").write_bytes(record_bytes(content))
    with pytest.raises(CorruptError, match=r"it describes no dataset \(classes 0 and 1 are both called"):
        read_dataset(root, str(folder.relative_to(tmp_path / "s")))
