"""objects: a disk and an object store behave alike, and nothing leads out of the root."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.durable_files import PARTIAL_SUFFIX
from feature_store.errors import CorruptError, StoreError, StoreNotFoundError
from feature_store.objects import LocalRoot, crc32c, redact
from feature_store.remote_objects import RemoteRoot
from feature_store.roots import open_root
from tests.feature_store.samples import files_of


def test_what_is_put_is_read_listed_and_sized(store_url: str) -> None:
    root = open_root(store_url)
    root.put("a/b/c", [b"12", memoryview(b"345")])
    root.put("a/d", [b""])
    assert root.read("a/b/c") == b"12345"
    assert root.read("a/b/c", max_bytes=3) == b"123"
    assert root.read("a/d", max_bytes=3) == b""
    assert (root.size_bytes("a/b/c"), root.size_bytes("a/d")) == (5, 0)
    assert (root.list(""), root.list("a"), root.list("a/b")) == (["a"], ["b", "d"], ["c"])
    root.put("a/b/c", [b"9"])
    assert root.read("a/b/c") == b"9"


def test_what_is_not_there_is_neither_listed_nor_sized_nor_read(store_url: str) -> None:
    root = open_root(store_url)
    root.put("a/b", [b"1"])
    for path in ("nothing", "a/nothing", "a/b/nothing", "a"):
        assert not root.exists(path)
        with pytest.raises(StoreNotFoundError, match=f"/{path} does not exist, and the store needs it. Restore it"):
            root.read(path)
    assert root.list("nothing") == root.list("a/b/nothing") == []


def test_put_new_creates_once(store_url: str) -> None:
    root = open_root(store_url)
    assert root.put_new("a/b", b"first")
    assert not root.put_new("a/b", b"second")
    assert root.read("a/b") == b"first"


def test_walk_finds_every_object_at_any_depth_in_order(store_url: str) -> None:
    root = open_root(store_url)
    for path, content in (("b/c/d", b"123"), ("a", b""), ("b/c-", b"1"), ("b/e", b"12")):
        root.put(path, [content])
    assert list(root.walk("")) == [("a", 0), ("b/c-", 1), ("b/c/d", 3), ("b/e", 2)]
    assert list(root.walk("b/c")) == [("b/c/d", 3)]
    assert list(root.walk("nothing")) == []


def test_walk_passes_over_a_file_that_is_renamed_while_it_walks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_root(str(tmp_path / "s"))
    root.put("a", [b"1"])
    listed: list[tuple[str, list[str], list[str]]] = [
        (str(tmp_path / "s"), [], [".a.0.partial", "a"])
    ]  # as the folder was listed a moment before
    monkeypatch.setattr(os, "walk", lambda _: listed)
    assert list(root.walk("")) == [("a", 1)]


def test_what_is_removed_is_gone_and_may_be_removed_again(store_url: str) -> None:
    root = open_root(store_url)
    root.put("a/b", [b"1"])
    root.put("a/c", [b"2"])
    root.remove("a/b")
    root.remove("a/b")
    root.remove("nothing/at/all")
    assert list(root.walk("")) == [("a/c", 1)]


def test_what_is_moved_stands_under_its_new_name_alone(store_url: str) -> None:
    root = open_root(store_url)
    root.put("a/b", [b"1"])
    root.put("c/d", [b"old"])
    root.move("a/b", "c/d")
    assert list(root.walk("")) == [("c/d", 1)]
    with pytest.raises(StoreNotFoundError, match="a/b does not exist"):
        root.move("a/b", "c/d")
    assert root.read("c/d") == b"1"


def test_walk_follows_no_link_out_of_a_disks_store(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    root = open_root(str(tmp_path / "s"))
    root.put("a", [b"1"])
    (tmp_path / "s" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "s" / "file").symlink_to(tmp_path / "outside" / "secret")
    assert list(root.walk("")) == [("a", 1)]


def test_two_roots_of_one_url_see_the_same_objects(store_url: str) -> None:
    open_root(store_url).put("a", [b"1"])
    other = open_root(store_url)
    assert other.list("") == ["a"]
    open_root(store_url).put("b", [b"2"])
    assert other.list("") == ["a", "b"]
    assert not other.put_new("b", b"3")


def test_a_disk_keeps_no_partial_files_and_no_others(tmp_path: Path) -> None:
    root = open_root(str(tmp_path / "s"))
    root.put("a/b", [b"1"])
    root.put("a/b", [b"2"])
    assert root.put_new("c", b"3")
    assert not root.put_new("c", b"4")
    assert files_of(tmp_path) == {"s/a/b": b"2", "s/c": b"3"}


def test_a_write_that_fails_leaves_the_old_object_and_no_partial_file(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    root.put("a", [b"old"])
    every_other_byte = memoryview(bytes(8))[::2]
    with pytest.raises(TypeError, match="restricted to C-contiguous"):
        root.put("a", [b"new", every_other_byte])
    assert files_of(tmp_path) == {"a": b"old"}


def test_a_folder_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    root = open_root(str(tmp_path))
    assert root.size_bytes("folder") is None
    with pytest.raises(IsADirectoryError, match="folder"):
        root.put("folder", [b"1"])
    assert root.list("folder") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "link/x", "link"])
def test_no_path_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    root = open_root(str(tmp_path / "root"))
    for act in (root.read, root.size_bytes, root.list, lambda place: root.put(place, [b""])):
        with pytest.raises(CorruptError, match=r"leads out of the store .* remove the link or fix the name"):
            act(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "root"]


def test_impossible_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    root = open_root(str(tmp_path))
    for path in ("a\0b", "loop/x"):
        with pytest.raises(CorruptError, match=r"cannot be a path in .*; fix the name or remove the link"):
            root.read(path)


def test_a_root_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    open_root(str(tmp_path / "link")).put("a", [b"1"])
    assert files_of(tmp_path / "real") == {"a": b"1"}


@pytest.mark.parametrize("url", ["{}", "file://{}", "local://{}", "{}/sub/.."])
def test_paths_and_file_urls_are_folders(tmp_path: Path, url: str) -> None:
    root = open_root(url.format(tmp_path))
    assert isinstance(root, LocalRoot)
    assert root.local_path("a") == tmp_path / "a"


def test_a_bare_memory_url_is_no_folder() -> None:
    root = open_root("memory://")
    assert isinstance(root, RemoteRoot)
    name = "vitrine-bare-memory-url"
    root.put(f"{name}/a", [b"1"])
    assert root.list(name) == ["a"]
    assert name in root.list("")
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "path is empty; name a folder or a URL"),
        ("file://", "path is empty; name a folder or a URL"),
        ("~no-such-user/x", "cannot be a store's path .*; name a folder or a URL"),
        ("nosuch://user:secret@host/x?token=1", "cannot open 'nosuch://host/x': .*Use a folder or a URL"),
    ],
)
def test_what_cannot_be_opened_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_root(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("https://host/x?signature=abc", "https://host/x"),
        ("/plain/folder", "/plain/folder"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_crc32c_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    assert crc32c(parts) == google_crc32c.value(b"".join(parts))


def test_crc32c_of_the_standards_example() -> None:
    # RFC 3720, appendix B.4: 32 bytes of zeros.
    assert crc32c([bytes(32)]) == 0x8A9136AA
    values = np.arange(4, dtype=np.float32)
    assert crc32c([values.data]) == google_crc32c.value(values.tobytes())
    assert values.flags.writeable


def test_importing_the_store_loads_no_torch() -> None:
    code = "import sys, feature_store; print(sorted({'torch', 'timm', 'apache_beam', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_partial_files_are_swept_one_folder_deep_or_all_the_way(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    for name in (f".a{PARTIAL_SUFFIX}", f"b/.c{PARTIAL_SUFFIX}", "b/kept"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert root.sweep_partials("", recursive=False) == 1
    assert root.sweep_partials("nothing") == 0
    assert root.sweep_partials("b") == 1
    assert files_of(tmp_path) == {"b/kept": b"1"}


def test_links_and_pipes_are_neither_listed_nor_waited_for(tmp_path: Path) -> None:
    root = open_root(str(tmp_path / "s"))
    root.put("a/b", [b"1"])
    (tmp_path / "s" / "a" / "inside").symlink_to("b")
    (tmp_path / "s" / "a" / "gone").symlink_to("nowhere")
    (tmp_path / "s" / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "s" / "pipe")
    assert (root.list(""), root.list("a")) == (["a"], ["b"])
    kinds = {"a/gone": "link", "a/inside": "link", "out": "link", "pipe": "pipe, socket or device"}
    assert dict(root.strays("")) == kinds
    with pytest.raises(StoreNotFoundError, match="pipe does not exist"):
        root.read("pipe")


def test_a_link_is_moved_and_removed_itself(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    root = open_root(str(tmp_path / "s"))
    root.put("a", [b"1"])
    (tmp_path / "s" / "link").symlink_to(tmp_path / "outside")
    root.move("link", "aside/link")
    assert (tmp_path / "s" / "aside" / "link").readlink() == tmp_path / "outside"
    root.remove("aside/link")
    assert list(root.strays("")) == []
    assert (tmp_path / "outside").read_text() == "x"
    (tmp_path / "s" / "folder").symlink_to(tmp_path)
    with pytest.raises(CorruptError, match="leads out of the store"):
        root.remove("folder/outside")
