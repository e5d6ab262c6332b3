"""Several batches under way at once, for scorers that wait for another machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_order(function: Callable[[Item], Found], items: Iterable[Item], width: int) -> Iterator[tuple[Item, Found]]:
    """(item, function(item)) in order, up to `width` of them computed ahead in threads.

    Interrupted or left early, it drops what has not begun. A scorer with `concurrency` N is kept busy by batches of B
    candidates with width = 2 N / B or more: N calls under way, and as many ready to follow.
    """
    pool = ThreadPoolExecutor(width, "batch")
    waiting: deque[tuple[Item, Future[Found]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > width:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
