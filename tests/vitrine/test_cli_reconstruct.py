"""`vitrine reconstruct` on images extracted by the command line, with a small file in the published key format."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from feature_store import open_store

from .conftest import Run

ARMS = ["untouched", "zero", "mean", "random zero"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def visualize(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `mae_visualize_*`: the tiny encoder, and a decoder of one block that gives patches of 16 pixels."""
    state = torch.load(tiny_weights, weights_only=True)
    generator = torch.Generator().manual_seed(11)
    width, hidden = 32, 48
    shapes: dict[str, tuple[int, ...]] = {
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, 101, width),
        "decoder_embed.weight": (width, 64),
        "decoder_blocks.0.attn.qkv.weight": (3 * width, width),
        "decoder_blocks.0.attn.proj.weight": (width, width),
        "decoder_blocks.0.mlp.fc1.weight": (hidden, width),
        "decoder_blocks.0.mlp.fc2.weight": (width, hidden),
        "decoder_pred.weight": (768, width),
    }
    shapes |= {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")}
    norms = ("decoder_blocks.0.norm1", "decoder_blocks.0.norm2", "decoder_norm")
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    for name, shape in shapes.items():
        state[name] = torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if len(shape) == 2 else 1)
    path = tmp_path_factory.mktemp("visualize") / "mae_visualize_tiny.pth"
    torch.save({"model": state}, path)
    return path


@pytest.fixture(scope="module")
def store(
    vitrine: Run, tiny_images: Path, tiny_model: str, visualize: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder: Path = tmp_path_factory.mktemp("reconstruct") / "store"
    made = vitrine(
        "extract", f"segmentation:{tiny_images}", "--model", tiny_model, "--weights", visualize, "--store", folder
    )
    assert made.code == 0, made.err
    return folder


def test_reconstruct_scores_every_arm_and_draws_them(
    vitrine: Run, store: Path, visualize: Path, tiny_images: Path, tmp_path: Path
) -> None:
    command = ("reconstruct", store, "--weights", visualize, "--drop-top-variance", 20)
    images = ("--root", tiny_images)
    first = vitrine(*command, *images, "--out", tmp_path / "pictures", "--json")
    assert first.code == 0, first.err
    result = first.json
    assert list(result["arms"]) == ARMS
    assert (result["n_views"], result["n_taken"], result["split"], result["cached"]) == (8, 20, "test", False)
    assert result["seed"] == 0
    with Image.open(tmp_path / "pictures" / "reconstruction.png") as picture:
        # 120 pixels an inch: five columns of 2.4 inches, six of the views, and 0.3 for the titles.
        assert picture.size == (1440, 1764)
    again = vitrine(*command, "--json").json
    assert (again["cached"], again["arms"], again["digest"]) == (True, result["arms"], result["digest"])
    shown = vitrine(*command).out
    assert "20 set to their mean" in shown
    assert f"{result['arms']['random zero']['mse']:.4f}" in shown
    assert vitrine(*command, *images, "--fresh", "--json").json["changed"] is False


def test_originals_are_the_views_that_the_encoder_saw(
    vitrine: Run, store: Path, visualize: Path, tiny_images: Path
) -> None:
    """A decoder whose last layer is zero but for its bias paints one colour: its error can be had from the images."""
    state = torch.load(visualize, weights_only=True)["model"]
    state["decoder_pred.weight"].zero_()
    colour = np.array([0.6, 0.4, 0.5])
    state["decoder_pred.bias"] = torch.from_numpy(np.tile((colour - MEAN) / STD, 256)).float()
    flat = visualize.with_name("flat.pth")
    torch.save({"model": state}, flat)
    asked = ("--weights", flat, "--any-weights", "--split", "all", "--root", tiny_images)
    result = vitrine("reconstruct", store, *asked, "--json").json
    side = 160
    errors = []
    for split in ("train", "test"):
        for path in sorted((tiny_images / split).iterdir()):
            resized = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            errors.append(((np.asarray(resized) / 255.0 - colour) ** 2).mean())
    assert result["n_views"] == 24
    for arm in ARMS:
        assert result["arms"][arm]["mse"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_selection_and_the_number_it_drops_are_the_same_question(
    vitrine: Run, store: Path, visualize: Path, tiny_images: Path
) -> None:
    asked = ("reconstruct", store, "--weights", visualize, "--root", tiny_images)
    vitrine("prune", store, "--drop-top-variance", 7, "--name", "no7")
    by_number = vitrine(*asked, "--drop-top-variance", 7, "--json").json
    by_name = vitrine(*asked, "--selection", "no7", "--json").json
    assert (by_name["digest"], by_name["cached"]) == (by_number["digest"], True)
    named = ("--drop-top-variance", 7, "--split", "test", "--images", 8, "--json")
    assert vitrine(*asked, *named).json["digest"] == by_number["digest"]
    listed = vitrine("results", store).out
    assert all(words in listed for words in ("split=test", "n_taken=7", "n_views=8"))
    most = vitrine(*asked, "--drop-top-variance", 63, "--json").json
    assert most["n_taken"] == 63
    # 200 of 768, of 64 features.
    assert vitrine(*asked, "--json").json["n_taken"] == 17


def test_images_that_were_moved_are_found_by_root_and_changed_ones_are_refused(
    vitrine: Run, store: Path, visualize: Path, tiny_images: Path, tmp_path: Path
) -> None:
    command = ("reconstruct", store, "--weights", visualize, "--drop-top-variance", 3, "--images", 3)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_images, moved)
    assert vitrine(*command, "--root", moved, "--json").json["n_views"] == 3
    for path in (moved / "test").iterdir():
        Image.new("RGB", (64, 48)).save(path)
    changed = vitrine(*command, "--root", moved, "--fresh")
    assert (changed.code, len(changed.err.splitlines())) == (1, 1)
    assert "is not the one that the manifest names" in changed.err
    assert "--root FOLDER" in changed.err


def test_no_folder_is_opened_because_the_store_names_it(
    vitrine: Run, store: Path, visualize: Path, tiny_images: Path, tmp_path: Path
) -> None:
    command = ("reconstruct", store, "--weights", visualize, "--drop-top-variance", 4, "--images", 3)
    refused = vitrine(*command)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert f"The store names {str(tiny_images)!r}, and a store may be a stranger's" in refused.err
    assert refused.err.endswith(f"run the same command with --root {tiny_images}\n")
    assert vitrine(*command, "--root", tiny_images).code == 0
    # What is kept needs no image; a picture of it does.
    assert vitrine(*command, "--json").json["cached"] is True
    drawn = vitrine(*command, "--out", tmp_path / "pictures")
    assert (drawn.code, "--root" in drawn.err, (tmp_path / "pictures").exists()) == (2, True, False)


def test_links_are_followed_only_into_folders_that_the_user_names(
    vitrine: Run, tiny_images: Path, tiny_model: str, visualize: Path, tmp_path: Path
) -> None:
    elsewhere, photos, store = tmp_path / "elsewhere", tmp_path / "photos", tmp_path / "store"
    shutil.copytree(tiny_images / "test", elsewhere)
    photos.mkdir()
    for path in sorted(elsewhere.iterdir())[:2]:
        (photos / path.name).symlink_to(path)
    model = ("--model", tiny_model, "--weights", visualize, "--store", store)
    made = vitrine("extract", f"images:{photos}", *model, "--follow-links", elsewhere)
    assert made.code == 0, made.err
    command = ("reconstruct", store, "--weights", visualize, "--drop-top-variance", 4, "--split", "all")
    assert vitrine(*command).err.endswith(f"with --root {photos} --root {elsewhere}\n")
    alone = vitrine(*command, "--root", photos)
    assert (alone.code, len(alone.err.splitlines())) == (1, 1)
    assert vitrine(*command, "--root", photos, "--root", elsewhere, "--json").json["n_views"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--weights", "{encoder}"), 2, "mae_visualize_vit_base.pth"),
        (("--weights", "{other}"), 2, "--any-weights to decode all the same"),
        (("--weights", "/nowhere.pth"), 2, "cannot be read"),
        (("--weights", "{visualize}", "--selection", "no", "--drop-top-variance", "3"), 2, "at most one"),
        (("--weights", "{visualize}", "--drop-top-variance", "64"), 2, "cannot drop 64 of 64"),
        (("--weights", "{visualize}", "--drop-top-variance", "500"), 2, "a number from 1 to 63"),
        (("--weights", "{visualize}", "--drop-top-variance", "0"), 2, "1 or more"),
        (("--weights", "{folder}"), 2, "is a folder, as transformers has them, whose decoder is not read"),
        (("--weights", "{scale_mae}", "--any-weights"), 2, "not MAE's but Scale-MAE's"),
        (("--weights", "{visualize}", "--selection", "nosuch"), 2, "no selection 'nosuch'"),
        (("--weights", "{visualize}", "--split", "nosuch"), 2, "split 'nosuch' is not in"),
        (("--weights", "{visualize}", "--out", "/nowhere/a/b"), 2, "name a folder"),
        (("--weights", "{visualize}", "--root", "/nowhere", "--seed", "9"), 1, "'/nowhere' is no folder"),
        (("--weights", "{visualize}", "--images", "0"), 2, "1 or more"),
        ((), 2, "--weights"),
    ],
)
def test_wrong_use_gets_one_line(
    vitrine: Run,
    store: Path,
    visualize: Path,
    tiny_weights: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    state = torch.load(visualize, weights_only=True)
    other = visualize.with_name("other.pth")
    torch.save({"model": state["model"], "epoch": 3}, other)
    scale_mae = visualize.with_name("scale_mae.pth")
    torch.save({"model": {**state["model"], "fpn.fpn1.0.weight": torch.zeros(2)}}, scale_mae)
    paths = {
        "visualize": visualize,
        "encoder": tiny_weights,
        "other": other,
        "folder": visualize.parent,
        "scale_mae": scale_mae,
    }
    ran = vitrine("reconstruct", store, *(argument.format(**paths) for argument in arguments))
    assert says in ran.err
    assert (ran.code, len(ran.err.strip().splitlines()), ran.out) == (code, 1, "")


def test_a_store_without_class_tokens_names_the_way_out(
    vitrine: Run, tiny_images: Path, tiny_model: str, visualize: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    model = ("--model", tiny_model, "--weights", visualize, "--store", store)
    vitrine("extract", f"images:{tiny_images}/test", *model, "--tokens", "patches")
    ran = vitrine("reconstruct", store, "--weights", visualize)
    assert "`vitrine extract --tokens patches,cls` adds a feature set" in ran.err
    assert open_store(str(store)).features().spec.identity.token_kinds == ("patches",)


def test_an_intermediate_layer_is_not_decoded(
    vitrine: Run, tiny_images: Path, tiny_model: str, visualize: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    model = ("--model", tiny_model, "--weights", visualize, "--store", store)
    vitrine("extract", f"images:{tiny_images}/test", *model, "--layers", "3")
    assert "layer 6 is not in" in vitrine("reconstruct", store, "--weights", visualize).err


def test_tokens_from_windows_are_not_decoded(
    vitrine: Run, tiny_images: Path, tiny_model: str, visualize: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    model = ("--model", tiny_model, "--weights", visualize, "--store", store)
    made = vitrine("extract", f"images:{tiny_images}/test", *model, "--image-size", 160, "--window", 80)
    assert made.code == 0, made.err
    assert "extract without windows" in vitrine("reconstruct", store, "--weights", visualize).err
