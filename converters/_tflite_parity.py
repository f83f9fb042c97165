"""Comparing a model that computes on codes with its source, operator by operator."""

from __future__ import annotations

import numpy as np

from edgerun import draws
from edgerun.converters._tflite_files import Net
from edgerun.model import Model
from edgerun.passes import Feeds

DATA = "random, seed 0: codes uniform over their range"


def coded(net: Net) -> bool:
    """Does the net compute on codes?"""
    return any(tensor.quant is not None and tensor.data is None for tensor in net.tensors)


def feeds(net: Net, model: Model) -> list[Feeds]:
    """Three draws, batches of 1, 3 and 2 where the batch is open; codes, and what becomes codes, over their range."""
    below, found = draws.index_bounds(model.ir), []
    for number, batch in enumerate((1, 3, 2)):
        drawn = draws.feeds(model.inputs, draws.sizes(model.inputs, batch, 32), number, below)
        rng = np.random.default_rng(number)
        for spec, index in zip(model.inputs, net.inputs.values(), strict=True):
            quant, shape = net.tensors[index].quant, drawn[spec.name].shape
            if quant is not None:
                ends = np.iinfo(quant.zero.dtype)
                drawn[spec.name] = rng.integers(ends.min, ends.max, shape, quant.zero.dtype, endpoint=True)
            elif (grid := _behind(net, index)) is not None:
                ends = np.iinfo(grid.zero.dtype)
                codes = rng.integers(ends.min, ends.max, shape, grid.zero.dtype, endpoint=True)
                drawn[spec.name] = grid.real(codes)
        found.append(drawn)
    return found


def _behind(net: Net, index: int):  # type: ignore[no-untyped-def]
    for operator in net.operators:
        if operator.kind == "QUANTIZE" and operator.inputs[0] == index:
            return net.tensors[operator.outputs[0]].quant
    return None
