"""verify, repair, diff, gc, rm and cp as a user runs them."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from feature_store import FeatureStore, create_store
from feature_store.records import parse_record, record_bytes, write_record
from feature_store.roots import open_root
from feature_store.runs import id_for_run
from tests.feature_store.samples import files_of
from vitrine.output import counted, print_table

from .conftest import Run


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the store to break."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def one(store: Path, pattern: str) -> Path:
    return sorted(store.glob(f"features/*/*/{pattern}"))[0]


def spoil(path: Path) -> bytes:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    return content


def test_verify_says_sound_and_what_it_read(vitrine: Run, store: Path) -> None:
    for options, shares in (((), 0), (("--deep",), 1)):
        ran = vitrine("verify", store, *options, "--json")
        assert (ran.code, ran.json["sound"], ran.json["problems"]) == (0, True, [])
        assert ran.json["bytes_read"] == shares * ran.json["bytes_in_all"]
    ran = vitrine("verify", store, "--sample", "10%", "--json")
    assert ran.code == 0
    assert 0.1 <= ran.json["share_over_time"] < 1
    assert "sound" in vitrine("verify", store).out


def test_verify_names_what_is_wrong_and_the_way_out(vitrine: Run, store: Path) -> None:
    spoil(one(store, "tokens.zarr/layer_6/patches/c/0/0/0"))
    assert vitrine("verify", store).code == 0
    ran = vitrine("verify", store, "--deep")
    assert ran.code == 1
    assert "checksum: features/" in ran.out
    assert "`vitrine repair` moves it aside" in " ".join(ran.out.split())
    assert vitrine("verify", store, "--deep", "--features", "tiny", "--json").json["problems"][0]["kind"] == "checksum"
    (store / "vitrine.json").unlink()
    assert vitrine("verify", store, "--json").json["problems"][-1]["path"] == "vitrine.json"


@pytest.mark.parametrize("share", ["0", "101%", "-1", "x", "nan"])
def test_an_impossible_sample_is_wrong_usage(vitrine: Run, store: Path, share: str) -> None:
    ran = vitrine("verify", store, f"--sample={share}")
    assert ran.code == 2
    assert "give a share above 0 and up to 1" in ran.err


@pytest.mark.parametrize("command", ["verify", "repair", "gc", "diff", "cp", "rm"])
def test_where_there_is_no_store_it_says_so(vitrine: Run, tmp_path: Path, command: str) -> None:
    others: dict[str, list[object]] = {"diff": [tmp_path], "cp": [tmp_path / "to"], "rm": ["x"]}
    more = others.get(command, [])
    ran = vitrine(command, tmp_path / "nothing", *more)
    assert (ran.code, ran.out) == (1, "")
    assert "no store at" in ran.err
    assert not (tmp_path / "nothing").exists()


def test_repair_moves_aside_and_reruns_from_the_stored_plan(
    vitrine: Run, store: Path, tiny_store: Path, tiny_images: Path, tiny_weights: Path
) -> None:
    spoil(one(store, "tokens.zarr/layer_6/patches/c/0/0/0"))
    spoil(one(store, "feature_set.json"))
    (store / "notes.txt").write_text("mine")
    ran = vitrine("repair", store, "--json")
    assert ran.code == 3
    (unfinished,) = ran.json["unfinished"]
    assert unfinished["shards"] == [0]
    assert (store / ran.json["aside"] / "notes.txt").read_text() == "mine"
    assert "lacks 1 shard;" in vitrine("repair", store).out
    ran = vitrine("repair", store, "--rerun", "--images", tiny_images, "--weights", tiny_weights, "--json")
    assert (ran.code, ran.json["reruns"][0]["complete"]) == (0, True), ran.json
    assert files_of(store / "features") == files_of(tiny_store / "features")
    assert vitrine("verify", store, "--deep").code == 0


def test_a_rerun_without_its_images_says_so(vitrine: Run, store: Path) -> None:
    for plan in store.glob("runs/*/plan.json"):
        plan.unlink()
    one(store, "receipts/*.json").unlink()
    ran = vitrine("repair", store, "--rerun", "--json")
    assert ran.code == 3
    assert "run the same `vitrine extract` again" in ran.json["reruns"][0]["reason"]


def opened_below(folder: Path) -> list[str]:
    """Watch which files below a folder this process opens; the list grows while it does."""
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in {"open", "os.listdir", "os.scandir"} and str(arguments[0]).startswith(str(folder)):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    return opened


def test_a_rerun_opens_nothing_on_the_word_of_a_store(
    vitrine: Run, store: Path, tiny_images: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    shutil.copytree(tiny_images, secret)
    shutil.copy(tiny_weights, secret / "w.pth")
    (plan,) = store.glob("runs/*/plan.json")
    content = parse_record(plan.read_bytes(), name="plan.json")
    content["dataset_root"], content["link_roots"] = str(secret), ["/etc"]
    content["backbone"]["weights"] = str(secret / "w.pth")
    plan.write_bytes(record_bytes(content))
    one(store, "receipts/000000.json").unlink()
    opened = opened_below(secret)
    for options in ((), ("--images", secret), ("--weights", secret / "w.pth")):
        ran = vitrine("repair", store, "--rerun", *options, "--json")
        assert ran.code == 3
        command = f"vitrine repair {store} --rerun --images {secret} --images /etc --weights {secret / 'w.pth'}"
        assert ran.json["reruns"][0]["reason"].endswith(command)
        assert opened == []
    # A single folder and file stand in for those of the store, wherever these are.
    ran = vitrine("repair", store, "--rerun", "--images", tiny_images, "--weights", tiny_weights, "--json")
    assert (ran.code, ran.json["reruns"][0]["complete"]) == (0, True), ran.json
    assert opened == []


def test_what_a_rerun_may_read_is_refused_without_a_rerun(vitrine: Run, store: Path, tiny_images: Path) -> None:
    ran = vitrine("repair", store, "--images", tiny_images)
    assert ran.code == 2
    assert "add --rerun" in ran.err


def test_diff_tells_equal_from_not(vitrine: Run, store: Path, tiny_store: Path) -> None:
    ran = vitrine("diff", tiny_store, store, "--json")
    assert (ran.code, ran.json["equal"]) == (0, True)
    ran = vitrine("diff", f"{store}#tiny", store, "--json")
    assert ran.json["comparisons"][0]["arrays"][0]["first_row"] is None
    assert vitrine("compress", store, "--storage", "int8", "--json").code == 0
    exact, rounded = (each["name"] for each in vitrine("ls", store, "--json").json["feature_sets"])
    ran = vitrine("diff", f"{store}#{exact}", f"{store}#{rounded}")
    assert ran.code == 1
    assert "not equal" in ran.out


def test_diff_compares_no_bytes_that_are_not_what_was_written(vitrine: Run, store: Path, tiny_store: Path) -> None:
    spoil(one(store, "tokens.zarr/layer_6/patches/c/0/0/0"))
    ran = vitrine("diff", tiny_store, store)
    assert (ran.code, ran.out) == (1, "")
    assert "is not what its receipt says (checksum)" in ran.err


def test_gc_is_dry_until_told(vitrine: Run, store: Path) -> None:
    (store / "aside" / "1").mkdir(parents=True)
    (store / "aside" / "1" / "x").write_text("x")
    before = files_of(store)
    assert "nothing was removed: pass --yes" in vitrine("gc", store, "--aside").out
    assert files_of(store) == before
    ran = vitrine("gc", store, "--aside", "--yes", "--json")
    assert [each["path"] for each in ran.json["garbage"]] == ["aside/1"]
    assert set(before) - set(files_of(store)) == {"aside/1/x"}


def test_rm_asks_for_yes_and_refuses_a_dataset_in_use(vitrine: Run, store: Path) -> None:
    before = files_of(store)
    ran = vitrine("rm", store, "tiny")
    assert ran.code == 0
    assert "nothing was removed: pass --yes" in ran.out
    ran = vitrine("rm", store, "datasets/tiny", "--yes")
    assert ran.code == 1
    assert "is in use" in ran.err
    assert files_of(store) == before
    assert vitrine("rm", store, "tiny", "--yes", "--json").json["removed"]
    assert vitrine("rm", store, "datasets/tiny", "--yes").code == 0
    assert not list(store.glob("*/tiny*"))
    assert vitrine("verify", store).code == 0


def test_rm_beside_a_writer_is_refused(vitrine: Run, store: Path) -> None:
    writer = create_store(str(store))
    ran = vitrine("rm", store, "tiny", "--yes")
    assert ran.code == 1
    assert "another process of this machine is writing" in ran.err
    assert FeatureStore(writer).names()


def test_cp_copies_what_is_asked_and_reports_what_fails(vitrine: Run, store: Path, tmp_path: Path) -> None:
    ran = vitrine("cp", store, tmp_path / "copy", "--json")
    assert (ran.code, ran.json["shards_failed"]) == (0, 0)
    assert files_of(store / "features") == files_of(tmp_path / "copy" / "features")
    assert vitrine("diff", store, tmp_path / "copy").code == 0
    spoil(one(store, "tokens.zarr/layer_6/patches/c/0/0/0"))
    ran = vitrine("cp", store, tmp_path / "another", "--features", "tiny")
    assert ran.code == 3
    assert "is not what its record says (checksum)" in " ".join(ran.out.split())
    assert "1 failed" in " ".join(ran.out.split())
    assert vitrine("verify", tmp_path / "another", "--deep").code == 0
    assert open_root(str(tmp_path / "another")).exists("vitrine.json")


def test_ls_goes_on_beside_a_link_and_repair_takes_it_away(vitrine: Run, store: Path) -> None:
    (store / "features" / "ln").symlink_to("/etc/passwd")
    (store / "ln").symlink_to("nowhere")
    ran = vitrine("ls", store)
    assert (ran.code, "1 feature set\n" in ran.out) == (0, True)
    ran = vitrine("verify", store)
    assert (ran.code, "2 problems" in ran.out) == (1, True)
    ran = vitrine("repair", store, "--json")
    assert (ran.code, sorted(ran.json["moved"])) == (0, ["features/ln", "ln"])
    assert vitrine("gc", store, "--aside", "--yes").code == 0
    assert not (store / "aside").exists()


def test_several_that_fit_are_listed_newest_first(vitrine: Run, store: Path) -> None:
    (listed,) = vitrine("ls", store, "--json").json["feature_sets"]
    run = json.loads(one_run(store).read_text())
    assert listed["extracted"].startswith(run["finished"][:10])
    folder = store / "features" / listed["name"]
    shutil.copytree(folder, folder.with_name("zoo-00000000"))
    newer = {"feature_set": f"{folder.relative_to(store).parent}/zoo-00000000"}
    write_record(open_root(str(store)), f"runs/{id_for_run(newer, begun='29990101T000000-abcdef')}/run.json", newer)
    for command, way_out in (
        (("knn", store), "name one with --features"),
        (("rm", store, "tiny"), "write the full name"),
    ):
        ran = vitrine(*command)
        assert ran.code == 2
        newest = f"{folder.parent.name}/zoo-00000000"
        assert f"2 feature sets fit; {way_out}: {newest} (newest), {listed['name']}." in ran.err
    assert "2999-01-01 00:00" in vitrine("ls", store).out


def one_run(store: Path) -> Path:
    return next(store.glob("runs/*/run.json"))


def test_a_store_that_takes_nothing_still_answers(vitrine: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/store")

    shutil.rmtree(store / "results", ignore_errors=True)
    monkeypatch.setattr("feature_store.objects.write_file", refuse)
    for command in (("knn", "--k", "1,3"), ("linear",), ("variance",)):
        ran = vitrine(command[0], store, *command[1:], "--json")
        assert ran.code == 0, ran.err
        assert ran.json
        line = "the answer is not kept, since the store cannot be written (Read-only file system)"
        assert ran.err.count(line) == 1
    ran = vitrine("prune", store, "--drop-random", "1", "--name", "a")
    assert (ran.code, ran.out) == (1, "")
    assert "Read-only file system; mount it for writing" in ran.err


def test_a_file_is_no_store(vitrine: Run, tmp_path: Path) -> None:
    (tmp_path / "v.npy").write_bytes(b"x")
    for command in ("knn", "verify", "ls"):
        ran = vitrine(command, tmp_path / "v.npy")
        assert ran.code == 1
        assert "v.npy is a file, and a store is a folder; name the folder of a store." in ran.err


def test_numbers_and_what_they_count_agree() -> None:
    assert [counted(number, "shard") for number in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


def test_no_zero_in_a_table_has_a_sign(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("means", ("mean",), [(-1e-9,), (-0.0,), (-0.00006,)])
    assert capsys.readouterr().out.split()[-3:] == ["0.0000", "0.0000", "-0.0001"]
