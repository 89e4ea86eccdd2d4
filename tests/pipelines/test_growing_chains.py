"""Several datasets of one name in one store: each goes on with its own chain, and a damaged one is not passed over."""

import shutil
from pathlib import Path

import pytest

from feature_store import CorruptError, open_store
from feature_store.roots import open_root
from feature_store.upkeep import collect_garbage
from pipelines.run import Prepared
from tests.pipelines.nights import Nights, run


@pytest.fixture
def nights(tmp_path: Path, pictures: Path) -> Nights:
    return Nights(tmp_path, pictures)


@pytest.fixture
def others(tmp_path: Path, pictures: Path, nights: Nights) -> Nights:
    """A folder of the same name and in the same store, with none of the same pictures."""
    others = Nights(tmp_path / "elsewhere", pictures, store=nights.store)
    shutil.rmtree(others.images)
    (others.images / "even").mkdir(parents=True)
    for number in range(20, 32):
        others.add(number, f"even/{number}.png")
    return others


def grown(prepared: Prepared) -> tuple[str | None, int, int]:
    assert prepared.grown is not None
    return prepared.grown.predecessor, prepared.grown.kept, prepared.grown.new


def test_two_folders_of_one_name_grow_beside_each_other(nights: Nights, others: Nights) -> None:
    names = [each.extract().feature_set for each in (nights, others)]
    for night in range(2):
        nights.add(40 + night, f"even/000{night}.png")
        others.add(50 + night, f"even/000{night}.png")
        for number, (each, rows) in enumerate(((nights, 20), (others, 12))):
            assert grown(each.prepare()) == (names[number], rows + night, 1)
            names[number] = each.extract().feature_set


def test_a_damaged_manifest_of_the_predecessor_is_refused_with_the_ways_out(nights: Nights) -> None:
    nights.extract()
    nights.add(50, "even/x.png")
    second = open_store(nights.store).features(nights.extract().feature_set)
    nights.add(51, "even/y.png")
    place = Path(nights.store) / second.dataset.folder / "manifest.parquet"
    content = place.read_bytes()
    place.write_bytes(content[:-7])
    with pytest.raises(CorruptError, match="decides the order of the rows") as caught:
        nights.prepare()
    assert all(word in str(caught.value) for word in (f"vitrine rm {second.name}", "vitrine repair", "--order uri"))
    place.unlink()
    with pytest.raises(CorruptError, match="--order uri"):
        nights.prepare()
    place.write_bytes(content)
    assert grown(nights.prepare()) == (second.name, 21, 1)


@pytest.mark.parametrize("order", ["grown", "uri"])
def test_gc_superseded_leaves_another_dataset_of_the_same_name_with_its_own_labels(
    nights: Nights, others: Nights, order: str
) -> None:
    """A larger folder has all pictures of the others: in its own chain, or grown out of them with other classes."""
    if order == "grown":
        (others.images / "even").rename(others.images / "birds")
    first = others.extract().feature_set
    for place in others.images.rglob("*.png"):
        shutil.copy(place, nights.images / "even")
    second = run(nights.prepare(order=order)).feature_set
    collect_garbage(open_root(nights.store), superseded=True, remove=True)
    assert open_store(nights.store).names() == sorted([first, second])
