"""Several calls under way at once, for scorers that wait for another machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(
    function: Callable[[Item], Found], items: Iterable[Item], width: int, ahead: int | None = None
) -> Iterator[tuple[Item, Found]]:
    """(item, function(item)) in order, at most `width` calls at once in threads.

    ahead: how many items may be done, or under way, beyond the one that is waited for (default: width). With more than
    `width`, the threads have work while the oldest call is a slow one. Interrupted or left early, it drops what has not
    begun.
    """
    pool = ThreadPoolExecutor(width, "call")
    waiting: deque[tuple[Item, Future[Found]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > (ahead or width):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
