"""Which objects the samples of one round have read: a bit each, in `runs/`, away from the features."""

import base64
import contextlib
import random
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from feature_store import layout
from feature_store.errors import CorruptError, StoreError
from feature_store.objects import ObjectRoot
from feature_store.records import read_record, write_record
from feature_store.upkeep.inspection import StatedData

_FOLDER = "verify"


def choose_sample(data: Sequence[StatedData], seen: set[str], share: float) -> list[StatedData]:
    """A random part of the data of at least `share` of its bytes, and of at least one object.

    What no sample of this round has read comes first, so a round of samples of 1 % reads everything in about a hundred.
    """
    order = list(data)
    random.SystemRandom().shuffle(order)
    order.sort(key=lambda each: each.path in seen)
    wanted_bytes = share * sum(each.stated.size_bytes for each in data)
    chosen: list[StatedData] = []
    n_bytes = 0
    for each in order:
        if chosen and n_bytes >= wanted_bytes:
            break
        chosen.append(each)
        n_bytes += each.stated.size_bytes
    return chosen


def read_seen(root: ObjectRoot, data: Iterable[StatedData]) -> set[str]:
    """The paths among `data` that earlier samples of this round have read; all forgotten when a round is complete."""
    data = list(data)
    bits = {owner: _read_bits(root, owner) for owner in {each.owner for each in data}}
    seen = {each.path for each in data if bits[each.owner] >> each.place & 1}
    return set() if len(seen) == len(data) else seen


def keep_seen(root: ObjectRoot, data: Iterable[StatedData], seen: set[str]) -> bool:
    """Keep what this round has read; False where the store cannot be written.

    Of two samples at once, one may be forgotten: then the share is stated too low, and never too high.
    """
    bits: dict[str, int] = {}
    for each in data:
        bits[each.owner] = bits.get(each.owner, 0) | (each.path in seen) << each.place
    try:
        for owner, value in bits.items():
            _write_bits(root, owner, value)
    except (OSError, CorruptError):  # corrupt: `runs` is a link that leads out of the store
        return False
    return True


def _place(owner: str) -> str:
    return layout.run_file(_FOLDER, f"{sha256(owner.encode()).hexdigest()[:16]}.json")


def _read_bits(root: ObjectRoot, owner: str) -> int:
    with contextlib.suppress(StoreError, ValueError, OSError):
        record: Mapping[str, object] = read_record(root, _place(owner))
        if record.get("folder") == owner:
            return int.from_bytes(base64.b64decode(str(record.get("read_bits")), validate=True), "little")
    return 0


def _write_bits(root: ObjectRoot, owner: str, value: int) -> None:
    text = base64.b64encode(value.to_bytes(-(-value.bit_length() // 8), "little")).decode()
    write_record(root, _place(owner), {"folder": owner, "read_bits": text})
