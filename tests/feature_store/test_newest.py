"""newest: age alone is no ambiguity, the chain comes before any clock, and anything else is still refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from feature_store import (
    DatasetSpec,
    FeatureSetSpec,
    StoreError,
    UnknownNameError,
    create_feature_set,
    create_store,
    open_store,
    register_dataset,
)
from feature_store.growth import Growth
from feature_store.newest import newest_first
from feature_store.objects import ObjectRoot
from feature_store.records import write_record
from feature_store.runs import id_for_run
from feature_store.writer import read_spec

from .samples import CLASSES, make_spec, make_table, write_missing


def views(night: int) -> str:
    return f"{night:064x}"


def state(night: int, **changes: object) -> FeatureSetSpec:
    """A feature set of the dataset as it was on a night; each night grew out of the one before."""
    spec = make_spec(views=views(night), **changes)  # type: ignore[arg-type]
    if night == 0:
        return spec
    grown = Growth(
        predecessor=views(night - 1), origin=views(0), generation=night, in_uri_order=f"{night + (1 << 64):064x}"
    )
    return replace(spec, identity=replace(spec.identity, grown_from=grown))


def no_times() -> Mapping[str, str]:
    raise AssertionError("a clock was asked")


def add(root: ObjectRoot, spec: FeatureSetSpec, *, complete: bool = True) -> str:
    folder = create_feature_set(root, "photos", spec)
    if complete:
        write_missing(root, folder, spec)
    return folder.removeprefix("features/")


@pytest.fixture
def root(tmp_path: Path) -> ObjectRoot:
    return create_store(str(tmp_path / "s"))


def test_what_grew_out_of_another_is_newer_and_no_clock_is_asked() -> None:
    specs = {f"photos-{night}/demo": state(night) for night in (1, 3, 0, 2)}
    assert newest_first(specs, no_times) == [f"photos-{night}/demo" for night in (3, 2, 1, 0)]


def test_between_chains_the_times_of_runs_decide_and_never_against_a_chain() -> None:
    fresh = make_spec(views="f" * 64)
    specs = {"photos-0/demo": state(0), "photos-1/demo": state(1), "photos-f/demo": fresh, "photos-e/demo": fresh}
    # The clock went back between night 0 and night 1; the fresh one is older than night 0, and one has no run.
    times = {"photos-0/demo": "20260105", "photos-1/demo": "20260101", "photos-f/demo": "20260103"}
    expected = ["photos-1/demo", "photos-0/demo", "photos-f/demo", "photos-e/demo"]
    assert newest_first(specs, lambda: times) == expected


def test_a_name_means_the_newest_complete_state_and_the_others_are_named(root: ObjectRoot) -> None:
    names = [add(root, state(night), complete=night != 2) for night in range(3)]
    store = open_store(root.url)
    for name in ("photos", "photos/vit_tiny", "vit_tiny", None, "photos@latest", "@latest"):
        found = store.features(name)
        assert (found.name, found.older) == (names[1], (names[2], names[0])), name


def test_digits_after_the_at_sign_name_a_state_by_its_own_digest_or_by_its_views(root: ObjectRoot) -> None:
    names = [add(root, state(night)) for night in range(2)]
    other = add(root, replace(state(0), identity=replace(state(0).identity, views_digest="ab" * 32)))
    store = open_store(root.url)
    for night, name in enumerate(names):
        digest = state(night).identity.digest
        for digits in (digest, digest[:4]):
            assert store.features(f"photos@{digits}").name == name
    assert store.features("photos@abababab").name == other
    for name in ("photos@", "photos@earliest", "photos@abab@latest", "photos@00ff", "others@latest"):
        with pytest.raises(UnknownNameError, match="no feature set fits"):
            store.features(name)


def test_without_any_complete_state_the_newest_is_meant(root: ObjectRoot) -> None:
    names = [add(root, state(night), complete=False) for night in range(2)]
    assert open_store(root.url).resolve("photos") == names[1]


@pytest.mark.parametrize(
    "change", [{"weights": "c" * 64}, {"layers": (1,)}, {"kinds": ("cls",)}, {"dtype": "float32"}, {"model": "another"}]
)
def test_two_models_or_recipes_of_one_dataset_are_refused_also_at_latest(
    root: ObjectRoot, change: dict[str, object]
) -> None:
    names = [add(root, state(0)), add(root, state(1, **change))]
    for asked in ("photos", None, "photos@latest"):
        with pytest.raises(StoreError, match="2 feature sets fit; name one with --features") as caught:
            open_store(root.url).features(asked)
        assert all(name in str(caught.value) for name in names)


def test_two_datasets_of_one_model_are_refused(root: ObjectRoot) -> None:
    add(root, state(0))
    create_feature_set(root, "others", state(1))
    with pytest.raises(StoreError, match="2 feature sets fit"):
        open_store(root.url).features("vit_tiny")


def add_dataset(root: ObjectRoot, rows: slice) -> str:
    """A feature set of a fresh dataset that has these of 21 views."""
    dataset = register_dataset(
        root, DatasetSpec(name="photos", classes=CLASSES), rows_of_21(rows), [None] * len(rows_of_21(rows))
    )
    return add(root, make_spec(n_rows=dataset.n_rows, views=dataset.views_digest))


def rows_of_21(rows: slice) -> pa.Table:
    table = make_table(21)
    without = table.set_column(table.schema.get_field_index("mask_uri"), "mask_uri", pa.nulls(21, pa.string()))
    return without[rows]


def test_times_of_runs_are_read_from_the_store(root: ObjectRoot) -> None:
    names = [add_dataset(root, slice(start, 21)) for start in (0, 1)]
    store = open_store(root.url)
    begin_run(root, "20260102T000000-aa", names[0])
    begin_run(root, "20260101T000000-aa", names[1])
    assert store.resolve("photos") == names[0]
    begin_run(root, "20260103T000000-aa", names[1])
    assert store.resolve("photos") == names[1]


def test_chains_without_a_common_view_are_several_datasets_and_the_newest_of_each_is_listed(root: ObjectRoot) -> None:
    heads = [add_dataset(root, rows) for rows in (slice(0, 12), slice(12, 21))]
    older = read_spec(root, f"features/{heads[0]}").identity
    grown = Growth(predecessor=older.views_digest, origin=older.views_digest, generation=1, in_uri_order=views(9))
    whole = register_dataset(root, DatasetSpec(name="photos", classes=CLASSES), rows_of_21(slice(0, 11)), [None] * 11)
    later = make_spec(n_rows=whole.n_rows, views=whole.views_digest)
    heads[0] = add(root, replace(later, identity=replace(later.identity, grown_from=grown)))
    for asked in ("photos", None, "photos@latest"):
        with pytest.raises(
            UnknownNameError, match="2 datasets of one name fit, which have no view in common"
        ) as caught:
            open_store(root.url).resolve(asked)
        assert set(str(caught.value).rpartition(": ")[2].removesuffix(".").split(", ")) == set(heads)


def begin_run(root: ObjectRoot, begun: str, name: str) -> None:
    record = {"feature_set": f"features/{name}"}
    write_record(root, f"runs/{id_for_run(record, begun=begun)}/run.json", record)


def test_a_removal_never_takes_the_newest_of_several_by_itself(root: ObjectRoot) -> None:
    names = [add(root, state(night)) for night in range(2)]
    store = open_store(root.url)
    with pytest.raises(StoreError, match=r"2 feature sets fit; write the full name: "):
        store.choose("photos", newest=False, way_out="write the full name")
    assert store.choose("photos@latest", newest=False)[0] == names[1]
