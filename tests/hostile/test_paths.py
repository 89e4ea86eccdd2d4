"""No path that a stranger wrote, in any field that holds one, leads out of the folder that was named."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from feature_store import StoreError, TokenKind, open_store, read_dataset, read_selection, write_selection
from feature_store.layout import dataset_pointer, run_file
from feature_store.manifest import check_relative_uri
from feature_store.objects import LocalRoot
from feature_store.records import read_record, write_record
from feature_store.results import read_result, write_result
from pipelines.image_files import UnreadableImageError, read_image_bytes
from tests.feature_store.samples import fill_store, make_selection
from tests.hostile.watching import watching

_DEPTHS = 5


def _escapes(secret: Path, inside: Path) -> list[str]:
    """Ways of spelling a path that leads to `secret`, or might on some system, out of the folder `inside`."""
    (inside / "link").symlink_to(secret)
    (inside / "folder").symlink_to(secret.parent)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "up").symlink_to("..")
    plain = [
        *(
            str(secret),
            f"/{secret}",
            f"//{secret}",
            f"/.{secret}",
            f"{secret}\0.png",
            "/etc/passwd",
            "/proc/self/environ",
        ),
        *("link", "link/", "./link", "loop", "up/secret", "folder/secret", "folder/../folder/secret", "up/up/secret"),
        *("/dev/zero", "/dev/stdin", "~/secret", "~root/secret", "$HOME/secret", "C:\\secret", "C:secret", "c:/secret"),
        *("\\\\host\\share\\secret", "//host/share/secret", f"file://{secret}", f"file:{secret}", f"local://{secret}"),
        *(f"FILE://localhost{secret}", "http://127.0.0.1:9/secret", "s3://bucket/secret", "gs://bucket/secret"),
        *("memory://secret", f"zip://secret::{secret}", f"simplecache::file://{secret}", "github://a:b@c/secret"),
        *("", ".", "..", "/", "\0", "a\0b", "\ud800", "a" * 5000, "a/" * 3000 + "x", "|cat", "CON"),
    ]
    ups = (
        "..",
        "%2e%2e",
        "..%2f..",
        "%252e%252e",
        "..;",
        "....",
        "\u2024\u2024",
        "\u2025",
        ".. ",
        "..\0",
        "\uff0e\uff0e",
    )
    separators = ("/", "\\", "//", "/./", "%2f", "\u2215")
    prefixes = ("", "./", "images/", "images/../", "/")
    climbing = [
        f"{prefix}{separator.join([up] * depth)}{separator}secret"
        for up, separator, prefix, depth in itertools.product(ups, separators, prefixes, range(1, _DEPTHS))
    ]
    return plain + climbing


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text('{"secret": 1}')
    return path


def _refused(ask: Callable[[], object]) -> bool:
    """Whether asking ends in a refusal, or in the answer that nothing is there."""
    try:
        return ask() is None
    except (StoreError, UnreadableImageError):
        return True


def test_no_path_of_an_image_leads_out_of_its_dataset(tmp_path: Path, secret: Path) -> None:
    inside = tmp_path / "data" / "images"
    inside.mkdir(parents=True)
    escapes = _escapes(secret, inside)
    assert len(escapes) >= 500
    with watching() as watched:
        for uri in escapes:
            # A uri of a manifest passes the first; one that did not must be stopped by the second.
            _refused(partial(check_relative_uri, uri))
            assert _refused(partial(read_image_bytes, inside, uri)), uri
    assert watched.outside(inside) == []
    assert watched.called == []


def test_no_path_in_a_store_leads_out_of_it(tmp_path: Path, secret: Path) -> None:
    store = tmp_path / "data" / "store"
    store.mkdir(parents=True)
    root = LocalRoot(store)
    with watching() as watched:
        for path in _escapes(secret, store):
            _refused(partial(root.size_bytes, path))
            _refused(partial(root.list, path))
            # The store itself may be named in many ways; it is a folder, and no object.
            assert _refused(partial(root.read, path)), path
    assert watched.outside(store) == []


def _fields(store: Path) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Every field that a path or a name is taken from, and what reads it."""
    found = fill_store(str(store))
    root = found.root
    write_selection(root, make_selection())
    write_result(root, "knn", {"k": 1}, {"miou": 0.5})
    pointer = dataset_pointer(found.dataset_name, found.spec.identity.views_digest)
    receipt = f"{found.folder}/receipts/000001.json"

    def stated_object(path: str) -> object:
        root.remove(f"{found.folder}/receipts.json")
        record = read_record(root, receipt)
        record["objects"][0]["path"] = path
        write_record(root, receipt, record)
        opened = open_store(str(store)).features()
        return opened.read(1, "patches", [8])

    def in_force(folder: str) -> object:
        write_record(root, pointer, {"annotations_in_force": folder})
        return open_store(str(store)).features().dataset

    yield "a dataset's folder", lambda folder: read_dataset(root, folder)
    yield "a feature set's name", lambda name: open_store(str(store)).features(name)
    yield "a selection's name", lambda name: read_selection(root, name)
    yield "an evaluator's name", lambda name: read_result(root, name, {"k": 1})
    yield "a run's name", lambda name: root.read(run_file(name, "run.json"))
    yield "the annotations in force", in_force
    yield "an object of a receipt", stated_object


def test_no_field_of_a_record_leads_out_of_its_store(tmp_path: Path, secret: Path) -> None:
    store = tmp_path / "data" / "store"
    fields = list(_fields(store))
    escapes = _escapes(secret, store)
    for name, ask in fields:
        # Writing records costs two syncs each, so those two take every tenth.
        step = 10 if name in ("the annotations in force", "an object of a receipt") else 1
        with watching() as watched:
            for path in escapes[::step]:
                try:
                    refused = _refused(partial(ask, path))
                except UnicodeEncodeError:
                    refused = "\ud800" in path  # no record can hold half a surrogate pair
                assert refused, (name, path)
        assert watched.outside(store) == [], name
        assert watched.called == [], name


def _read_all(store: Path, kind: TokenKind) -> None:
    open_store(str(store)).features().read("last", kind)


def test_a_link_in_the_place_of_any_folder_of_a_store_is_refused_or_not_followed(tmp_path: Path) -> None:
    store = tmp_path / "data" / "store"
    found = fill_store(str(store))
    elsewhere = tmp_path / "elsewhere"
    for folder in sorted(path for path in store.rglob("*") if path.is_dir()):
        elsewhere.mkdir()
        moved = elsewhere / folder.name
        shutil.move(folder, moved)
        folder.symlink_to(moved)
        with watching() as watched:
            for kind in found.spec.identity.token_kinds:
                _refused(partial(_read_all, store, kind))
            _refused(lambda: open_store(str(store)).features().masks.read(0))
        folder.unlink()
        shutil.move(moved, folder)
        elsewhere.rmdir()
        assert watched.outside(store) == [], folder
    assert found.read().any()
