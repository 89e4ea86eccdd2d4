"""Conditions: SQL over the columns of a manifest, perhaps a stranger's, answered by DuckDB.

DuckDB sees one stream of record batches with the columns that the condition names, and nothing else: no file, no
network, no extension. What it may be asked is said in `expressions`; how long it may take, here.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from feature_store.errors import QueryError, StoreError
from feature_store.query.columns import column_batches, column_schema
from feature_store.query.expressions import TABLE, columns_of, refused, statement
from feature_store.query.rows import TIME_LIMIT_S
from feature_store.reader import FeatureSet
from feature_store.token_reader import RowNumbers

Parameters = Sequence[Any] | Mapping[str, Any]

MAX_TIME_LIMIT_S = 86_400
# What an interrupted query gets to come back, so that a running one ends before its caller goes on.
_GRACE_S = 2.0
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "threads": "2",
    "memory_limit": "1GB",
    # Nothing is spilled: a condition looks at one row at a time.
    "temp_directory": "",
    "lock_configuration": "true",
}


def matching_rows(
    features: FeatureSet, condition: str, parameters: Parameters = (), *, time_limit_s: float = TIME_LIMIT_S
) -> RowNumbers:
    """The rows for which a condition is true, ascending.

    Args:
        features: the feature set.
        condition: an SQL expression over the columns of the manifest and `row`, `valid`, `class_name`.
        parameters: values for `?` or `$name` in it.
        time_limit_s: seconds after which it is given up.

    Raises:
        QueryError: no condition, one with more in it than the columns of one row, or one that takes too long.
        CorruptError: the manifest cannot be read.
    """
    if not 0 < time_limit_s <= MAX_TIME_LIMIT_S:
        raise QueryError(f"a time limit of {time_limit_s} s: give more than 0 and at most {MAX_TIME_LIMIT_S} seconds.")
    connection: Any = duckdb.connect(":memory:", config=_SETTINGS)
    try:
        names = columns_of(connection, condition)
        stream = _Stream(column_batches(features, names))
        connection.register(TABLE, pa.RecordBatchReader.from_batches(column_schema(names), stream))
    except BaseException:
        connection.close()
        raise
    try:
        found = _Asked(connection, statement(condition), parameters).rows(time_limit_s)
    except TimeoutError as error:
        raise refused(
            condition, f"it took more than {time_limit_s:g} s; ask for less, or allow more time (--time-limit)"
        ) from error
    except (duckdb.Error, RuntimeError, TypeError, ValueError) as error:
        if stream.error is not None:
            raise stream.error from error
        raise refused(condition, str(error)) from error
    rows: RowNumbers = np.sort(np.asarray(found, dtype=np.int64))
    return rows


class _Asked:
    """A query that runs in a thread of its own, so that the waiting one hears of time limits and of Ctrl-C.

    A query that is within one call of a function is interrupted when that returns; nobody waits for it.
    """

    def __init__(self, connection: Any, text: str, parameters: Parameters) -> None:
        self._connection, self._text, self._parameters = connection, text, parameters
        self._rows: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    def rows(self, time_limit_s: float) -> Any:
        """The rows; what the query raised; or TimeoutError when the time is over."""
        threading.Thread(target=self._run, name="condition", daemon=True).start()
        try:
            if not self._done.wait(time_limit_s):
                raise TimeoutError
        except BaseException:
            self._connection.interrupt()
            self._done.wait(_GRACE_S)
            raise
        if self._error is not None:
            raise self._error
        return self._rows

    def _run(self) -> None:
        try:
            self._rows = self._connection.execute(self._text, self._parameters).fetchnumpy()["row"]
        except BaseException as error:  # the waiting thread raises it
            self._error = error
        finally:
            # An interrupted connection is closed here, where no query is under way any more.
            self._connection.close()
            self._done.set()


class _Stream:
    """Batches for DuckDB, which wraps what goes wrong while it takes them; the error itself is kept here."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self.error: StoreError | None = None

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StoreError as error:
            self.error = error
            raise
