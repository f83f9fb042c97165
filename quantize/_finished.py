"""What a finished model loses of the float one, on the samples of the calibration data whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import Truth, batches
from edgerun.quantize._scores import ERROR, gained
from edgerun.quantize._stream import Totals, by_sample

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request, Runner
    from edgerun.runtime import Session

FEWEST = 4  # samples whose spread means something
LOOKS = (4, 2, 1)  # parts of the samples after which the answer is looked at


def reached(quantized: ir.Model, truths: list[Truth], request: Request) -> list[Totals]:
    """What a finished model loses of every sample that the effort lets it be checked on."""
    return lost(quantized, truths, request.effort.check, request)


def lost(quantized: ir.Model, truths: list[Truth], samples: int, request: Request) -> list[Totals]:
    """What a finished model loses of each of so many samples."""
    with request.open(quantized, lanes=request.lanes) as session:
        return _scores(session, truths, samples, request)


def later(quantized: ir.Model, truths: list[Truth], request: Request) -> list[Totals]:
    """What a finished model loses of each sample behind the `truths` of which the float model's outputs are known."""
    if not request.later:
        return []
    behind = itertools.islice(batches(request, None, ""), len(truths), None)
    return lost_of(quantized, list(zip(behind, request.later, strict=False)), request)


def lost_of(quantized: ir.Model, known: list[tuple[Feeds, Truth]], request: Request) -> list[Totals]:
    """What a finished model loses of each sample of these batches."""
    with request.open(quantized, lanes=request.lanes) as session:
        runs = in_lanes(lambda pair: session.run(pair[0]), known, request.lanes)
        return [lost for (_, truth), out in runs for lost in by_sample(truth, out)]


@dataclass(frozen=True)
class Compared:
    """Two models, `plain` and `moved`: which is nearer to float, by how many dB a sample on average, and surely, on how
    many samples; and what the nearer one loses of each of its own."""

    pays: bool
    gain: float
    surely: float
    samples: int
    scores: list[Totals]


def compared(
    models: tuple[ir.Model, ir.Model], truths: list[Truth], samples: int, reported: int, request: Request
) -> Compared:
    """Which of two models is nearer to float on so many samples: on fewer where these say it surely, and a run is not
    so light that all are to be had. What the nearer one loses is told of `reported` samples."""
    plain, moved, known, look = list[Totals](), list[Totals](), 0, 0
    looks = LOOKS if samples <= request.effort.check else LOOKS[-1:]
    with ExitStack() as stack:
        sessions = [stack.enter_context(request.open(model, lanes=request.lanes)) for model in models]
        for share in looks:
            look = min(samples, max(FEWEST, samples // share))
            for session, scores in zip(sessions, (plain, moved), strict=True):
                scores += _scores(session, truths, look, request, known)
            if gained(plain, moved, ERROR)[1] > 0 or gained(moved, plain, ERROR)[1] > 0:
                break
            known = look
        gain, surely = gained(plain, moved, ERROR)
        pays, judged = gain > 0, len(plain)  # each sample counts alike: in a sum the loudest one decides
        scores = moved if pays else plain
        rest = _scores(sessions[pays], truths, reported, request, look) if reported > look else []
    return Compared(pays, gain, surely, judged, scores + rest)


def judge(truths: list[Truth], samples: int, request: Request) -> Callable[[Runner], list[Totals]]:
    """What who runs a finished model loses of each of so many samples; nothing else is remembered of the `truths`."""
    ends = itertools.accumulate(truth.rows for truth in truths)
    few = [replace(truth, means={}) for truth, end in zip(truths, ends, strict=True) if end - truth.rows < samples]

    def by(run: Runner) -> list[Totals]:
        known = zip(batches(request, samples, ""), few, strict=False)
        return [lost for feeds, truth in known for lost in by_sample(truth, run(feeds))]

    return by


def _scores(session: Session, truths: list[Truth], samples: int, request: Request, known: int = 0) -> list[Totals]:
    """What is lost of each of so many samples, behind those that are `known`."""
    found: list[Totals] = []
    starts = itertools.accumulate((truth.rows for truth in truths), initial=0)
    later = zip(batches(request, samples, "check"), truths, starts, strict=False)
    pairs = ((feeds, truth) for feeds, truth, start in later if start >= known)
    for (_, truth), out in in_lanes(lambda pair: session.run(pair[0]), pairs, request.lanes):
        found += by_sample(truth, out)
    return found
