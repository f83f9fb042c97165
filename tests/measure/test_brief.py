"""Brief comparisons: gross differences after one session, small ones after six, and no false alarms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from edgerun.measure import brief
from edgerun.measure.latency import Open, Run
from edgerun.measure.stats import verdict


def taken(ratio: float, sessions: int, *, luck: float = 0.0, seed: int = 0) -> list[brief.Session]:
    """Sessions in which `b` is `ratio` times as fast as `a`; each model's sessions differ by e^(luck·N(0, 1))."""
    generator = np.random.default_rng(seed)

    def times(seconds: float) -> list[float]:
        rounds = seconds * np.exp(0.01 * generator.standard_normal(brief.ROUNDS) + luck * generator.standard_normal())
        return list(map(float, rounds))

    return [{"a": times(1e-3), "b": times(1e-3 / ratio)} for _ in range(sessions)]


@pytest.mark.parametrize(
    ("ratio", "sessions", "answer"),
    [
        (1.3, 1, "faster"), (0.7, 1, "slower"),
        (1.08, 1, "no difference"), (0.93, 1, "no difference"),
        (1.08, 6, "faster"), (0.93, 6, "slower"), (1.0, 9, "no difference"),
    ],
)  # fmt: skip
def test_what_so_many_sessions_tell(ratio: float, sessions: int, answer: str) -> None:
    found = brief.compared(taken(ratio, sessions), "a", "b")
    assert found.value == pytest.approx(ratio, abs=0.02) and found.interval.low < ratio < found.interval.high
    assert verdict(found.interval) == answer
    assert brief.clear(taken(ratio, sessions), "a", "b") == (answer != "no difference")


def looked_at(sessions: Sequence[brief.Session]) -> str:
    answers = (verdict(brief.compared(sessions[:look], "a", "b").interval) for look in brief.LOOKS)
    return next((answer for answer in answers if answer != "no difference"), "no difference")


def test_false_alarms() -> None:
    """Equal models whose sessions differ by 3 % (one standard deviation): 'faster' in at most 5 % of 400 runs."""
    answers = [looked_at(taken(1.0, 9, luck=0.03, seed=seed)) for seed in range(400)]
    assert answers.count("faster") <= 20 and answers.count("slower") <= 20
    assert answers.count("no difference") > 350


def test_a_session_times_all_in_turns() -> None:
    """Every model is opened once, in the same rounds; a number per round and model."""
    opened: list[str] = []

    def opener(name: str) -> Open:
        @contextmanager
        def enter() -> Iterator[Run]:
            opened.append(name)
            yield lambda: sum(range(200))

        return enter

    found = brief.session({name: opener(name) for name in "abc"}, 0, 0.02)
    assert sorted(opened) == ["a", "b", "c"] and {len(found[name]) for name in "abc"} == {brief.ROUNDS}
    assert all(seconds > 0 for times in found.values() for seconds in times)


def test_a_session_goes_on_while_its_rounds_disagree() -> None:
    """Times that alternate between one and ten thousand turns settle nothing: four times the rounds, opened once."""
    opened, turns = [0], [0]

    @contextmanager
    def unsteady() -> Iterator[Run]:
        opened[0] += 1

        def run() -> int:
            turns[0] += 1
            return sum(range(10_000 if turns[0] // 4 % 2 else 10))

        yield run

    @contextmanager
    def steady() -> Iterator[Run]:
        yield lambda: sum(range(1000))

    models = {"a": steady, "b": unsteady}
    assert len(brief.session(models, 0, 1e-4)["b"]) == brief.ROUNDS
    found = brief.session(models, 0, 1e-4, lambda found: False)
    assert brief.steady(found) or len(found["a"]) == len(found["b"]) == brief.MOST_ROUNDS
    assert opened[0] == 2


@pytest.mark.parametrize(("times", "agree"), [([1.0, 1.02, 1.04] * 4, True), ([1.0, 1.5] * 6, False)])
def test_rounds_that_agree(times: list[float], agree: bool) -> None:
    assert brief.steady({"a": [1.0] * 12, "b": times}) is agree


@pytest.mark.parametrize(
    ("ratios", "surely"),
    [([1.2] * 6, True), ([0.9] * 6, True), ([1.2] * 5 + [1.0], False), ([1.2] * 11 + [1.0], True), ([1.05] * 6, False)],
    ids=["above", "below", "one of six", "one of twelve", "at it"],
)
def test_rounds_that_lie_on_one_side_of_a_bound(ratios: list[float], surely: bool) -> None:
    """By the sign test, 95 %: all of six, or all but two of twelve."""
    found = {"slow": [ratio * 0.01 for ratio in ratios], "usual": [0.01] * len(ratios)}
    assert brief.beyond(found, "slow", "usual", 1.05) == surely
