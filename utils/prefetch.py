"""Making the next items in a thread while the caller works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
AHEAD = 2


def prefetched(items: Iterator[Item], ahead: int = AHEAD) -> Generator[Item, None, None]:
    """The items in their order, up to ``ahead`` of them made before they are asked for.

    An exception of ``items`` is raised where its item would have come. Whoever stops early waits for those under way.
    """
    end = object()
    with ThreadPoolExecutor(1, "prefetch") as pool:  # one thread: the items are made one after another
        waiting: deque[Future[object]] = deque(pool.submit(next, items, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
