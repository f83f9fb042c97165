"""TFLite operators that choose among boxes: non-maximum suppression, and the detection head of SSD models."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

DETECTION = "CUSTOM:TFLite_Detection_PostProcess"


@rule("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", to="NonMaxSuppression, Pad",
      limits="a constant number of boxes; V5: no soft suppression")  # fmt: skip
def _suppressed(graph: Graph, call: Call) -> list[Value]:
    """Indices of the boxes [n, 4] that stay, best first, zeros behind them; V5 their scores too; how many stay."""
    boxes, scores = graph.plain(call.value(0)), graph.plain(call.value(1))
    most, soft = int(call.constant(2).reshape(-1)[0]), call.kind.endswith("5")
    if soft and float(call.constant(5).reshape(-1)[0]) > 0:
        raise Unsupported("soft suppression (sigma above 0) is not supported")
    limits = [float(call.constant(index).reshape(-1)[0]) for index in (3, 4)]
    chosen, count = _nms(graph, boxes.name, scores.name, most, *limits)
    picked = [_padded(graph, chosen, count, most)]
    if soft:
        picked.append(_padded(graph, graph.node("Gather", [scores.name, chosen], axis=0), count, most))
    picked[0] = graph.node("Cast", [picked[0]], to=6)
    results = [*picked, graph.node("Reshape", [graph.node("Cast", [count], to=6), graph.ints([], "scalar")])]
    return [call.made(name, index) for index, name in enumerate(results)]


def _nms(graph: Graph, boxes: str, scores: str, most: int, overlap: float, least: float) -> tuple[str, str]:
    """Indices int64 [k] of boxes [n, 4] by scores [n], best first, and k as int64 [1]."""
    zero = graph.ints([0], "first")
    whole = graph.node("Unsqueeze", [boxes, zero])
    each = graph.node("Unsqueeze", [scores, graph.ints([0, 1], "outer")])
    limits = [graph.shared(np.float32(value), word) for value, word in ((overlap, "overlap"), (least, "least"))]
    found = graph.node("NonMaxSuppression", [whole, each, graph.ints([most], "most"), *limits])  # [k, 3]
    chosen = graph.node("Gather", [found, graph.shared(np.int64(2), "box")], axis=1)
    return chosen, graph.node("Shape", [chosen])


def _padded(graph: Graph, values: str, count: str, most: int, rank: int = 1) -> str:
    """[count, …] with zeros behind it, up to `most`."""
    missing = graph.node("Sub", [graph.ints([most], "most"), count])
    ends = [graph.ints([0] * rank, "front"), missing, *([graph.ints([0] * (rank - 1), "rest")] if rank > 1 else [])]
    return graph.node("Pad", [values, graph.node("Concat", ends, axis=0)])


@rule(DETECTION, to="NonMaxSuppression, Gather, …", limits="one class per box, fast suppression, constant anchors")
def _detections(graph: Graph, call: Call) -> list[Value]:
    """Boxes [1, m, 4], classes [1, m], scores [1, m] and how many [1], of encodings [1, n, 4] and scores [1, n, c].

    A box is its anchor (y, x, h, w) moved by dy/s_y·h, dx/s_x·w and stretched by exp(dh/s_h), exp(dw/s_w). Suppressed
    on each box's best score, whatever its class ("fast"). A column in front of the classes is the background's.
    """
    told = _options(call.options)
    if told.get("use_regular_nms") or told.get("max_classes_per_detection", 1) != 1:
        raise Unsupported("with suppression per class, or several classes per box, is not supported")
    most, classes = int(told["max_detections"]), int(told["num_classes"])
    boxes = _decoded(graph, call, told)
    scores = graph.node("Squeeze", [graph.plain(call.value(1)).name, graph.ints([0], "first")])
    if (background := (call.value(1).shape[-1] or classes) - classes) > 0:
        bounds = [
            graph.ints([n], word) for n, word in ((background, "skip"), (background + classes, "end"), (1, "axis"))
        ]
        scores = graph.node("Slice", [scores, *bounds])
    values, kinds = graph.several("TopK", [scores, graph.ints([1], "one")], 2, axis=1)  # the first of equals, as TFLite
    flat = graph.ints([-1], "flat")
    values, kinds = (graph.node("Reshape", [name, flat]) for name in (values, kinds))
    chosen, count = _nms(graph, boxes, values, most, told["nms_iou_threshold"], told["nms_score_threshold"])
    shapes = ([1, most, 4], [1, most], [1, most])
    found = []
    for name, shape in zip((boxes, kinds, values), shapes, strict=True):
        picked = graph.node("Gather", [name, chosen], axis=0)
        picked = graph.node("Cast", [picked], to=1) if name == kinds else picked
        picked = _padded(graph, picked, count, most, len(shape) - 1)
        found.append(graph.node("Reshape", [picked, graph.ints(shape, "shape")]))
    found.append(graph.node("Cast", [count], to=1))
    return [call.made(name, index) for index, name in enumerate(found)]


def _decoded(graph: Graph, call: Call, told: dict[str, Any]) -> str:
    """The corners [n, 4] (y, x, y, x) of the boxes."""
    anchors = call.constant(2).astype(np.float32)  # (y, x, h, w)
    centres, sizes = anchors[:, :2], anchors[:, 2:]
    moved, grown = (np.array([told[f"{a}_scale"], told[f"{b}_scale"]], np.float32) for a, b in (("y", "x"), ("h", "w")))
    encoded = graph.node("Squeeze", [graph.plain(call.value(0)).name, graph.ints([0], "first")])
    shift, growth = graph.several("Split", [encoded, graph.ints([2, 2], "halves")], 2, axis=1)
    shift = graph.node("Mul", [graph.node("Div", [shift, graph.const(moved, "moved")]), graph.const(sizes, "sizes")])
    centre = graph.node("Add", [shift, graph.const(centres, "centres")])
    growth = graph.node("Exp", [graph.node("Div", [growth, graph.const(grown, "grown")])])
    half = graph.node("Mul", [growth, graph.const(sizes / 2, "half_sizes")])
    return graph.node("Concat", [graph.node("Sub", [centre, half]), graph.node("Add", [centre, half])], axis=1)


def _options(held: Any) -> dict[str, Any]:
    """The operator's options, a FlexBuffer map."""
    flexbuffers = importlib.import_module("flatbuffers.flexbuffers")
    found: dict[str, Any] = flexbuffers.Loads(bytes(bytearray(held)))
    return found
