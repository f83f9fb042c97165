"""What a finished model loses of the float one, on the samples of the calibration data whose truth is known."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from edgerun.quantize._lanes import in_lanes
from edgerun.quantize._observation import Truth, batches
from edgerun.quantize._ranges import ERROR, Totals, by_sample, gained, sqnr

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request


def reached_db(quantized: ir.Model, truths: list[Truth], request: Request) -> float:
    """SQNR (dB) of a finished model against the float one, on calibration data."""
    return sqnr(_scores(quantized, truths, request.effort.check, request))


def compared(
    models: tuple[ir.Model, ir.Model], truths: list[Truth], samples: int, request: Request
) -> tuple[list[Totals], list[Totals]]:
    """What each of two models loses of every one of `samples`: of half of them where these say surely who is nearer."""
    few = max(1, samples // 2)
    plain, moved = (_scores(model, truths, few, request) for model in models)
    if gained(plain, moved, ERROR)[1] > 0 or gained(moved, plain, ERROR)[1] > 0:
        return plain, moved
    more = [_scores(model, truths, samples, request, few) for model in models]
    return plain + more[0], moved + more[1]


def _scores(quantized: ir.Model, truths: list[Truth], samples: int, request: Request, known: int = 0) -> list[Totals]:
    """What is lost of each of so many samples, behind those that are `known`."""
    found: list[Totals] = []
    with request.open(quantized, lanes=request.lanes) as session:
        starts = itertools.accumulate((truth.rows for truth in truths), initial=0)
        later = zip(batches(request, samples, "check"), truths, starts, strict=False)
        pairs = ((feeds, truth) for feeds, truth, start in later if start >= known)
        for (_, truth), out in in_lanes(lambda pair: session.run(pair[0]), pairs, request.lanes):
            found += by_sample(truth, out)
    return found
