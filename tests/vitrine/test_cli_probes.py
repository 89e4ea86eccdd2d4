import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluators import linear_memory
from feature_store import open_store
from tests.evaluators.conftest import build

from .conftest import Run


def test_ls_and_show_name_what_is_there(vitrine: Run, tiny_store: Path) -> None:
    (listed,) = vitrine("ls", tiny_store, "--json").json["feature_sets"]
    assert (listed["rows"], listed["complete"], listed["layers"]) == (24, True, [6])
    shown = vitrine("show", tiny_store, "--json").json
    assert shown["digest"] == open_store(str(tiny_store)).features().digest
    assert shown["dataset"]["classes"] == ["grass", "brick", "water"]
    assert shown["mixed_environment"] is False
    for command in ("ls", "show"):
        assert listed["name"] in vitrine(command, tiny_store).out


def test_variance_is_numpys_over_the_train_tokens(vitrine: Run, tiny_store: Path) -> None:
    result = vitrine("variance", tiny_store, "--json").json
    features = open_store(str(tiny_store)).features()
    tokens = features.read(rows=features.rows_of_split("train").tolist()).reshape(-1, 64).astype(np.float64)
    np.testing.assert_allclose(result["variance"], tokens.var(axis=0), rtol=1e-10)
    assert result["order"][0] == int(tokens.var(axis=0).argmax())


def test_every_probe_answers_and_the_second_time_from_the_store(vitrine: Run, tiny_store: Path) -> None:
    for command in (("variance",), ("knn", "--k", 3), ("linear",)):
        first = vitrine(command[0], tiny_store, *command[1:], "--json").json
        second = vitrine(command[0], tiny_store, *command[1:], "--json").json
        assert second["cached"] is True
        for volatile in ("cached", "seconds", "changed"):
            first.pop(volatile, None)
            second.pop(volatile, None)
        assert first == second
        assert "from the store" in vitrine(command[0], tiny_store, *command[1:]).out


def test_knn_and_linear_carry_miou_and_patch_accuracy(vitrine: Run, tiny_store: Path) -> None:
    for command in ("knn", "linear"):
        result = vitrine(command, tiny_store, "--json").json
        # Three classes that differ in colour: far above chance.
        assert 1 / 3 < result["miou"] < 1
        assert 1 / 3 < result["ceiling_miou"] < 1
        assert 1 / 3 < result["patch_accuracy"] <= 1


@pytest.mark.parametrize("command", [("knn",), ("linear", "--l2", "0.01")])
def test_scoring_a_class_that_no_test_pixel_has_ends_well_and_names_it(
    vitrine: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    build(tmp_path / "store", n_rows=14, absent=2)
    name, *options = command
    asked = (name, tmp_path / "store", "--score", "tree", *options)
    answer = vitrine(*asked, "--json")
    assert (answer.code, answer.json["ceiling_miou"], answer.json["absent"]) == (0, None, ["tree"])
    assert "no test token or pixel is of class tree" in vitrine(*asked).out


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_scoring_some_classes_is_another_question(vitrine: Run, tiny_store: Path, command: str) -> None:
    every = vitrine(command, tiny_store, "--json").json
    some = vitrine(command, tiny_store, "--score", "water, grass", "--json").json
    assert (some["scored"], "scored" in every) == (["grass", "water"], False)
    assert some["class_iou"]["brick"] is None
    assert some["miou"] == pytest.approx((some["class_iou"]["grass"] + some["class_iou"]["water"]) / 2)
    assert some["digest"] != every["digest"]


def test_several_k_give_one_result_each(vitrine: Run, tiny_store: Path) -> None:
    results = vitrine("knn", tiny_store, "--k", "1,5", "--metric", "l2", "--json").json["results"]
    assert [result["k"] for result in results] == [1, 5]
    assert results[1]["miou"] == vitrine("knn", tiny_store, "--k", 5, "--metric", "l2", "--json").json["miou"]


def test_prune_makes_a_selection_that_probes_use(vitrine: Run, tiny_store: Path, tmp_path: Path) -> None:
    made = vitrine("prune", tiny_store, "--drop-top-variance", 10, "--name", "no10", "--json").json
    top = vitrine("variance", tiny_store, "--json").json["order"][:10]
    assert made["dropped"] == sorted(top)
    assert vitrine("knn", tiny_store, "--selection", "no10", "--json").json["n_features"] == 54
    listed = tmp_path / "drop.txt"
    listed.write_text("\n".join(map(str, top)))
    same = vitrine("prune", tiny_store, "--drop", listed, "--name", "listed10", "--json").json
    assert same["digest"] == made["digest"]
    assert vitrine("knn", tiny_store, "--selection", "listed10", "--json").json["cached"] is True
    random = vitrine("prune", tiny_store, "--drop-random", 10, "--seed", 3, "--name", "random10", "--json").json
    assert (len(random["dropped"]), random["digest"] != made["digest"]) == (10, True)


def test_results_lists_what_was_answered(vitrine: Run, tiny_store: Path) -> None:
    digest = vitrine("knn", tiny_store, "--metric", "dot", "--json").json["digest"]
    found = vitrine("results", tiny_store, "--json").json["results"]
    assert digest in [record["digest"] for record in found]
    assert digest[:8] in vitrine("results", tiny_store).out


def test_fresh_says_that_nothing_changed(vitrine: Run, tiny_store: Path) -> None:
    vitrine("knn", tiny_store)
    assert vitrine("knn", tiny_store, "--fresh", "--json").json["changed"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("knn", "{store}", "--metric", "manhattan"), 2, "dot, cosine, l2"),
        (("knn", "{store}", "--k", "0"), 2, "above 0"),
        (("knn", "{store}", "--k", "one"), 2, "numbers"),
        (("knn", "{store}", "--k", "100000"), 2, "give 1600 at most"),
        (("knn", "{store}", "--test-split", "train"), 2, "is the split to train on as well"),
        (("knn", "{store}", "--layer", "0"), 2, "Layers count from 1"),
        (("linear", "{store}", "--memory", "0.001"), 2, "give as much"),
        (
            ("prune", "{store}", "--name", "x", "--drop-random", "1", "--tokens", "registers"),
            2,
            "no 'registers' tokens",
        ),
        (("prune", "{store}", "--name", "x", "--drop", "/dev/null"), 2, "it lists no feature"),
        (("knn", "{store}", "--selection", "nosuch"), 2, "no selection 'nosuch'"),
        (("knn", "{store}", "--selection", "../../etc"), 2, "plain name"),
        (("knn", "{store}", "--on", "cls"), 1, "no image labels"),
        (("knn", "{store}", "--features", "nosuch"), 2, "no feature set fits"),
        (("knn", "{store}", "--layer", "3"), 2, "it has 6"),
        (("knn", "/nowhere"), 1, "no store at"),
        (("knn", "{store}", "--score", "grass,sand"), 2, "--score 'sand': tiny has grass, brick, water"),
        (("linear", "{store}", "--l2", "-1"), 2, "above 0"),
        (("linear", "{store}", "--l2", "1e-2,1e-30"), 2, "give strengths of 1e-15 or more"),
        (("linear", "{store}", "--hold-out", "2"), 2, "between 0 and 1"),
        (("prune", "{store}", "--name", "x"), 2, "exactly one"),
        (("prune", "{store}", "--name", "x", "--drop-top-variance", "64"), 2, "cannot drop 64 of 64"),
        (("prune", "{store}", "--name", "a/b", "--drop-random", "3"), 2, "plain name"),
        (("variance", "{store}", "--tokens", "pixels"), 2, "patches, cls, registers"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_wrong_use_gets_one_line(
    vitrine: Run, tiny_store: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = vitrine(*(argument.format(store=tiny_store) for argument in arguments))
    assert message in ran.err
    assert ran.code == code
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""


def test_probes_need_neither_images_nor_the_extraction_packages(
    tiny_store: Path, tiny_images: Path, tmp_path: Path, vitrine: Run
) -> None:
    """The evaluators run in a process in which timm, Beam and Pillow cannot be imported, the image folder gone."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    shutil.rmtree(store / "results")
    moved = tiny_images.with_name("moved")
    tiny_images.rename(moved)
    try:
        code = (
            "import sys, json\n"
            "for name in ('timm', 'apache_beam', 'PIL', 'torchvision', 'pipelines'): sys.modules[name] = None\n"
            "from vitrine.__main__ import run\n"
            f"sys.exit(run([sys.argv[1], {str(store)!r}, '--json']))\n"
        )
        for command in ("variance", "knn", "linear"):
            done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            mine, theirs = json.loads(done.stdout), vitrine(command, tiny_store, "--json").json
            assert mine["cached"] is False
            assert mine.get("miou", mine.get("variance")) == theirs.get("miou", theirs.get("variance"))
    finally:
        moved.rename(tiny_images)


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_hold_out_beside_a_test_split_is_refused(vitrine: Run, tiny_store: Path, command: str) -> None:
    refused = vitrine(command, tiny_store, "--hold-out", 0.2, "--test-split", "test")
    assert refused.code == 2
    assert "give one of the two" in refused.err


def test_linear_beyond_memory_says_first_what_it_does(
    vitrine: Run, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "takes 0.0" in vitrine("linear", tiny_store, "--memory", 0.001).err
    # Without what libraries take whatever the store, this small one is beyond a megabyte.
    monkeypatch.setattr(linear_memory, "working_bytes", lambda _n_features: 0)
    little = ("linear", tiny_store, "--memory", 0.001, "--l2", 0.01, "--json")
    sampled = vitrine(*little)
    assert "training images are used, drawn with seed 0" in sampled.err
    assert sampled.json["sample"]["images"] < sampled.json["sample"]["of"]
    in_passes = vitrine(*little, "--all-rows", "--max-passes", 5)
    assert "in passes: some 5 to 5 of" in in_passes.err
    assert (in_passes.json["passes"], in_passes.json["converged"], in_passes.json["sample"]) == (5, False, None)


def test_prune_takes_the_tokens_that_probes_of_the_dataset_use_and_says_so(vitrine: Run, photos_store: Path) -> None:
    made = vitrine("prune", photos_store, "--drop-top-variance", 3, "--name", "no3", "--json").json
    assert made["tokens"] == "cls"
    features = open_store(str(photos_store)).features()
    variance = features.read("last", "cls").astype(np.float64).var(axis=0)
    assert made["dropped"] == sorted(np.argsort(-variance)[:3].tolist())
    assert "of cls, layer 6" in vitrine("prune", photos_store, "--drop-random", 3, "--name", "random3").out


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_class_folders_without_splits_are_evaluated_on_images_held_out(
    vitrine: Run, photos_store: Path, command: str
) -> None:
    refused = vitrine(command, photos_store)
    assert refused.code == 1
    assert "has no splits" in refused.err
    assert "--hold-out 0.25" in " ".join(refused.err.split())
    answer = vitrine(command, photos_store, "--hold-out", 0.25, "--seed", 1, "--json").json
    assert (answer["n_train"], answer["n_test"]) == (9, 3)
    assert answer["test_split"] == "held out of all rows: 3 of 12 images, 3 of 12 rows, seed 1"


def test_a_selection_of_other_tokens_is_refused_and_any_layer_is_told(
    vitrine: Run, photos_store: Path, tmp_path: Path
) -> None:
    vitrine("prune", photos_store, "--tokens", "patches", "--drop-random", 3, "--name", "of-patches")
    commands: list[tuple[object, ...]] = [
        ("knn", photos_store, "--hold-out", 0.25),
        ("linear", photos_store, "--hold-out", 0.25, "--l2", 0.1),
        ("query", photos_store, "--nearest", 0),
        ("export", photos_store, tmp_path / "out", "--to", "npy"),
    ]
    for words in commands:
        refused = vitrine(*words, "--selection", "of-patches")
        assert refused.code == 2, words
        assert "was made on patches of layer 6, and cls of layer 6 are read" in " ".join(refused.err.split())
        answer = vitrine(*words, "--selection", "of-patches", "--any-layer", "--json").json
        assert answer["selection_made_on"] == "patches of layer 6"
    for printed in (
        vitrine(*commands[0], "--selection", "of-patches", "--any-layer"),
        vitrine("results", photos_store),
    ):
        assert "selection_made_on=patches of layer 6" in " ".join(printed.out.split())


def test_a_fit_that_did_not_converge_is_not_shown_as_an_ordinary_answer(vitrine: Run, tiny_store: Path) -> None:
    asked = ("linear", tiny_store, "--l2", "2e-4")
    full, cut = vitrine(*asked).out, vitrine(*asked, "--max-passes", 2).out
    loss = vitrine(*asked, "--max-passes", 2, "--json").json["loss"]
    assert f"not converged after 2 passes; loss {loss:.4g}" in cut
    assert "max_passes=2" in cut.splitlines()[0]
    assert "not converged" not in full
    assert {"converged=no", "max_passes=2"} <= set(vitrine("results", tiny_store).out.split())
