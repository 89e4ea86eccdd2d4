"""What the store refuses, and how it says so.

StoreError
├── StorageError             (OSError)             the place behind a URL refuses, or does not answer
├── StoreNotFoundError       (FileNotFoundError)   nothing stands there
├── UnknownNameError         (LookupError)         a name that a user gave, of nothing here or of several things
├── ManifestError            (ValueError)          a manifest breaks its schema or its rules
├── IdentityMismatchError    (ValueError)          two runs that must not be mixed
├── ShardError               (ValueError)          rows that do not make a whole shard, or a bad shard object
├── IncompleteError          (RuntimeError)        a question to a feature set that lacks shards
├── CorruptError             (ValueError)          a file of the store that does not say what it must
├── SelectionError           (ValueError)          a selection that does not fit
└── QueryError               (ValueError)          a question that cannot be asked of any rows
"""


class StoreError(Exception):
    """The base of everything that the store refuses."""


class StorageError(StoreError, OSError):
    """The place behind a URL refuses, or does not answer; every attempt that is worth it was made.

    `errno` says which: EACCES where it refuses, EIO where it keeps failing, EINVAL for what it does not understand.
    """

    def __str__(self) -> str:
        # OSError's own form would print "[Errno 13] message".
        return str(self.strerror)


class StoreNotFoundError(StoreError, FileNotFoundError):
    """Nothing that can be read stands at this place."""

    def __str__(self) -> str:
        # OSError's own form would print "(errno, message)".
        return str(self.args[0]) if self.args else ""


class UnknownNameError(StoreError, LookupError):
    """A feature set, selection, layer, token kind or split was named that is not there, or not by that name alone.

    It is the word that is wrong and not the store, so a command that is refused for it was used wrongly.
    """


class ManifestError(StoreError, ValueError):
    """A manifest breaks its schema or one of its rules."""


class IdentityMismatchError(StoreError, ValueError):
    """Two runs differ in a field that decides the features."""


class ShardError(StoreError, ValueError):
    """Rows that do not make up one whole shard, or a shard object of the wrong form."""


class IncompleteError(StoreError, RuntimeError):
    """A feature set lacks shards that the answer needs."""


class CorruptError(StoreError, ValueError):
    """A file of the store does not hold what its name promises."""


class SelectionError(StoreError, ValueError):
    """A selection of features that does not fit the feature set it is used on."""


class QueryError(StoreError, ValueError):
    """A condition, column or choice of patches that cannot be asked for, whatever the rows hold."""
