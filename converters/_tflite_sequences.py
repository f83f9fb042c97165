"""TFLite's fused LSTM over a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

KIND = "UNIDIRECTIONAL_SEQUENCE_LSTM"
_TANH = 4  # of ActivationFunctionType
# Where the tensors of the gates input, output, forget, cell stand, which is ONNX's order of them.
_INPUT, _RECURRENT, _BIAS, _PEEPHOLE = (1, 4, 2, 3), (5, 8, 6, 7), (12, 15, 13, 14), (9, 11, 10)


@rule(KIND, to="LSTM", limits="floats; four gates, tanh, no projection, no layer norm; the states begin at zero")
def _lstm(graph: Graph, call: Call) -> Value:
    """c' = f·c + i·tanh(g), h = o·tanh(c'), from zero states in every run, as the layer that was exported has it.

    TFLite's interpreter goes on from where its last run ended, until it is told to reset its variables. `cellClip` is
    left out: it is 10 in what Keras exports, whose own layer clips nothing; no cell gets there in ten steps.
    """
    options = call.options
    for wrong, what in (
        (call.given(1) is None, "coupled input and forget gates"),
        (call.given(16) is not None or options.projClip, "a projection"),
        (any(call.given(index) is not None for index in range(20, 24)), "layer normalization"),
        (options.fusedActivationFunction != _TANH, "another activation than tanh"),
        (options.diagonalRecurrentTensors, "diagonal recurrent weights"),
    ):
        if wrong:
            raise Unsupported(f"with {what} is not supported")
    weights, recurrent, bias = (_gates(call, places) for places in (_INPUT, _RECURRENT, _BIAS))
    bias = np.concatenate([bias, np.zeros_like(bias)])
    arrays = [weights[None], recurrent[None], bias[None]]
    names = [graph.const(array, word) for array, word in zip(arrays, ("W", "R", "B"), strict=True)]
    if call.given(_PEEPHOLE[0]) is not None:
        names += ["", "", "", graph.const(_gates(call, _PEEPHOLE)[None], "P")]
    value = graph.plain(call.value(0))
    name = value.name if options.timeMajor else graph.node("Transpose", [value.name], perm=[1, 0, 2])
    whole = graph.node("LSTM", [name, *names], hidden_size=recurrent.shape[1])  # [steps, 1, batch, units]
    steps = graph.node("Squeeze", [whole, graph.ints([1], "direction")])
    return call.made(steps if options.timeMajor else graph.node("Transpose", [steps], perm=[1, 0, 2]))


def _gates(call: Call, places: Sequence[int]) -> np.ndarray:
    return np.concatenate([call.constant(place).astype(np.float32) for place in places])
