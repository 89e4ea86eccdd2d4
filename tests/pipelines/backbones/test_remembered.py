"""Descriptions that are remembered: right ones are used, and no other, whatever became of weights, code or cache."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.backbones import (
    BackboneError,
    Windows,
    describe_backbone,
    kernel_name,
    remembered,
    resolve_backbone,
    timm_names,
)
from pipelines.backbones.checkpoint import read_state
from pipelines.backbones.description import BackboneDescription
from pipelines.backbones.remembered import code_digest, describe_model
from pipelines.backbones.weight_files import file_sha256
from tests.pipelines.backbones.test_evaluation import folder_of_dinov2

MARK = "from memory"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copy(tiny_weights, tmp_path / "last.pth"))


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "vitrine" / "models").glob("*.json"))


def mark(entry: Path) -> None:
    """Change the title in an entry, as nothing but a test does, so that an answer from memory can be told."""
    content = json.loads(entry.read_text().splitlines()[0])
    content["backbone"]["request"]["title"] = MARK
    text = json.dumps(content)
    entry.write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


def marked(cache: Path, model: str, **words: Any) -> None:
    """Describe a model, and mark what is remembered of it."""
    assert describe_model(model, **words).request.title != MARK
    (entry,) = entries(cache)
    mark(entry)
    assert describe_model(model, **words).request.title == MARK


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"fit": "squash", "image_size": (96, 64), "compute_dtype": "bfloat16"},
        {"image_size": (320, 320), "windows": Windows(size=(160, 160), stride=(80, 80))},
    ],
)
def test_what_is_remembered_is_what_was_described(
    weights: Path, tiny_model: str, cache: Path, words: dict[str, Any]
) -> None:
    fresh = describe_backbone(resolve_backbone(tiny_model, weights=weights, **words))
    first, again = (describe_model(tiny_model, weights=weights, **words) for _ in range(2))
    assert len(entries(cache)) == 1
    assert type(again.backbone) is BackboneDescription
    assert again.request == first.request == fresh.request
    assert json.dumps(again.backbone.to_json()) == json.dumps(fresh.to_json())
    assert again.attention_kernel == kernel_name(fresh.request)


def test_weights_are_hashed_once_where_nothing_is_remembered(
    weights: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    for module in (remembered, timm_names):
        monkeypatch.setattr(module, "file_sha256", counting)
    describe_model(tiny_model, weights=weights)
    assert hashed == [weights]


def test_each_word_of_a_request_is_described_for_itself(weights: Path, tiny_model: str, cache: Path) -> None:
    for words in ({}, {"fit": "crop"}, {"fit": "squash"}, {"image_size": (64, 64)}, {"compute_dtype": "bfloat16"}):
        describe_model(tiny_model, weights=weights, **words)
    assert len(entries(cache)) == 5


def test_weights_that_changed_are_never_answered_from_memory(weights: Path, tiny_model: str, cache: Path) -> None:
    marked(cache, tiny_model, weights=weights)
    torch.save({name: values + 1 for name, values in read_state(weights).items()}, weights)
    found = describe_model(tiny_model, weights=weights)
    assert found.request.title != MARK
    assert found.request.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_same_weights_at_another_place_are_read_from_there(weights: Path, tiny_model: str, cache: Path) -> None:
    marked(cache, tiny_model, weights=weights)
    (weights.parent / "other").mkdir()
    moved = weights.rename(weights.parent / "other" / weights.name)
    found = describe_model(tiny_model, weights=moved)
    assert (found.request.title, found.request.weights) == (MARK, str(moved))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_what_changed_beside_the_weights_is_never_answered_from_memory(tmp_path: Path, cache: Path, name: str) -> None:
    folder = folder_of_dinov2(tmp_path / "one", '{"resample": 2}')
    marked(cache, "auto", weights=folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, "layer_norm_eps": 1e-5, "resample": 3}))
    assert describe_model("auto", weights=folder).request.title != MARK


@pytest.mark.parametrize("what", ["code", "package", "kernel"])
def test_other_code_is_never_answered_from_memory(
    weights: Path, tiny_model: str, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    marked(cache, tiny_model, weights=weights)
    if what == "code":
        monkeypatch.setattr(remembered, "code_digest", lambda folder: "of another line")
    elif what == "package":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    else:
        monkeypatch.setenv("TIMM_FUSED_ATTN", "0")
    assert describe_model(tiny_model, weights=weights).request.title != MARK


def test_the_digest_of_the_code_changes_with_any_line_and_any_name(tmp_path: Path) -> None:
    for name, text in (("one", "x = 1\n"), ("two", "x = 2\n"), ("three", "x = 1\n")):
        inner = tmp_path / name / ("formats" if name != "three" else "forms")
        inner.mkdir(parents=True)
        (inner / "a.py").write_text(text)
    assert len({code_digest(tmp_path / name) for name in ("one", "two", "three")}) == 3


def flipped(entry: Path) -> None:
    octets = bytearray(entry.read_bytes())
    octets[len(octets) // 3] ^= 1
    entry.write_bytes(octets)


def replaced_by_folder(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


def other_content(entry: Path) -> None:
    text = json.dumps({"backbone": [], "kernel": 1})
    entry.write_text(f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(entry.read_bytes()[:100]),
        lambda entry: entry.write_bytes(b"\xff" * 10),
        lambda entry: entry.write_text("[" * 5000),
        lambda entry: entry.write_bytes(entry.read_bytes() + b" " * (1 << 20)),
        flipped,
        replaced_by_folder,
        other_content,
    ],
)
def test_an_entry_that_is_damaged_counts_for_none(
    weights: Path, tiny_model: str, cache: Path, damage: Callable[[Path], object]
) -> None:
    right = describe_model(tiny_model, weights=weights)
    (entry,) = entries(cache)
    mark(entry)
    damage(entry)
    again = describe_model(tiny_model, weights=weights)
    assert again.request == right.request
    assert json.dumps(again.backbone.to_json()) == json.dumps(right.backbone.to_json())
    assert list(entry.parent.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_is_passed_over(weights: Path, tiny_model: str, cache: Path) -> None:
    cache.write_text("no folder")
    assert describe_model(tiny_model, weights=weights).backbone.depth == 6


def test_the_oldest_entries_go_where_there_are_too_many(
    weights: Path, tiny_model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_MOST_ENTRIES", 2)
    for side in (64, 80, 96):
        describe_model(tiny_model, weights=weights, image_size=(side, side))
    sizes = [json.loads(entry.read_text().splitlines()[0])["backbone"]["grid"] for entry in entries(cache)]
    assert sorted(sizes) == [[5, 5], [6, 6]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"weights": Path("absent.pth")}, "cannot be read"),
        ({"image_size": (65, 65)}, "is not a multiple of the 16-pixel patch"),
        ({"arguments": ("no=1",)}, "no"),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(
    weights: Path, tiny_model: str, cache: Path, words: dict[str, Any], said: str
) -> None:
    words = {"weights": weights, **words}
    with pytest.raises(BackboneError, match=said) as straight:
        resolve_backbone(tiny_model, **words)
    with pytest.raises(BackboneError) as remembering:
        describe_model(tiny_model, **words)
    assert str(remembering.value) == str(straight.value)
    assert entries(cache) == []
