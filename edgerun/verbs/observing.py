"""Shapes by a run: what inference cannot tell of a foreign graph, runs of several sizes show."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun import parity
from edgerun.converters import _ort
from edgerun.errors import out_of_memory
from edgerun.model import Model
from edgerun.passes import Conversion

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

log = logging.getLogger("edgerun")
# What is as long as the numbers have it: sizes that agree in a few runs are no proof there.
_OPEN = frozenset(
    {"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "Scan", "If", "SequenceAt", "RoiAlign"}
)


def observed(found: Conversion, path: Path) -> Model:
    """The model found, which is in `path`, with a shape at every value of whose rank inference knows nothing.

    A size is told where all runs agree on it, on random feeds of other batches and open sizes, and none where operators
    give as much as the numbers have. Where all ranks are known, or over 1.8 GB, nothing is run, and nothing changes.
    """
    model = found.model
    unknown = [value for node in model.ir.graph for value in node.outputs if value.shape is None and _is_tensor(value)]
    if not unknown or model.is_large():
        return model
    inside = _ort.inside(path)
    try:
        runs = [inside(feeds) for feeds, _ in parity.accepted(found.model, found.run)]
    except Exception as error:  # random feeds may be refused, and a runtime gives not every value out
        if out_of_memory(error):
            raise
        log.info("no run tells the shapes that inference does not: %s", _ort.first_line(error))
        return model
    sizes = not any(node.op_type in _OPEN for node in model.ir.graph.all_nodes())
    graph = model.clone()
    values = {str(value.name): value for node in graph.graph for value in node.outputs}
    told = 0
    for name in (str(value.name) for value in unknown):
        arrays = [taps[name].value for taps in runs if name in taps]
        if len(arrays) == len(runs) and len({array.ndim for array in arrays}) == 1:
            values[name].shape = _shape(name, arrays, sizes)
            told += 1
    log.info("shapes by a run: %d of %d that inference does not tell", told, len(unknown))
    return Model.of(graph)


def _is_tensor(value: ir.Value) -> bool:
    import onnx_ir as ir

    return bool(value.name) and (value.type is None or isinstance(value.type, ir.TensorType))


def _shape(name: str, arrays: Sequence[np.ndarray], sizes: bool) -> ir.Shape:
    import onnx_ir as ir

    agreed = [len({array.shape[axis] for array in arrays}) == 1 for axis in range(arrays[0].ndim)]
    both = zip(arrays[0].shape, agreed, strict=True)
    return ir.Shape([size if sizes and same else f"{name}_{axis}" for axis, (size, same) in enumerate(both)])
