"""Stores for the tests of upkeep."""

from collections.abc import Sequence
from pathlib import Path

from feature_store import write_selection
from feature_store.durable_files import Buffer
from feature_store.objects import LocalRoot, ObjectRoot
from feature_store.records import write_record
from feature_store.results import write_result
from feature_store.runs import id_for_run
from tests.feature_store.samples import fill_store, make_selection


def make_whole(url: str) -> ObjectRoot:
    """A store with something of everything."""
    found = fill_store(url, layers=(1, 2), invalid=[2])
    write_selection(found.root, make_selection())
    key = {"k": 1, "feature_set": found.digest, "annotations": found.dataset.annotations_digest}
    write_result(found.root, "knn", key, {"miou": 0.5})
    run = {"feature_set": found.folder}
    write_record(found.root, f"runs/{id_for_run(run, begun='20260101T000000-abcdef')}/run.json", run)
    return found.root


class DiesError(BaseException):
    """The process is gone."""


class DyingRoot(LocalRoot):
    """A local root whose process dies before the n-th change."""

    def __init__(self, place: Path, changes: int) -> None:
        super().__init__(place)
        self._left = changes

    def _change(self) -> None:
        if self._left == 0:
            raise DiesError
        self._left -= 1

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        self._change()
        super().put(path, parts)

    def put_new(self, path: str, data: bytes) -> bool:
        self._change()
        return super().put_new(path, data)

    def remove(self, path: str) -> None:
        self._change()
        super().remove(path)

    def move(self, path: str, to: str) -> None:
        self._change()
        super().move(path, to)
