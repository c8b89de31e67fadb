"""Making the next items in threads while the caller works on this one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


def overlapped(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """``map(function, items)`` in order, computed in ``threads`` threads while the caller works on earlier results.

    At most ``2 * threads`` results are pending, so memory does not grow where the caller is the slower one.
    An exception of the function is raised where its result would have come. Stopping early waits for those under way.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "overlap") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def prefetched(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items in their order, the next two of them made in a thread before they are asked for.

    An exception of ``items`` is raised where its item would have come.
    """
    end = object()
    made: Generator[Any, None, None] = overlapped(lambda _: next(items, end), itertools.repeat(None), threads=1)
    try:
        for item in made:
            if item is end:
                return
            yield cast(Item, item)
    finally:
        made.close()
