"""Weights that are loaded are the weights that were hashed.

A training overwrites its `last.pth` at any moment. A file that is hashed, and opened again to be loaded, may have
changed in between; its size and times do not tell it for certain, since two writes can share one tick of the clock.
So each process reads the file once, into memory that no other process writes, and loads those bytes.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipelines.backbones.held_file import HeldFile, hold
from pipelines.backbones.parts import digest_of_parts, is_index
from pipelines.backbones.weight_files import BackboneError, require_file, weight_parts


class WeightsChangedError(BackboneError):
    """A checkpoint file that is no longer the one that was hashed when the run was planned."""


@contextlib.contextmanager
def hold_weights(path: Path, sha256: str | None = None) -> Iterator[HeldFile]:
    """Hold a checkpoint file in memory while the block loads it.

    Args:
        path: the file.
        sha256: the digest that it must have; None for whichever it has.

    Raises:
        WeightsChangedError: the file has another digest now; the message gives both.
        BackboneError: the file is not there, is not a regular file, or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        parts = weight_parts(path)
        for part in parts:
            require_file(part)
        try:
            held_parts = tuple(stack.enter_context(hold(part)) for part in parts)
        except OSError as error:
            raise BackboneError(f"weights {path} cannot be read ({error.strerror}); give an existing file.") from error
        held = held_parts[0]
        if is_index(path):
            digest = digest_of_parts((part.name, part.sha256) for part in held_parts)
            held = HeldFile.of_parts(path, held_parts, sha256=digest)
        if sha256 is not None and held.sha256 != sha256:
            raise WeightsChangedError(
                f"weights {path} changed after they were hashed: their sha256 was {sha256} and is now {held.sha256}. "
                "If a training writes this file, give a copy that stays as it is; the same command, run again, takes "
                "the new weights and makes another feature set."
            )
        yield held
