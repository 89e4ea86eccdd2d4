"""What a model's file does not say, told by every command that uses it."""

from pathlib import Path

from PIL import Image

from feature_store import open_store
from tests.pipelines.backbones.test_networks_in_files import SIDE, saved, vit
from tests.vitrine.conftest import Run


def test_what_is_assumed_is_told_by_extract_inspect_and_show_and_stands_in_the_store(
    vitrine: Run, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE), (9, 99, 199)).save(tmp_path / "photos" / "a" / "one.png")
    a, b = vit(1), vit(2)
    path = saved(tmp_path, {"state_dict": a.state_dict(), "state_dict_ema": b.state_dict()})
    store = tmp_path / "store"
    command = ("extract", f"images:{tmp_path / 'photos'}", "--model", "auto", "--weights", path, "--store", store)
    told = ["network=state_dict_ema, of several in the file", "num_heads=2 (64 features each)"]
    dry = vitrine(*command, "--dry-run")
    assert all(
        text in " ".join(dry.out.split()) for text in ("num_heads=2", "network=state_dict_ema", "--arg NAME=VALUE")
    )
    assert vitrine(*command, "--dry-run", "--json").json["assumed"][:2] == told
    ran = vitrine(*command, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["assumed"][:2] == told
    features = open_store(str(store)).features()
    assert features.spec.assumed[:2] == tuple(told)
    assert vitrine("show", store, "--json").json["assumed"][:2] == told
    assert "num_heads=2" in vitrine("show", store).out
    inspected = vitrine("models", "inspect", path)
    assert all(text in inspected.out for text in ("num_heads=2", "state_dict_ema, of 2; --network takes another"))
    again = vitrine(*command, "--arg", "num_heads=2", "--json")
    assert (again.code, again.json["already_done"]) == (0, True)
