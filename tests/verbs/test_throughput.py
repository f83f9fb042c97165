"""`edgerun bench --throughput`: what streams, what it says, and that the outputs are real. Nothing depends on speed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.runtime import Options, Session, machine
from edgerun.verbs import benchmark as module

QUICK = ("--rounds", 9, "--seconds", 0.2)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Session, int]]:
    """The session and the number of feeds of each stream that ran."""
    seen: list[tuple[Session, int]] = []
    stream = Session.stream

    def spy(session: Session, feeds: Iterable[Any], in_flight: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        count = 0
        for outputs in stream(session, feeds, in_flight):
            count += 1
            yield outputs
        seen.append((session, count))

    monkeypatch.setattr(Session, "stream", spy)
    return seen


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_runs_a_second_of_streams(place: Any, cli: Any, target: str, watched: list[tuple[Session, int]]) -> None:
    ran = cli("bench", place.a, place.b, "--target", target, "--throughput", "--streams", 2, "--json", *QUICK)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    sessions = {id(session): session for session, _ in watched}
    assert len(sessions) == 18 and all(session.streams == 2 for session in sessions.values())
    warm, timed = [n for _, n in watched if n == 4], [n for _, n in watched if n != 4]
    assert len(warm) == 18 and all(n >= 4 + 8 for n in timed)  # filled first, then four runs a stream at least
    for t in found["timings"]:
        rate = t["per_second"]
        assert t["streams"] == 2 and t["runs"] >= 9 * 8 and t["runs"] % 2 == 0
        assert 0 < rate["interval"]["low"] <= rate["value"] <= rate["interval"]["high"]
        assert 0 < t["p50"]["value"] <= t["p90"]["value"] <= t["p99"]["value"]
    assert sum(timed) == sum(t["runs"] for t in found["timings"]) + len(timed) * (4 + 3)
    assert found["sessions"] == 9 and found["timings"][0]["verdict"] == "baseline"


def test_the_table_says_how_many_streams(place: Any, cli: Any) -> None:
    ran = cli("bench", place.a, "--throughput", *QUICK)
    assert ran.code == 0 and "runs/s" in ran.out and f", {machine.quota()} streams," in ran.out
    three = cli("bench", place.a, "--throughput", "--threads", 3, *QUICK)
    assert three.code == 0 and "threads 3, 3 streams" in three.out
    assert "runs/s" not in cli("bench", place.a, *QUICK).out


def test_the_ratio_of_rates_decides(place: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """b.onnx waits 2 ms in every run: the first is surely faster, the second surely not."""
    pause = threading.Event()

    def load(path: Any, *more: Any, **named: Any) -> Any:
        session: Any = edgerun.load(path, *more, **named)
        if path == place.b:
            honest = session._run

            def waiting(feeds: Any) -> Any:
                pause.wait(0.002)
                return honest(feeds)

            session._run = waiting
            session._start = lambda feeds: Session._start(session, feeds)
        return session

    monkeypatch.setattr(module, "load", load)
    arguments = ("--throughput", "--streams", 1, "--must-be-faster", *QUICK)
    faster = cli("bench", place.b, place.a, *arguments)
    assert faster.code == 0 and " faster " in faster.out
    slower = cli("bench", place.a, place.b, *arguments)
    assert slower.code == 1 and "not an improvement" in slower.err and "(slower)" in slower.out


def test_one_stream_that_answers_otherwise_takes_the_verdict_away(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Any, *more: Any, **named: Any) -> Any:
        session: Any = edgerun.load(path, *more, **named)
        if path == place.b:
            honest, asked = session._run, iter(range(10**9))

            def restless(feeds: Any) -> Any:
                wrong = next(asked) % 3 == 2  # never the first, which is the run outside the benchmark
                return {name: value + np.float32(wrong) for name, value in honest(feeds).items()}

            session._run = restless
            session._start = lambda feeds: Session._start(session, feeds)
        return session

    monkeypatch.setattr(module, "load", load)
    given: dict[str, Any] = {"options": Options(2, streams=2), "throughput": True, "rounds": 9, "seconds": 0.2}
    result = edgerun.benchmark([place.a, place.b], **given)
    assert [t.verdict for t in result.timings] == ["baseline", "outputs differ"]
    swapped = edgerun.benchmark([place.b, place.a], **given)
    assert [t.verdict for t in swapped.timings] == ["outputs differ", "outputs differ"]


def test_the_same_model_with_other_streams(place: Any) -> None:
    told = edgerun.benchmark(
        [place.a, place.a], options=[Options(2), Options(2, streams=2)], throughput=True, rounds=9, seconds=0.2
    )
    assert [t.streams for t in told.timings] == [1, 2]
    own = edgerun.benchmark([place.a], throughput=True, rounds=9, seconds=0.2)
    assert own.timings[0].streams == machine.quota()
    latency = edgerun.benchmark([place.a], rounds=9, seconds=0.2)
    assert latency.timings[0].per_second is None


def test_a_target_without_streams_says_so(place: Any, cli: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The reference runs one after the other: warned of once, and the table says 1."""
    ran = cli("bench", place.a, "--target", "reference", "--throughput", "--streams", 3, *QUICK)
    assert ran.code == 0 and ", 1 streams," in ran.out, ran.out + ran.err
    told = "reference knows no streams: runs take turns, where 3 were to be under way at once"
    assert caplog.messages.count(told) == 1, caplog.text
    mixed = cli("bench", f"{place.a}@onnxruntime", f"{place.a}@reference", "--throughput", "--streams", 2, *QUICK)
    assert mixed.code == 0 and ", 2/1 streams," in mixed.out, mixed.out + mixed.err


def test_misuse(place: Any, cli: Any) -> None:
    for arguments, message in (
        (("--streams", 2), "--streams goes with --throughput"),
        (("--throughput", "--streams", 0), "--streams"),
        (("--throughput", "--streams", 100000), "so many streams"),
    ):
        ran = cli("bench", place.a, *arguments)
        assert ran.code == 2 and message in ran.err and ran.out == "", ran.err
