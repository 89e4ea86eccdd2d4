"""verify: a sound store is called sound, and every damage is found where it is."""

import random
import shutil
from pathlib import Path

import pytest

from feature_store import CorruptError, FeatureStore, StoreError, create_feature_set, create_store
from feature_store.records import read_record, record_bytes, write_record
from feature_store.roots import open_root
from feature_store.upkeep import VerifyReport, verify_store
from feature_store.upkeep.coverage import choose_sample
from feature_store.upkeep.inspection import Inspection
from tests.feature_store.samples import make_spec, register, write_missing
from tests.feature_store.upkeep.stores import make_whole


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a store on a disk; nobody changes it."""
    folder = tmp_path_factory.mktemp("sound") / "store"
    make_whole(str(folder))
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(sound, tmp_path / "store"))


def verify(store: Path, *, deep: bool = False) -> VerifyReport:
    return verify_store(open_root(str(store)), deep=deep)


def kinds(report: VerifyReport) -> dict[str, str]:
    return {finding.path: finding.kind for finding in report.problems}


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def a_shard(store: Path) -> Path:
    (place,) = store.glob("features/*/*/tokens.zarr/layer_1/patches/c/1/0/0")
    return place


def test_a_sound_store_is_called_sound_and_every_byte_of_its_data_is_read(store_url: str) -> None:
    root = make_whole(store_url)
    stated = sum(size for path, size in root.walk("") if "/c/" in path or path.startswith("datasets/tiny/"))
    stated -= sum(size for path, size in root.walk("datasets") if path.endswith(".json") and "zarr" not in path)
    for deep in (False, True):
        report = verify_store(root, deep=deep)
        assert report.problems == report.notes == ()
        assert report.objects_checked == len(list(root.walk("")))
        assert report.bytes_in_all == stated
        assert report.bytes_read == (stated if deep else 0)


def test_any_flipped_bit_of_any_file_is_found_by_deep(store: Path) -> None:
    chance = random.Random(0)
    for path in files(store):
        content = path.read_bytes()
        for _ in range(2):
            place = chance.randrange(len(content))
            path.write_bytes(
                content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
            )
            report = verify(store, deep=True)
            assert any(str(path.relative_to(store)) == finding.path for finding in report.problems), (path, place)
        path.write_bytes(content)
    assert verify(store, deep=True).sound


def test_a_cut_or_lost_file_is_found_without_reading_data(store: Path) -> None:
    for path in files(store):
        content = path.read_bytes()
        name = str(path.relative_to(store))
        path.write_bytes(content[:-1])
        assert name in kinds(verify(store)), name
        path.unlink()
        # A file that nothing states can only be found missing by whoever asks for it.
        unstated = name.startswith(("selections", "results", "runs"))
        lost_receipt = "receipts/" in name
        lost_index = name.endswith("receipts.json")
        report = verify(store)
        assert report.sound == (unstated or lost_receipt or lost_index), name
        assert not lost_receipt or [finding.kind for finding in report.notes] == ["unfinished"]
        assert not lost_index or [finding.kind for finding in report.notes] == ["index"]
        path.write_bytes(content)


@pytest.mark.parametrize(
    "place",
    ["x", "features/x", "features/tiny/x", "datasets/tiny/x.json", "selections/x.txt", "results/x.json", "runs/x/y/z"],
)
def test_a_file_that_does_not_belong_is_found(store: Path, place: str) -> None:
    (store / place).parent.mkdir(parents=True, exist_ok=True)
    (store / place).write_text("x")
    assert kinds(verify(store)) == {place: "stray"}


def test_a_file_that_does_not_belong_is_found_inside_a_feature_set_and_a_dataset(store: Path) -> None:
    strays = {a_shard(store).parents[2] / "9" / "0" / "0", next(store.glob("datasets/tiny/*/")) / "notes.txt"}
    for stray in strays:
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("x")
    assert kinds(verify(store)) == {str(stray.relative_to(store)): "stray" for stray in strays}


def test_swapped_shards_are_found_even_with_their_receipts(store: Path) -> None:
    other = a_shard(store).parents[2] / "0" / "0" / "0"
    mine, theirs = a_shard(store).read_bytes(), other.read_bytes()
    a_shard(store).write_bytes(theirs)
    other.write_bytes(mine)
    assert verify(store).sound
    assert set(kinds(verify(store, deep=True)).values()) == {"checksum"}
    receipts = sorted(store.glob("features/*/*/receipts/*"))[:2]
    texts = [receipt.read_bytes() for receipt in receipts]
    for receipt, text in zip(receipts, reversed(texts), strict=True):
        receipt.write_bytes(text)
    assert {str(receipt.relative_to(store)): "record" for receipt in receipts} == kinds(verify(store))


def test_a_shard_of_another_identity_is_found_even_with_its_receipt(store: Path) -> None:
    root = open_root(str(store))
    ours = FeatureStore(root).features()
    spec = make_spec(views=ours.spec.identity.views_digest, weights="c" * 64)
    folder = create_feature_set(root, "tiny", spec)
    write_missing(root, folder, spec)
    assert verify(store, deep=True).sound
    for name in (*(path for path, _ in root.walk(folder) if "/c/1" in path), f"{folder}/receipts/000001.json"):
        root.put(name.replace(folder, ours.folder), [root.read(name)])
    found = verify(store, deep=True)
    assert kinds(found) == {f"{ours.folder}/receipts/000001.json": "record"}
    with pytest.raises(CorruptError, match="is not what its receipt says"):
        FeatureStore(root).features(ours.name).read()
    root.remove(f"{ours.folder}/receipts.json")
    assert 1 not in FeatureStore(root).features(ours.name).receipts


def test_a_record_spelled_otherwise_is_found(store: Path) -> None:
    (selection,) = store.glob("selections/*.json")
    selection.write_bytes(selection.read_bytes() + b" ")
    (problem,) = verify(store).problems
    assert problem.text.startswith("selections/no1.json says what it must, but not in the bytes that Vitrine writes")


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("selections/no1.json", {"name": "other"}),
        ("selections/no1.json", {"features": [0, 1]}),
        ("results/knn/*.json", {"key": {"k": 2}}),
        ("features/*/*/feature_set.json", {"model": "another"}),
        ("features/*/*/feature_set.json", {"n_rows": 22}),
        ("datasets/tiny/*/dataset.json", {"annotations_digest": "0" * 64}),
        ("datasets/tiny/*/dataset.json", {"name": "other"}),
        ("datasets/tiny/????????.json", {"annotations_in_force": "datasets/tiny/../../x"}),
        ("vitrine.json", {"schema": 2}),
    ],
)
def test_a_record_with_a_right_digest_and_wrong_content_is_found(
    store: Path, place: str, change: dict[str, object]
) -> None:
    root = open_root(str(store))
    (path,) = (str(found.relative_to(store)) for found in store.glob(place))
    write_record(root, path, {**read_record(root, path), **change})
    assert path in kinds(verify(store))


@pytest.mark.parametrize("change", [{"void": 254}, {"classes": ["a", "b", "c"]}])
def test_deep_takes_a_datasets_digests_again(store: Path, change: dict[str, object]) -> None:
    root = open_root(str(store))
    (path,) = (str(found.relative_to(store)) for found in store.glob("datasets/*/*/dataset.json"))
    root.put(path, [record_bytes({**read_record(root, path), **change})])
    assert verify(store).sound
    (problem,) = verify(store, deep=True).problems
    assert (problem.path, problem.kind) == (path, "content")
    assert "has the annotations digest" in problem.text


def test_deep_holds_the_array_of_valid_rows_to_the_receipts(store: Path) -> None:
    root = open_root(str(store))
    (path,) = (str(found.relative_to(store)) for found in store.glob("features/*/*/receipts/000000.json"))
    root.put(path, [record_bytes({**read_record(root, path), "invalid": []})])
    (index,) = (str(found.relative_to(store)) for found in store.glob("features/*/*/receipts.json"))
    assert kinds(verify(store)) == {index: "record"}
    root.remove(index)
    assert verify(store).sound
    assert kinds(verify(store, deep=True)) == {path: "content"}


def test_what_an_interrupted_run_leaves_is_no_problem(store_url: str) -> None:
    root = create_store(store_url)
    dataset = register(root, 21)
    spec = make_spec(views=dataset.views_digest)
    folder = create_feature_set(root, "tiny", spec)
    root.put(f"{folder}/tokens.zarr/valid/c/.0.00{'0' * 30}.partial", [b"torn"])
    root.remove(f"{folder}/tokens.zarr/zarr.json")
    report = verify_store(root, deep=True)
    assert report.sound
    assert [finding.kind for finding in report.notes] == ["unfinished", "partial"]
    assert "3 of 3 shards" in report.notes[0].text


def test_a_feature_set_whose_dataset_is_gone_is_a_problem(store: Path) -> None:
    shutil.rmtree(store / "datasets")
    (problem,) = verify(store).problems
    assert problem.kind == "missing"
    assert "run the same `vitrine extract` again" in problem.text


def test_only_the_named_feature_sets_are_looked_at(store: Path) -> None:
    (store / "selections" / "no1.json").write_text("{")
    root = open_root(str(store))
    assert verify_store(root, features=["vit_tiny"]).sound
    a_shard(store).unlink()
    assert not verify_store(root, features=["vit_tiny"]).sound


def test_samples_of_a_round_read_everything_once_and_say_how_much(store: Path) -> None:
    root = open_root(str(store))
    shares = [verify_store(root, sample=0.2).share_over_time or 0.0]
    while shares[-1] < 1:
        report = verify_store(root, sample=0.2)
        assert report.bytes_read >= 0.2 * report.bytes_in_all
        shares.append(report.share_over_time or 0.0)
    assert shares == sorted(set(shares))
    assert len(shares) <= 5
    assert (verify_store(root, sample=0.2).share_over_time or 1) < 1, "a new round"
    with pytest.raises(StoreError, match="give a share above 0"):
        verify_store(root, sample=0.0)


def test_a_sample_differs_from_the_one_before_and_finds_what_it_reads(store: Path) -> None:
    root = open_root(str(store))
    inspection = Inspection(root)
    assert inspection.data == []
    content = a_shard(store).read_bytes()
    a_shard(store).write_bytes(bytes(len(content)))
    found = [kinds(verify_store(root, sample=0.2)) for _ in range(5)]
    assert {"checksum"} == {kind for each in found for kind in each.values()}
    assert choose_sample([], set(), 0.5) == []
