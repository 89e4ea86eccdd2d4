"""What `vitrine extract` says of a dataset before it starts, and what it records."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.vitrine.conftest import Run


def folder_of_classes(root: Path) -> Path:
    for index, name in enumerate(("ant", "cat")):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / "1.png")
    (root / "bee").mkdir()
    for index in range(5):
        (root / "bee" / f"{index}\x1b[31m.heic").write_bytes(b"x")
    return root


def test_what_is_passed_over_is_told_before_the_start_in_json_and_in_the_run(vitrine: Run, tmp_path: Path) -> None:
    pictures, store = folder_of_classes(tmp_path / "pictures"), tmp_path / "store"
    command = ("extract", f"images:{pictures}", "--model", "null", "--store", store)
    for ran in (vitrine(*command, "--dry-run"), vitrine(*command), vitrine(*command)):
        assert ran.code == 0, ran.err
        assert "files ending in .heic: 5 ('bee/0\\x1b[31m.heic', " in " ".join(ran.out.split())
        assert "classes without an image that is read: 1 ('bee')" in " ".join(ran.out.split())
        assert "\x1b" not in ran.out
    (record,) = [json.loads(path.read_text()) for path in (store / "runs").glob("*/run.json")]
    for found in (record["findings"], vitrine(*command, "--json").json["findings"]):
        assert [one["kind"] for one in found] == ["passed_over", "class_without_images"]
        assert (found[0]["count"], found[0]["names"][4]) == (5, "bee/4\x1b[31m.heic")
        assert found[1]["names"] == ["bee"]
