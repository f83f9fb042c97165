"""What a float model does on calibration data: one run over it, until its ranges are settled."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgerun.errors import EdgerunError, Unsupported
from edgerun.quantize.graphs import correction, placement
from edgerun.quantize.graphs.statistics import Activation, Watch
from edgerun.quantize.numerics import coverage

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Feeds, Request

SAMPLE_BUDGET = 1 << 16  # elements kept of each activation


@dataclass(frozen=True)
class Truth:
    """What the float model computes on a batch of `rows`: its outputs, and each correctable layer's mean."""

    rows: int
    outputs: dict[str, np.ndarray]
    means: dict[str, np.ndarray]


def batches(request: Request, samples: int | None, stage: str) -> Iterator[Feeds]:
    """Calibration batches, `samples` samples at most, reporting progress after each."""
    assert request.calibration is not None
    seen = 0
    for feeds in request.calibration:
        yield feeds
        seen += samples_in(feeds, request)
        request.progress(stage, seen if samples is None else min(seen, samples), samples or 0)
        if samples is not None and seen >= samples:
            return


def samples_in(feeds: Feeds, request: Request) -> int:
    """The samples of a batch; a feed of a model without a batch axis is one."""
    assert request.calibration is not None
    return 1 if request.calibration.batch is None else int(next(iter(feeds.values())).shape[0])


def observe(model: ir.Model, plan: placement.Plan, request: Request) -> tuple[dict[str, Activation], list[Truth]]:
    """One float run over the data: every activation's extremes, and of its beginning everything else that is needed.

    The run ends when the extremes are settled (`coverage.verdict`); the rest of the data is only looked at.
    """
    outputs = _numeric_outputs(model)
    # A sum may need rounding after all once the layer that it is fused into stays in float.
    every = placement.plan(model.graph, replace(request.rules, fused_sum=False), request.keep_float)
    watch = Watch(model, [str(value.name) for value in every.points], SAMPLE_BUDGET // request.effort.first)
    data, truths, rows, settled = batches(request, request.effort.ranges, "float model"), list[Truth](), 0, False
    full = watch.graph(full=True)
    correction.add_means(full.graph, {str(node.name): node for node in full.graph}, plan)
    with request.open(full) as session:
        del full
        for feeds in data:
            out = session.run(feeds)
            watch.add(out)
            # Copies: a runtime's own arrays may keep everything that it allocated for the run.
            means = {name: array.copy() for name, array in out.items() if name.startswith(correction.MEANS)}
            truths.append(Truth(samples_in(feeds, request), {name: out[name].copy() for name in outputs}, means))
            rows += truths[-1].rows
            del out
            if rows >= request.effort.first:
                break
    gc.collect()
    if (more := next(data, None)) is not None:
        points = [str(value.name) for value in plan.points]
        with request.open(watch.graph(full=False)) as session:
            for feeds in itertools.chain([more], data):
                if not settled:
                    watch.add(session.run(feeds))
                    rows += samples_in(feeds, request)
                    settled = rows >= request.effort.settled and bool(verdict(*watch.extremes(points), request).enough)
        gc.collect()
    request.found["samples run"] = rows
    seen = watch.activations()
    for name, activation in seen.items():
        if not all(np.isfinite(a).all() for a in vars(activation.channels).values()):
            raise EdgerunError(f"activation {name!r} is not finite on the calibration data",
                               do="check the preprocessing; run the float model on the same data")  # fmt: skip
    return seen, truths


def verdict(lows: np.ndarray, highs: np.ndarray, request: Request) -> coverage.Verdict:
    """Would more data move the ranges? `lows`, `highs` `[batches, points]`."""
    assert request.calibration is not None
    return coverage.verdict(lows, highs, rows=request.calibration.batch or 1)


def with_moved_means(truth: Truth, changed: Mapping[str, tuple[np.ndarray | float, np.ndarray | float]]) -> Truth:
    """With the layer means (m − o)·f of the model that was centred by o and equalized by f, `[C]` or a number each."""

    def moved(name: str, mean: np.ndarray) -> np.ndarray:
        if name not in changed:
            return mean
        offset, factor = (np.reshape(by, (1, -1, *[1] * (mean.ndim - 2))) for by in changed[name])
        told: np.ndarray = ((mean - offset) * factor).astype(mean.dtype)
        return told

    return replace(truth, means={name: moved(name, mean) for name, mean in truth.means.items()})


def _numeric_outputs(model: ir.Model) -> list[str]:
    """The outputs that have an SQNR. Raises Unsupported when there is none."""
    import onnx_ir as ir

    names = [str(value.name) for value in model.graph.outputs if value.dtype != ir.DataType.STRING]
    if not names:
        raise Unsupported("the model has no numeric output to compare", do="add the scores as an output")
    return names
