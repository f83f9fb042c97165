"""Jobs that consume feeds, run in turns: what slows the machine down for a while slows all of them."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

TURNS = 10  # of each job

Feed = TypeVar("Feed")
Result = TypeVar("Result")
Job = Callable[[Iterable[Feed]], Result]


def in_turns(jobs: Sequence[Job[Feed, Result]], feed: Feed, count: int) -> list[Result]:
    """What each of `jobs` returns, given `count` times `feed`, a tenth of them in a turn, and then the next job its.

    A turn's first feed finds the caches as the others left them: more than a few go into one where many are given.

    A job runs in a thread of its own, and only while it has its turn: it keeps the first one from its start to the end
    of the first turn, and the last one until it returns. Jobs begin in the order of the sequence. Raises what the
    first job that failed raised, after all have ended; the others go on without it.
    """
    turns = _Turns(len(jobs))
    runs = [_Run(job, turns, number, feed, count) for number, job in enumerate(jobs)]
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors := [run.error for run in runs if run.error is not None]:
        raise errors[0]
    return [result for run in runs for result in run.results]


def of_one(count: int) -> int:
    """How many of `count` feeds go into one turn."""
    return max(count // TURNS, 1)


class _Turns:
    """Whose turn it is, of those that have not ended."""

    def __init__(self, count: int) -> None:
        self._left = list(range(count))
        self._changed = threading.Condition()

    def wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left[0] == number)

    def pass_on(self, ended: bool = False) -> None:
        with self._changed:
            first = self._left.pop(0)
            if not ended:
                self._left.append(first)
            self._changed.notify_all()


class _Run(Generic[Feed, Result]):
    """One job in its thread: what it returned, as a list of one, or what it raised."""

    def __init__(self, job: Job[Feed, Result], turns: _Turns, number: int, feed: Feed, count: int) -> None:
        self._job, self._turns, self._number, self._feed, self._count = job, turns, number, feed, count
        self.results: list[Result] = []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        self._turns.wait(self._number)
        try:
            self.results.append(self._job(self._feeds()))
        except BaseException as error:  # raised again where the jobs were given
            self.error = error
        finally:
            self._turns.pass_on(ended=True)

    def _feeds(self) -> Iterator[Feed]:
        for index in range(self._count):
            if index and index % of_one(self._count) == 0:
                self._turns.pass_on()
                self._turns.wait(self._number)
            yield self._feed
