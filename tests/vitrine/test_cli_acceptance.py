"""`vitrine acceptance` on a stand-in for Cityscapes in its layout, against a computation by hand on stitched images."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from feature_store import open_store
from pipelines.backbones.catalogue import CATALOGUE
from pipelines.datasets.masks import read_mask
from vitrine.acceptance import compare_top_variance, run_acceptance
from vitrine.acceptance_published import Published, published

from .conftest import Run

HEIGHT, WIDTH, TILE, GRID = 64, 128, 32, 10
N_DROPPED = (0, 8, 40)


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities a split; masks of blocks of ids that are scored and ids that are not, colours that follow them."""
    root: Path = tmp_path_factory.mktemp("cityscapes")
    random = np.random.default_rng(2)
    colours = random.integers(0, 256, (34, 3))
    for name in names("train") + names("val"):
        split = "train" if name in names("train") else "val"
        blocks = random.choice([0, 4, 7, 11, 21, 23, 26], (4, 8))
        mask = np.kron(blocks, np.ones((16, 16), dtype=int)).astype(np.uint8)
        pixels = (colours[mask] + random.normal(0, 12, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)
        for folder, suffix, values in (("leftImg8bit", "leftImg8bit", pixels), ("gtFine", "gtFine_labelIds", mask)):
            path = root / folder / split / f"{name}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return root


def names(split: str) -> list[str]:
    cities, count = (("here", "there"), 3) if split == "train" else (("near", "far"), 1)
    return [f"{city}/{city}_{index:06d}_000019" for city in cities for index in range(count)]


@pytest.fixture(scope="module")
def experiment(tiny_model: str, tiny_weights: Path) -> Published:
    return replace(
        published("mae-b"),
        model=tiny_model,
        weights_md5_prefix=hashlib.md5(tiny_weights.read_bytes(), usedforsecurity=False).hexdigest()[:6],
        image_px=(WIDTH, HEIGHT),
        tile_px=TILE,
        n_dropped=N_DROPPED,
        miou_1nn=(0.1, 0.2, 0.3),
        miou_linear=(0.4, 0.5, 0.6),
        top_variance=tuple(range(12)),
        train=tuple(names("train")),
        val=tuple(names("val")),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("acceptance") / "store"
    return place


@pytest.fixture(scope="module")
def run(experiment: Published, cityscapes: Path, tiny_weights: Path, store: Path) -> dict[str, Any]:
    """The first run's report."""
    return accept(experiment, cityscapes, tiny_weights, store)


def accept(experiment: Published, cityscapes: Path, weights: Path, store: Path, **options: Any) -> dict[str, Any]:
    out = pytest.MonkeyPatch()
    printed: list[dict[str, Any]] = []
    out.setattr("vitrine.acceptance.print_json", printed.append)
    try:
        code = run_acceptance(
            experiment, weights=weights, cityscapes=cityscapes, store=str(store), json=True, **options
        )
    finally:
        out.undo()
    assert code == 0
    (report,) = printed
    return json.loads(json.dumps(report))  # type: ignore[no-any-return]


def by_hand(cityscapes: Path, store: Path, n_dropped: int, *, standardised: bool = False) -> float:
    """1-NN by the inner product, painted, stitched, and scored as Cityscapes scores, over whole images."""
    features = open_store(str(store)).features()
    table = [
        (uri, tile["x"], tile["y"], split)
        for uri, tile, split in zip(*(features.column(name) for name in ("uri", "tile", "split")), strict=True)
    ]
    tokens = features.read().astype(np.float64)
    masks = {
        uri: read_mask(cityscapes, uri.replace("leftImg8bit/", "gtFine/").replace("_leftImg8bit", "_gtFine_labelIds"))
        for uri, *_ in table
    }
    train = [row for row, (*_, split) in enumerate(table) if split == "train"]
    flat = tokens[train].reshape(-1, tokens.shape[2])
    keep = np.sort(np.argsort(-flat.var(axis=0))[n_dropped:])
    if standardised:
        tokens = (tokens - flat.mean(axis=0)) / flat.std(axis=0)
    bank = tokens[train][..., keep].reshape(-1, len(keep))
    centre = ((np.arange(GRID) + 0.5) * TILE / GRID).astype(int)
    labels = np.concatenate(
        [masks[table[row][0]][np.ix_(table[row][2] + centre, table[row][1] + centre)].ravel() for row in train]
    )
    stitched = {uri: np.zeros((HEIGHT, WIDTH), dtype=int) for uri, *_, split in table if split == "val"}
    for row, (uri, x, y, split) in enumerate(table):
        if split == "val":
            predicted = labels[np.argmax(tokens[row][:, keep] @ bank.T, axis=1)].reshape(GRID, GRID)
            spread = (np.arange(TILE) * GRID) // TILE
            stitched[uri][y : y + TILE, x : x + TILE] = predicted[np.ix_(spread, spread)]
    pairs: Counter[tuple[int, int]] = Counter()
    for uri, prediction in stitched.items():
        pairs.update(zip(masks[uri].ravel().tolist(), prediction.ravel().tolist(), strict=True))
    official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ious = []
    for label in official:
        tp = pairs[label, label]
        fn = sum(count for (truth, guess), count in pairs.items() if truth == label != guess)
        fp = sum(count for (truth, guess), count in pairs.items() if truth in official and truth != label == guess)
        if tp + fn + fp:
            ious.append(tp / (tp + fn + fp))
    return float(np.mean(ious))


def test_1nn_numbers_are_those_computed_by_hand(run: dict[str, Any], cityscapes: Path, store: Path) -> None:
    found = {(each["n_dropped"], each["standardised"]): each for each in run["numbers"] if each["probe"] == "1-NN"}
    assert list(found) == [(0, False), (8, False), (40, False), (0, True)]
    for (n_dropped, standardised), each in found.items():
        assert each["ours"] == pytest.approx(by_hand(cityscapes, store, n_dropped, standardised=standardised), abs=1e-9)
    assert [each["published"] for each in found.values()] == [0.1, 0.2, 0.3, 0.291]
    assert all(0.05 < each["ours"] < 1 for each in found.values())
    assert len({each["ours"] for each in found.values()}) == 4


def test_every_number_of_the_table_stands_beside_the_papers(run: dict[str, Any], vitrine: Run, store: Path) -> None:
    linear = [each for each in run["numbers"] if each["probe"] == "linear"]
    assert [(each["n_dropped"], each["published"]) for each in linear] == [(0, 0.4), (8, 0.5), (40, 0.6), (0, 0.375)]
    kept = {record["digest"]: record for record in vitrine("results", store, "--json").json["results"]}
    for each in run["numbers"]:
        assert each["difference"] == pytest.approx(each["ours"] - each["published"])
        assert kept[each["digest"]]["result"]["miou"] == each["ours"]
    # Colours tell the five scored classes that occur: above chance.
    assert linear[0]["ours"] > 1 / 5
    assert run["caveats"] == []


def test_a_second_run_computes_nothing(
    run: dict[str, Any], experiment: Published, cityscapes: Path, tiny_weights: Path, store: Path
) -> None:
    again = accept(experiment, cityscapes, tiny_weights, store)
    assert all(each.pop("cached") for each in again["numbers"])
    assert again["numbers"] == [
        {name: value for name, value in each.items() if name != "cached"} for each in run["numbers"]
    ]


def test_agreement_of_features_is_counted(run: dict[str, Any], vitrine: Run, store: Path) -> None:
    order = vitrine("variance", store, "--json").json["order"]
    agreement = run["top_variance"]
    assert agreement["agree"] == len(set(order[:12]) & set(range(12)))
    assert agreement["tops"] == {"10": len(set(order[:10]) & set(range(10)))}
    counted = compare_top_variance([5, 1, 9, 4, 2, 0], (1, 5, 7))
    assert (counted.agree, counted.published, counted.only_published, counted.only_here) == (2, 3, (7,), (9,))
    # Each of three is among three of six with probability one half.
    assert counted.by_chance == 1.5


def test_fewer_images_and_other_weights_are_said_to_be_no_comparison(
    experiment: Published, cityscapes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    quick = replace(experiment, n_dropped=(8,), miou_1nn=(0.2,), miou_linear=(0.5,), weights_md5_prefix="8cad7c")
    report = accept(quick, cityscapes, tiny_weights, tmp_path / "store", limit_per_split=2)
    weights, images = report["caveats"]
    assert "are not the published mae_pretrain_vit_base.pth" in weights
    assert "only 2 images a split" in images
    assert report["features"].startswith("cityscapes-2-2-")


def test_the_published_split_is_four_images_of_each_of_18_cities_and_ten_of_each_of_three() -> None:
    experiment = published("mae-b")
    cities = [Counter(name.split("/")[0] for name in images) for images in (experiment.train, experiment.val)]
    assert (len(set(experiment.train)), len(set(experiment.val))) == (72, 30)
    assert [sorted(set(counts.values())) for counts in cities] == [[4], [10]]
    assert [len(counts) for counts in cities] == [18, 3]
    assert set(cities[1]) == {"munster", "frankfurt", "lindau"}
    assert all(name.split("/")[1].startswith(f"{name.split('/')[0]}_") for name in experiment.train + experiment.val)


def test_the_published_table_has_a_number_for_every_column() -> None:
    experiment = published("mae-b")
    assert len(experiment.n_dropped) == len(experiment.miou_1nn) == len(experiment.miou_linear) == 11
    assert len(set(experiment.top_variance)) == 200
    assert (min(experiment.top_variance), max(experiment.top_variance)) == (0, 766)
    assert (len(experiment.classes), len(experiment.scored)) == (34, 19)
    assert [experiment.classes[index] for index in experiment.scored[:4]] == ["road", "sidewalk", "building", "wall"]


def test_the_published_file_is_the_one_in_the_list_of_models() -> None:
    experiment = published("mae-b")
    (known,) = [entry for entry in CATALOGUE if entry.where.endswith(f"/{experiment.weights_file}")]
    assert known.digest == f"md5:{experiment.weights_md5_prefix}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mae-x", "--weights", "{weights}", "--cityscapes", "{root}"), "choose mae-b"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "{root}"), "204 of the 204 files of the paper's split"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "{root}", "--limit-per-split", "2"), "8 of the 8 files"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "{root}", "--limit-per-split", "1"), "2 or more"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "{small}"), "is 128 x 64, and the paper's is 2048 x 1024"),
        (("mae-b", "--weights", "/nowhere.pth", "--cityscapes", "{root}"), "/nowhere.pth cannot be read"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "/nowhere"), "--cityscapes /nowhere does not exist"),
        (("mae-b", "--weights", "{weights}", "--cityscapes", "{weights}"), "is a file; give the folder"),
        (("mae-b", "--cityscapes", "{root}"), "--weights"),
    ],
)
def test_wrong_use_gets_one_line(
    vitrine: Run, cityscapes: Path, tiny_weights: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    if "{small}" in arguments:
        write_listed(cityscapes, tmp_path / "small")
    paths = {"weights": tiny_weights, "root": cityscapes, "small": tmp_path / "small"}
    store = tmp_path / "store"
    ran = vitrine("acceptance", *(argument.format(**paths) for argument in arguments), "--store", store)
    assert says in ran.err
    assert (ran.code, len(ran.err.strip().splitlines()), ran.out) == (2, 1, "")
    assert not store.exists()


def test_missing_files_are_counted_and_the_first_is_named(vitrine: Run, cityscapes: Path, tiny_weights: Path) -> None:
    ran = vitrine("acceptance", "mae-b", "--weights", tiny_weights, "--cityscapes", cityscapes)
    assert "'leftImg8bit/train/krefeld/krefeld_000000_011655_leftImg8bit.png'" in ran.err
    assert "gtFine/{train,val}/<city>/*_gtFine_labelIds.png" in ran.err


def write_listed(cityscapes: Path, root: Path) -> None:
    """Every file of the published list, each the same small picture."""
    experiment = published("mae-b")
    for split, images in (("train", experiment.train), ("val", experiment.val)):
        for name in images:
            for folder, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
                path = root / folder / split / f"{name}_{suffix}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                source = next((cityscapes / folder / "val" / "near").iterdir())
                path.write_bytes(source.read_bytes())
