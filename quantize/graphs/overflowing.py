"""Nodes whose values come near to the end of a half type, on the calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.quantize._observation import samples_in
from edgerun.quantize.graphs import halves
from edgerun.quantize.graphs.statistics import Watch

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgerun.passes import Request
    from edgerun.quantize.numerics.half import Half


def found(original: ir.Model, nodes: Sequence[ir.Node], half: Half, request: Request) -> list[str]:
    """The names of nodes with an input or output beyond what `half` holds, with its room, on the calibration data,
    where there is some."""
    if request.calibration is None:
        return []
    names = {str(node.name) for node in nodes}
    touched = {
        str(node.name): [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and not v.is_initializer()]
        for node in original.graph if node.name in names
    }  # fmt: skip
    floats = {
        str(value.name)
        for value in (*original.graph.inputs, *(v for node in original.graph for v in node.outputs))
        if value.dtype is not None and int(value.dtype) == halves.FLOAT
    }
    watched = sorted({value for values in touched.values() for value in values} & floats)
    watch, seen = Watch(original, watched, 1), 0
    with request.open(watch.graph(False)) as session:
        for feeds in request.calibration:
            request.progress("looking for overflow", seen, request.calibration.samples or 0)
            watch.add(session.run(feeds))
            seen += samples_in(feeds, request)
            if seen >= request.effort.first:
                break
    lows, highs = watch.extremes(watched)
    peaks = np.maximum(-lows.min(axis=0), highs.max(axis=0))
    bad = {name for name, peak in zip(watched, peaks, strict=True) if not peak <= half.largest / half.room}
    return [name for name, values in touched.items() if bad & set(values)]
