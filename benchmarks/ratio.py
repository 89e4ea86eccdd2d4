"""What the benchmarks share: a peer and ours, timed in turn in one process.

Without further ado benchmarks run once on tiny inputs, so that they cannot rot. `VITRINE_BENCH=full` gives the sizes
and the three rounds at which a ratio means something.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Peer = TypeVar("Peer")
Ours = TypeVar("Ours")
Size = TypeVar("Size")

FULL = os.environ.get("VITRINE_BENCH") == "full"
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[Peer, Ours]):
    """What one comparison found.

    Attributes:
        peer_s, ours_s: median wall time of each, in seconds.
        speed: the peer's time over ours, median over the rounds; above 1 ours is the faster.
        peer, ours: what each returned in the last round.
    """

    peer_s: float
    ours_s: float
    speed: float
    peer: Peer
    ours: Ours


def sized(*, tiny: Size, full: Size) -> Size:
    """The size for this run: `full` where the environment asks for it."""
    return full if FULL else tiny


def compare(name: str, *, peer: Callable[[], Peer], ours: Callable[[], Ours]) -> Comparison[Peer, Ours]:
    """Time two ways to one result in turn and print one line.

    Both run in this process, so on the same threads, and take turns, so that whatever else the machine does
    slows both. A first round, which loads and allocates, is not counted.

    Args:
        name: what is compared, for the printed line.
        peer: the way to compare with.
        ours: the way of this project.

    Returns:
        Median times, the median ratio, and both results.
    """
    times: list[tuple[float, float]] = []
    for _ in range(1 + _ROUNDS if FULL else 1):
        of_peer, peer_s = _timed(peer)
        of_ours, ours_s = _timed(ours)
        times.append((peer_s, ours_s))
    counted = times[1:] or times
    found = Comparison(
        peer_s=statistics.median(pair[0] for pair in counted),
        ours_s=statistics.median(pair[1] for pair in counted),
        speed=statistics.median(pair[0] / pair[1] for pair in counted),
        peer=of_peer,
        ours=of_ours,
    )
    note = "" if FULL else " (tiny inputs, one round: no measure of speed)"
    print(f"\n{name}: {found.speed:.2f} x the peer's speed; {found.peer_s:.3f} s against {found.ours_s:.3f} s{note}")
    return found


def _timed(run: Callable[[], Size]) -> tuple[Size, float]:
    """The result of a call and its wall time in seconds."""
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start
