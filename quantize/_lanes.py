"""Several batches at once, each on its own core: runtimes share out one small batch badly, and spin where they wait."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_lanes(run: Callable[[T], R], items: Iterable[T], lanes: int) -> Generator[tuple[T, R], None, None]:
    """Every item with what `run` makes of it, in order; at most `lanes` of them are under way or wait to be taken.

    Closing the iterator waits for what is under way. `run` is called in threads when there are two lanes or more.
    """
    if lanes < 2:
        yield from ((item, run(item)) for item in items)
        return
    source, ahead = iter(items), deque[tuple[T, Future[R]]]()
    with ThreadPoolExecutor(lanes) as pool:
        try:
            for item in itertools.islice(source, lanes):
                ahead.append((item, pool.submit(run, item)))
            while ahead:
                item, future = ahead.popleft()
                result = future.result()
                for following in itertools.islice(source, 1):
                    ahead.append((following, pool.submit(run, following)))
                yield item, result
        finally:
            pool.shutdown(cancel_futures=True)
