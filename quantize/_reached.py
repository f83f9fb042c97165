"""What a finished model reaches on calibration data: how near, on how many samples, how sure, and what is far off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgerun.metrics import Difference
from edgerun.passes import Evidence
from edgerun.quantize._scores import interval, sqnr
from edgerun.quantize._stream import Totals
from edgerun.quantize.graphs import sides

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request, Runner

    Judge = Callable[[Runner], list[Totals]]

REACHED, JUDGED, FAR = "calibration SQNR (dB)", "calibration SQNR", "far off"  # in the history
FAR_DB = 15.0  # of an output, below which more than 3 % of its power is error; zoo models lie between 19 and 40
MOVED = 0.1  # a probability that moves by less rarely decides otherwise
PROBABILITIES = frozenset({"Softmax", "Sigmoid", "HardSigmoid"})
MOVES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def tell(graph: ir.Graph, scores: list[Totals], request: Request, judge: Judge) -> None:
    """Write into the history what a model loses of each sample (of each batch, where outputs have no row per sample);
    the `judge` may be asked what an engine of it loses of the first of these.

    `graph` has the outputs as the float model does. SQNR is the mean over outputs, or their sides, that are not exact;
    `far off` are those of numbers below FAR_DB. That is a measure of outputs, not of accuracy: of probabilities, which
    near zero have a low SQNR for any error (a detector that finds nothing), only those count of which one moved by
    MOVED or more.
    """
    ends = interval(scores)
    told: dict[str, Any] = {"samples": len(scores)}
    told["interval (dB, 95 %)"] = None if ends is None else [round(end, 2) for end in ends]
    if far := list(_far(graph, scores)):
        told[FAR] = far
    request.found |= {REACHED: round(sqnr(scores), 2), JUDGED: told}
    request.evidence = Evidence(scores, judge)


def _parts(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    """The outputs and their sides, by name."""
    yield from ((str(value.name), value) for value in graph.outputs)
    for name, found in sides.of(graph).items():
        yield from ((label, source) for (label, _), source in zip(found.slices(name), found.sources, strict=True))


def _far(graph: ir.Graph, scores: list[Totals]) -> Iterator[dict[str, Any]]:
    for name, value in _parts(graph):
        if name not in scores[0] or (value.dtype is not None and not value.dtype.is_floating_point()):
            continue  # numbers of classes, say: how far apart they are means nothing
        total = sum((score[name] for score in scores), Difference())
        near = total.signal == 0 or total.sqnr_db >= FAR_DB
        if near or (_probabilities(value) and total.max_error < MOVED):
            continue
        db, error = max(total.sqnr_db, -120.0), min(total.max_error, 1e300)
        yield {"output": name, "SQNR (dB)": round(db, 1), "largest error": float(f"{error:.3g}")}


def _probabilities(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in PROBABILITIES
