"""A night on an object store, on a disk without links, beside damage, and through a kill."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_store import open_store
from feature_store.roots import open_root
from tests.pipelines.nights import Nights
from tests.s3_server import make_bucket, using_endpoint

_PATCHES = "tokens.zarr/layer_2/patches/c/0/0/0"


@pytest.fixture
def nights(tmp_path: Path, pictures: Path) -> Nights:
    return Nights(tmp_path, pictures)


def tree(store: str, name: str) -> dict[str, bytes]:
    root = open_root(store)
    return {path: root.read(path) for path, _ in root.walk(f"features/{name}")}


def test_an_object_store_copies_whole_shards_by_itself_and_is_sent_the_new_rows_alone(
    s3_endpoint: str, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = pytest.importorskip("s3fs")
    sent: Counter[str] = Counter()
    real = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        named = [options, *(each for each in arguments if isinstance(each, dict))]
        key = next((str(each["Key"]) for each in named if "Key" in each), "")
        if "/tokens.zarr/" in key and "/c/" in key and method in {"put_object", "copy_object"}:
            sent[method] += 1
        return await real(self, method, *arguments, **options)

    with using_endpoint(s3_endpoint):
        there = Nights(tmp_path / "there", pictures, store=f"s3://{make_bucket()}/store")
        here = Nights(tmp_path / "here", pictures)
        there.extract()
        here.extract()
        for each in (there, here):
            each.add(50, "even/x.png")
        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
        name = there.extract().feature_set
        # Three objects a shard: two shards stay as they are, the third gains a row.
        assert sent == {"copy_object": 6, "put_object": 3}
        assert here.extract().feature_set == name
        assert tree(there.store, name) == tree(here.store, name)


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_no_link_can_be_made_shards_are_copied(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    real = os.link

    def refuse(source: Any, target: Any, **options: Any) -> None:
        # A record that is created exclusively is linked from a file of its own, which is another matter.
        if "/c/" in str(target):
            raise OSError(reason, os.strerror(reason), str(target))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    outcome = nights.extract()
    assert outcome.reused == 20
    one, two = (Path(nights.store) / "features" / name / _PATCHES for name in (first, outcome.feature_set))
    assert one.read_bytes() == two.read_bytes()
    assert not one.samefile(two)
    assert not list(Path(nights.store).rglob("*.partial"))


def test_a_damaged_shard_is_not_linked_but_computed(nights: Nights) -> None:
    first = nights.extract().feature_set
    nights.add(50, "even/x.png")
    before = open_store(nights.store).features(first).read(rows=range(8))
    place = Path(nights.store) / "features" / first / _PATCHES
    content = bytearray(place.read_bytes())
    content[20] ^= 1
    place.write_bytes(content)
    outcome = nights.extract()
    assert outcome.reused == 12
    np.testing.assert_array_equal(open_store(nights.store).features().read(rows=range(8)), before)
    # The damaged file is as it was: nobody writes in place.
    assert place.read_bytes() == bytes(content)


def test_an_unreadable_image_is_tried_again_and_its_shard_linked_when_it_still_is(nights: Nights) -> None:
    place = nights.images / "even" / "000.png"
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2])
    first = nights.extract()
    nights.add(50, "even/x.png")
    second = nights.extract()
    assert first.invalid == second.invalid == {"truncated": 1}
    folders = [Path(nights.store) / "features" / each.feature_set for each in (first, second)]
    assert (folders[0] / _PATCHES).samefile(folders[1] / _PATCHES)
    # Mended, it is another content: the old view is gone, and the new one follows.
    place.write_bytes(whole)
    assert nights.extract().invalid == {"removed": 1}


def test_the_label_and_the_split_of_a_removed_row_count_nowhere(nights: Nights) -> None:
    nights.extract()
    (nights.images / "odd" / "001.png").unlink()
    nights.extract()
    features = open_store(nights.store).features()
    assert len(features.rows_of_split(None)) == 19
    assert len(features.where("label = 1")) == 9
    assert len(features.where("NOT valid")) == 0
    assert len(features.where("NOT valid", removed=True)) == 1
    assert sum(len(rows) for rows, _ in features.iter_blocks()) == features.valid.sum() == 19


_FRONT = """
import sys
from pathlib import Path
from tests.pipelines.nights import Nights, here
from pipelines.run import run_extraction
nights = Nights.__new__(Nights)
nights.images, nights._pictures, nights.store = Path(sys.argv[1]), None, sys.argv[2]
run_extraction(nights.prepare(), here)
"""


_KILLER = """
import os, signal
count, real = [0], os.CALL
def dying(*arguments, **options):
    count[0] += 1
    if count[0] == NUMBER:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
os.CALL = dying
"""


# In the middle of linking a shard, and of writing receipts. Each is a process that loads torch, so there are two.
@pytest.mark.parametrize(("call", "number"), [("link", 5), ("rename", 12)])
def test_a_night_killed_at_any_instant_and_run_again_is_byte_identical(
    nights: Nights, tmp_path: Path, call: str, number: int
) -> None:
    nights.extract()
    nights.add(50, "even/x.png")
    shutil.copytree(nights.store, tmp_path / "whole")
    name = nights.extract_from_nothing(str(tmp_path / "whole")).feature_set
    program = _KILLER.replace("CALL", call).replace("NUMBER", str(number)) + _FRONT
    command = [sys.executable, "-c", program, str(nights.images), nights.store]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert nights.extract().feature_set == name
    assert tree(nights.store, name) == tree(str(tmp_path / "whole"), name)
    assert not list(Path(nights.store).rglob("*.partial"))
