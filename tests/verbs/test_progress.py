"""Progress on stderr: plain lines where there is no terminal, one that changes on one; stdout stays clean."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import pytest

from edgerun.cli import _progress
from edgerun.cli._progress import Stages
from edgerun.runtime import progress


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines come every few milliseconds, and every stage lasts longer than that."""
    monkeypatch.setattr(_progress, "EVERY", 0.005)
    show = Stages.__call__

    def slowly(self: Stages, stage: str, done: int, total: int) -> None:
        show(self, stage, done, total)
        time.sleep(0.02)

    monkeypatch.setattr(Stages, "__call__", slowly)
    yield


@pytest.mark.usefixtures("often")
def test_every_long_verb_speaks_without_a_terminal(place: Any, cli: Any) -> None:
    """With stage and count; --json's stdout is one JSON value."""
    small, engine = place.folder / "small.onnx", place.folder / "e.xml"
    for words, stages in (
        (("compress", place.a, "-o", small, "--calibration", place.data), ("float model: ", " of 300", "comparing")),
        (("compile", place.a, "-o", engine), ("compiling for openvino (", "comparing with the reference (")),
        (("check", place.a), ("asking onnxruntime which nodes it takes (",)),
        (("check", small, "--strict"), ("profiling: ", " of 9")),
        (("compare", place.a, place.b, "--data", place.data), ("comparing: ", " %")),
        (("eval", place.a, "--data", place.data), ("evaluating: ", " %")),
        (("bench", place.a, place.b, "--data", place.data, "--seconds", "1"), ("timing: ", " %")),
    ):  # fmt: skip
        ran = cli(*words, "--json")
        assert ran.code in (0, 1) and isinstance(json.loads(ran.out), dict), ran.err
        for stage in stages:
            assert stage in ran.err, (words[0], ran.err)
        assert " s so far)" in ran.err and "\r" not in ran.err


def test_short_work_says_nothing(place: Any, cli: Any) -> None:
    assert cli("compile", place.a, "-o", place.folder / "e.xml").err == ""
    assert cli("check", place.a).err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_left_is_of_this_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """At nearly 10 a second, 30 of 62 leave 3 s, of this step."""
    shown, now = Terminal(), iter(np.arange(100, 200, 0.1001))
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(click, "echo", lambda text="", nl=True, err=False: shown.write(text + "\n" * nl))
    with Stages() as show:
        for done in range(1, 31):
            show("refining ranges", done, 62)
    assert "refining ranges: 1 of 62\033" in shown.getvalue()
    assert "refining ranges: 30 of 62, 3 s left in this step\033" in shown.getvalue()


def test_a_target_that_is_told_nothing_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Outside of a command nobody listens."""
    progress.listener()("compiling", 0, 0)
    assert capfd.readouterr() == ("", "")


def test_best_counts_its_ranges(place: Any) -> None:
    """`--preset best` tells how many ranges of all are refined, and not a sample of one of them."""
    from edgerun.verbs.compress import compress

    told: list[tuple[str, int, int]] = []
    compress(place.a, calibration={"x": place.x}, preset="best", progress=lambda *step: told.append(step))
    counts = [step[1:] for step in told if step[0] == "refining ranges"]
    assert counts[0][0] == 0 and counts[-1][0] == counts[-1][1] >= 1
    assert not any(stage.startswith("refining range ") or not stage for stage, _, _ in told)
