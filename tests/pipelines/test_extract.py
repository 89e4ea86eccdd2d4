"""The unit of work: the tokens of a shard against timm by hand, and what becomes of bad images and bad disks."""

import dataclasses
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from feature_store import Receipt, Shard, TokenKind, open_store
from feature_store.reader import FeatureSet
from pipelines import extract, image_files, prefetch
from pipelines.backbones import BackboneRequest, resolve_backbone
from pipelines.backbones.backbone import Tokens
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.null import NullBackbone, load_null
from pipelines.datasets import DatasetOptions, open_dataset
from pipelines.extract import StoreUnwritableError, cached_backbone, extract_shard
from pipelines.meter import Meter, read_shard_times
from pipelines.plan import ExtractionSettings
from pipelines.prefetch import SourceChangedError
from pipelines.run import Prepared, begin_extraction, prepare_extraction
from pipelines.stopping import StopRequestedError, stop_requested

Prepare = Callable[..., Prepared]


def extract_all(prepared: Prepared) -> FeatureSet:
    """Every missing shard in a plain loop."""
    begin_extraction(prepared)
    for shard in prepared.missing:
        extract_shard(prepared.plan, shard)
    return open_store(prepared.plan.store).features(prepared.name)


def first_shard(prepared: Prepared) -> Receipt:
    begin_extraction(prepared)
    return extract_shard(prepared.plan, prepared.missing[0])


@torch.inference_mode()
def tokens_by_hand(
    weights: Path, architecture: str, size: tuple[int, int], pictures: list[Image.Image]
) -> torch.Tensor:
    """Pillow's resize, timm's own model and its own loading: float16 [pictures, class token and patches, features]."""
    overlay = {"file": str(weights), "custom_load": False}
    model: Any = timm.create_model(
        architecture, pretrained=True, num_classes=0, img_size=size, pretrained_cfg_overlay=overlay
    ).eval()
    mean, std = (np.asarray(model.pretrained_cfg[name], dtype=np.float32) for name in ("mean", "std"))
    resized = [np.asarray(picture.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)) for picture in pictures]
    scaled = (np.stack([np.asarray(image) for image in resized]).astype(np.float32) / np.float32(255) - mean) / std
    tokens: torch.Tensor = model.forward_features(torch.from_numpy(scaled.transpose(0, 3, 1, 2)))
    return tokens.half()


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_stored_tokens_are_those_of_an_independent_implementation(
    prepare: Prepare, pictures: Path, tiny_request: BackboneRequest, size: tuple[int, int]
) -> None:
    features = extract_all(prepare(request=dataclasses.replace(tiny_request, image_size=size, fit="squash")))
    paths = sorted(pictures.rglob("*.png"), key=lambda path: str(path.relative_to(pictures)).encode())
    expected = tokens_by_hand(
        Path(tiny_request.weights), tiny_request.architecture, size, [Image.open(path) for path in paths]
    ).numpy()
    assert np.array_equal(features.read("last", "cls"), expected[:, 0])
    assert np.array_equal(features.read("last", "patches"), expected[:, 1:])


@pytest.mark.data
def test_tokens_of_real_tiles_are_those_of_an_independent_implementation(
    camvid: Path, tiny_request: BackboneRequest, tmp_path: Path
) -> None:
    dataset = open_dataset(f"segmentation:{camvid}", options=DatasetOptions(tile=120, limit_per_split=2))
    request = dataclasses.replace(tiny_request, fit="squash")
    prepared = prepare_extraction(dataset, request, ExtractionSettings(), store=str(tmp_path / "store"))
    features = extract_all(prepared)
    tiles = []
    for view in dataset.table.select(["uri", "tile"]).to_pylist():
        x, y = view["tile"]["x"], view["tile"]["y"]
        tiles.append(Image.open(camvid / view["uri"]).convert("RGB").crop((x, y, x + 120, y + 120)))
    assert len(tiles) == 4 * 12
    expected = tokens_by_hand(Path(request.weights), request.architecture, (64, 64), tiles).numpy()
    assert np.array_equal(features.read("last", "patches"), expected[:, 1:])


def test_a_row_has_the_same_bits_whatever_shard_and_batch_it_falls_into(prepare: Prepare) -> None:
    settings = [(8, 8), (16, 4), (24, 16), (64, 7)]
    stored = [
        extract_all(prepare(store=f"store-{rows}", rows_per_shard=rows, batch_size=batch, layers=(3, "last"))).read(3)
        for rows, batch in settings
    ]
    assert all(np.array_equal(values, stored[0]) for values in stored[1:])


def test_extracting_a_shard_again_writes_the_same_bytes(prepare: Prepare) -> None:
    prepared = prepare()
    first = first_shard(prepared)
    assert extract_shard(prepared.plan, prepared.missing[0]) == first


def test_each_unreadable_image_keeps_its_row_with_its_reason(prepare: Prepare, pictures: Path, tmp_path: Path) -> None:
    images = tmp_path / "pictures"
    shutil.copytree(pictures, images)
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    good = (images / names[0]).read_bytes()
    (images / names[1]).write_bytes(good[: len(good) // 2])
    (images / names[3]).write_bytes(b"")
    (images / names[9]).write_bytes(b"this is no image")
    (images / names[12]).unlink()
    (images / names[12]).symlink_to("nowhere.png")
    wide = Image.new("1", (20_000, 20_000))
    wide.save(images / names[20])
    broken = {1: "truncated", 3: "empty", 9: "not_an_image", 12: "missing", 20: "too_large"}
    features = extract_all(prepare(images=images))
    whole = extract_all(prepare(store="whole"))
    assert {entry.row: entry.reason for entry in features.invalid_rows} == broken
    assert np.flatnonzero(~features.valid).tolist() == sorted(broken)
    kinds: tuple[TokenKind, ...] = ("cls", "patches")
    for kind in kinds:
        ours, theirs = features.read("last", kind), whole.read("last", kind)
        assert not ours[sorted(broken)].any()
        kept = np.setdiff1d(np.arange(len(ours)), sorted(broken))
        assert np.array_equal(ours[kept], theirs[kept])


@pytest.fixture
def overflowing(tiny_model: str, tiny_weights: Path, tmp_path: Path) -> BackboneRequest:
    """A backbone whose final norm makes some tokens, and not others, too large for float16."""
    state = read_state(tiny_weights)
    state["norm.weight"] = state["norm.weight"] * 20_000
    torch.save(state, tmp_path / "large.pth")
    return resolve_backbone(tiny_model, weights=tmp_path / "large.pth", image_size=64)


def test_tokens_that_overflow_the_storage_are_invalid_rows(prepare: Prepare, overflowing: BackboneRequest) -> None:
    exact = extract_all(prepare(request=overflowing, storage_dtype="float32", store="exact"))
    assert not exact.invalid_rows
    peaks = np.maximum(np.abs(exact.read("last", "patches")).max(axis=(1, 2)), np.abs(exact.read("last", "cls")).max(1))
    # The first float32 that rounds to infinity: half a unit in the last place above float16's largest number.
    expected = np.flatnonzero(peaks >= 65520).tolist()
    rounded = extract_all(prepare(request=overflowing, store="rounded"))
    assert [entry.row for entry in rounded.invalid_rows] == expected
    assert {entry.reason for entry in rounded.invalid_rows} == {"non_finite"}
    assert not rounded.read("last", "patches")[expected].any()
    assert len(expected) > 0


@pytest.mark.parametrize("content_key", ["sha256", "stat"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: Image.new("RGB", (48, 40)).save(path), "is not the one that the manifest names"),
        (lambda path: path.unlink(), r"was there when the manifest was made, and is not now \(missing\)"),
    ],
)
def test_an_image_that_changes_midway_fails_its_shard_and_no_other(
    pictures: Path,
    tiny_request: BackboneRequest,
    tmp_path: Path,
    content_key: Any,
    change: Callable[[Path], None],
    message: str,
) -> None:
    images = tmp_path / "pictures"
    shutil.copytree(pictures, images)
    dataset = open_dataset(f"images:{images}", options=DatasetOptions(content_key=content_key))
    settings = ExtractionSettings(rows_per_shard=8, batch_size=8)
    prepared = prepare_extraction(dataset, tiny_request, settings, store=str(tmp_path / "store"))
    begin_extraction(prepared)
    change(images / dataset.table["uri"][10].as_py())
    with pytest.raises(SourceChangedError, match=message):
        extract_shard(prepared.plan, prepared.missing[1])
    assert extract_shard(prepared.plan, prepared.missing[2]).shard == 2
    assert extract_shard(prepared.plan, prepared.missing[0]).shard == 0


def test_a_tile_outside_an_image_that_nobody_measured_is_an_invalid_row(
    tiny_request: BackboneRequest, pictures: Path, tmp_path: Path
) -> None:
    path = min(pictures.rglob("*.png"))
    with Image.open(path) as image:
        width = image.width
    table = pa.table(
        {
            "uri": [str(path.relative_to(pictures))] * 3,
            "image_sha256": [hashlib.sha256(path.read_bytes()).hexdigest()] * 3,
            "tile": [{"x": x, "y": 0, "width": 8, "height": 8} for x in (0, width - 1, width)],
        }
    )
    pq.write_table(table, tmp_path / "views.parquet")
    dataset = open_dataset(f"manifest:{tmp_path / 'views.parquet'}", options=DatasetOptions(root=pictures))
    prepared = prepare_extraction(dataset, tiny_request, ExtractionSettings(), store=str(tmp_path / "store"))
    features = extract_all(prepared)
    assert [(entry.row, entry.reason) for entry in features.invalid_rows] == [(2, "outside_image")]
    assert features.read("last", "cls").any(axis=1).tolist() == [True, True, False]


def test_an_image_that_was_missing_keeps_its_reason_though_it_came_back(
    prepare: Prepare, pictures: Path, tmp_path: Path
) -> None:
    images = tmp_path / "pictures"
    shutil.copytree(pictures, images)
    first = min(images.rglob("*.png"))
    first.unlink()
    first.symlink_to("nowhere.png")
    prepared = prepare(images=images)
    first.unlink()
    shutil.copy(pictures / first.relative_to(images), first)
    assert [(entry.row, entry.reason) for entry in first_shard(prepared).invalid] == [(0, "missing")]


class FailingReads:
    """Stands in for the disk: the first reads of a file fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int, code: int) -> None:
        self.left, self.calls, self.code = failures, 0, code
        self._read = image_files.read_image_bytes
        monkeypatch.setattr(prefetch, "read_image_bytes", self)
        monkeypatch.setattr(prefetch, "_RETRY_DELAY_S", 0.001)

    def __call__(self, root: Path, uri: str, *rules: Any) -> bytes:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code), uri)
        return self._read(root, uri, *rules)


def test_a_read_that_fails_for_a_moment_is_tried_again(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = FailingReads(monkeypatch, failures=2, code=errno.EIO)
    assert first_shard(prepare()).invalid == ()
    assert reads.calls == 8 + 2


def test_a_read_that_keeps_failing_fails_the_shard(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    FailingReads(monkeypatch, failures=1000, code=errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        first_shard(prepare())


def test_a_read_that_is_forbidden_is_not_tried_again(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = FailingReads(monkeypatch, failures=1, code=errno.EACCES)
    with pytest.raises(OSError, match="Permission denied"):
        first_shard(prepare())
    assert reads.calls <= 8


def test_a_full_disk_is_told_from_a_bad_image(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any) -> Receipt:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract, "write_shard", full)
    with pytest.raises(StoreUnwritableError, match=r"takes nothing more \(No space left on device\); free some space"):
        first_shard(prepare())


@pytest.fixture
def stop_asked_for() -> Iterator[None]:
    stop_requested.set()
    yield
    stop_requested.clear()


@pytest.mark.usefixtures("stop_asked_for")
def test_a_stop_ends_the_shard_without_a_receipt(prepare: Prepare) -> None:
    prepared = prepare()
    with pytest.raises(StopRequestedError, match="between two batches"):
        first_shard(prepared)
    assert not open_store(prepared.plan.store).features(prepared.name).receipts


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """The calls of a function that prefetching makes, as they come."""
    calls: list[str] = []
    function = getattr(prefetch, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*arguments, **options)

    monkeypatch.setattr(prefetch, name, call)
    return calls


def test_prefetching_decodes_an_image_once_and_holds_few_views(
    tiny_request: BackboneRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / "pictures" / "a" / "0.png")
    dataset = open_dataset(f"images:{tmp_path / 'pictures'}", options=DatasetOptions(tile=8))
    assert dataset.table.num_rows == 1024
    decoded = counting(monkeypatch, "decode_image")
    fitted = counting(monkeypatch, "fit_view")
    preprocessing = cached_backbone(tiny_request, "fused").preprocessing
    prepared_views = prefetch.prepare_views(
        tmp_path / "pictures", dataset.table.to_pylist(), preprocessing, batch_size=16, threads=2, meter=Meter()
    )
    ahead = []
    for taken, view in enumerate(prepared_views, 1):
        assert view.place == taken - 1
        ahead.append(len(fitted) - taken)
    assert len(decoded) == 1
    assert len(fitted) == 1024
    # Two batches and a view a thread may wait, in whole pieces of a batch, and one piece is being handed out.
    assert max(ahead) <= (2 + 1 + 1) * 16 + 2


def test_closing_the_prefetch_early_leaves_no_thread(prepare: Prepare, pictures: Path) -> None:
    prepared = prepare()
    prepared_views = prefetch.prepare_views(
        pictures,
        open_dataset(f"images:{pictures}").table.to_pylist(),
        prepared.backbone.preprocessing,
        batch_size=4,
        threads=3,
        meter=Meter(),
    )
    next(prepared_views)
    assert decoding_threads()
    prepared_views.close()
    assert not decoding_threads()


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_extraction_counts_its_rows_shards_and_seconds(prepare: Prepare, tmp_path: Path) -> None:
    prepared = prepare()
    begin_extraction(prepared)
    meter = Meter(tmp_path)
    for shard in prepared.missing[:3]:
        extract_shard(prepared.plan, shard, meter=meter)
    assert meter.count.rows == 3 * 8
    assert [times.shard for times in read_shard_times(tmp_path)] == [0, 1, 2]
    assert all(seconds > 0 for stage, seconds in meter.count.seconds.items() if stage != "copy")
    assert (meter.count.seconds["copy"], meter.count.reused) == (0.0, 0)


def test_a_shard_that_is_not_of_the_plan_is_refused(prepare: Prepare) -> None:
    prepared = prepare()
    begin_extraction(prepared)
    with pytest.raises(ValueError, match="are not shard 0"):
        extract_shard(prepared.plan, Shard(index=0, start=4, stop=12))


class _DistanceBackbone(NullBackbone):
    """A backbone whose class token is the ground sample distance that it was given, -1 where there is none."""

    def tokens_of(
        self,
        inputs: torch.Tensor,
        layers: Sequence[int],
        *,
        class_attention: bool = False,
        ground_sample_distance_m: torch.Tensor | None = None,
    ) -> Tokens:
        assert ground_sample_distance_m is not None
        assert ground_sample_distance_m.shape == (len(inputs),)
        tokens = super().tokens_of(inputs, layers)
        for layer in layers:
            tokens[layer, "cls"] = ground_sample_distance_m.nan_to_num(-1)[:, None].expand_as(tokens[layer, "cls"])
        return tokens


@pytest.mark.parametrize("batch_size", [8, 5])
def test_a_backbone_gets_the_ground_sample_distance_of_each_row(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    dataset = open_dataset(f"images:{pictures}")
    distances = [None if row % 3 == 0 else row / 8 for row in range(dataset.table.num_rows)]
    place = dataset.table.schema.get_field_index("ground_sample_distance_m")
    table = dataset.table.set_column(place, dataset.table.schema.field(place), pa.array(distances, pa.float64()))
    settings = ExtractionSettings(rows_per_shard=8, batch_size=batch_size, storage_dtype="float32")
    null = load_null(resolve_backbone("null"))
    backbone = _DistanceBackbone(**{field.name: getattr(null, field.name) for field in dataclasses.fields(null)})
    monkeypatch.setattr(extract, "cached_backbone", lambda request, kernel: backbone)
    with_distances = dataclasses.replace(dataset, table=table)
    prepared = prepare_extraction(with_distances, null.request, settings, store=str(tmp_path / "store"))
    expected = [-1 if distance is None else distance for distance in distances]
    assert extract_all(prepared).read("last", "cls")[:, 0].tolist() == expected
