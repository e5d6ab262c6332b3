"""Concurrent calls that yield their results in order, for scorers that wait for a remote machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], width: int, ahead: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) in order, with at most `width` concurrent calls in threads.

    ahead: maximum number of calls submitted after the oldest unfinished call (default: width). A larger number keeps
    the threads busy while that call is slow. If the iteration ends early, calls that have not started are dropped.
    """
    pool = ThreadPoolExecutor(width, "call")
    waiting: deque[tuple[Item, Future[Result]]] = deque()
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
