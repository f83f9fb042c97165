"""Jobs run in turns: one at a time, each a tenth of its feeds, and what they return or raise comes back."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from edgerun.errors import EdgerunError
from edgerun.measure.turns import in_turns


def test_each_gets_a_tenth_in_a_turn() -> None:
    seen: list[tuple[str, int]] = []

    def job(name: str, feeds: Iterable[int]) -> str:
        seen.append((name, 0))
        for feed in feeds:
            seen.append((name, feed))
        seen.append((name, 9))
        return name

    assert in_turns([lambda f: job("a", f), lambda f: job("b", f)], 5, 20) == ["a", "b"]
    turn = [("a", 5)] * 2 + [("b", 5)] * 2
    first = [("a", 0), *[("a", 5)] * 2, ("b", 0), *[("b", 5)] * 2]
    assert seen == first + turn * 8 + [("a", 5), ("a", 5), ("a", 9), ("b", 5), ("b", 5), ("b", 9)]


def test_one_that_fails_ends_and_the_others_go_on() -> None:
    counts = [0, 0]

    def failing(feeds: Iterable[int]) -> None:
        for counts[0], _ in enumerate(feeds, 1):
            if counts[0] == 3:
                raise EdgerunError("no more")

    def other(feeds: Iterable[int]) -> None:
        counts[1] = len(list(feeds))

    with pytest.raises(EdgerunError, match="no more"):
        in_turns([failing, other], 0, 10)
    assert counts == [3, 10]


def test_one_that_leaves_early_does_not_hold_the_others_up() -> None:
    assert in_turns([lambda _: 0, lambda feeds: sum(feeds)], 2, 10) == [0, 20]
