"""Results of slow calls in order, with a few of the next ones under way."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# For calls that bring large results: memory holds so many of them.
IN_FLIGHT = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def read_ahead(
    fetch: Callable[[_Item], _Result], items: Sequence[_Item], *, in_flight: int = IN_FLIGHT
) -> Iterator[_Result]:
    """`fetch` of each item, in order; at most `in_flight` results are held or under way.

    Threads live as long as the iteration, so that nothing of them is inherited by a process forked later.
    """
    if len(items) <= 1:
        yield from map(fetch, items)
        return
    with ThreadPoolExecutor(min(in_flight, len(items)), thread_name_prefix="vitrine-read") as pool:
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                if len(waiting) == in_flight:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(fetch, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
