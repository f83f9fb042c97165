"""TFLite's Fourier transform of real numbers, and complex numbers, which are two real tensors here.

What moves elements moves both; a part that nothing reads is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgerun.converters._tflite_files import Net, Tensor
from edgerun.converters._tflite_graph import Call, Emit, Graph, Value, rule
from edgerun.errors import Unsupported

# Elements of a matrix up to which a product with it is no slower than DFT. Measured, one thread, ms for 500 rows of
# 2048: the real part 22 by the matrix, 24 by ONNX Runtime's DFT, 48 by OpenVINO's; both parts 45, 21, 48. At 512 the
# matrix takes a quarter to two thirds of DFT's time, at 4096 twice to six times as long.
MOST = 2048 * 1025
BOTH = frozenset({"real", "imaginary"})
READS = {"CAST": frozenset({"real"}), "REAL": frozenset({"real"}), "IMAG": frozenset({"imaginary"}),
         "COMPLEX_ABS": BOTH}  # fmt: skip
MOVING = ("ADD", "CONCATENATION", "EXPAND_DIMS", "GATHER", "PACK", "RESHAPE", "REVERSE_V2", "SLICE", "SPLIT", "SPLIT_V",
          "SQUEEZE", "STRIDED_SLICE", "SUB", "TILE", "TRANSPOSE", "UNPACK")  # fmt: skip


def read(net: Net, index: int) -> frozenset[str]:
    """The parts of a complex tensor that anything reads, through what moves them."""
    found, asked, seen = frozenset[str](), [index], {index}
    while asked:
        one = asked.pop()
        for operator in net.operators:
            if one in operator.inputs:
                moves = operator.kind in MOVING
                found |= frozenset() if moves else READS.get(operator.kind, BOTH)
                asked += [output for output in operator.outputs if moves and output not in seen]
                seen |= set(operator.outputs)
    return found


def on_parts(emit: Emit, graph: Graph, call: Call) -> list[Value]:
    """What an operator makes of complex values: one that moves elements moves the real and the imaginary parts.

    Raises Unsupported for any other that does not say what it makes of them.
    """
    if call.kind in READS:
        found = emit(graph, call)
        return [found] if isinstance(found, Value) else list(found)
    if call.kind not in MOVING:
        raise Unsupported("of complex values is not supported")
    made = []
    outputs: list[Tensor] = [replace(tensor, dtype="float32") for tensor in call.outputs]
    for part in ("real", "imaginary"):
        inputs = [_part(value, part) for value in call.inputs]
        found = emit(graph, replace(call, inputs=inputs, outputs=outputs))
        made.append([found] if isinstance(found, Value) else list(found))
    return [replace(real, imaginary=imaginary) for real, imaginary in zip(*made, strict=True)]


def _part(value: Value | None, part: str) -> Value | None:
    if value is None or value.imaginary is None:
        return value
    return value.imaginary if part == "imaginary" else replace(value, imaginary=None)


@rule("RFFT2D", to="MatMul by cosines and sines; DFT where they are many", limits="constant lengths, sizes of two axes")
def _rfft(graph: Graph, call: Call) -> Value:
    """X[l, m] = Σⱼₖ x[j, k]·exp(-2πi·(jl/h + km/w)) for m = 0 … w/2, of x cut or padded with zeros to [h, w]."""
    height, width = (int(length) for length in call.constant(1))
    value = graph.plain(call.value())
    rows, columns = value.shape[-2:]
    if rows is None or columns is None:
        raise Unsupported("of an open size is not supported")
    name = _cut(graph, value, (height, rows), (width, columns))
    rows, columns = min(rows, height), min(columns, width)
    parts = BOTH if height > 1 else call.parts or BOTH
    if columns * (width // 2 + 1) * len(parts) > MOST:
        found = _dft(graph, name, height, width)
    else:
        real, imaginary = _waves(width, columns, width // 2 + 1)
        found = {"real": graph.node("MatMul", [name, graph.shared(real, "cosines")])} if "real" in parts else {}
        if "imaginary" in parts:
            found["imaginary"] = graph.node("MatMul", [name, graph.shared(imaginary, "sines")])
        found = _across(graph, found, height, rows) if height > 1 else found
    tensor = replace(call.outputs[0], dtype="float32")
    made = {part: Value(name, tensor.shape, "float32") for part, name in found.items()}
    imaginary_part = made.get("imaginary", made.get("real"))
    return replace(made.get("real", imaginary_part), imaginary=imaginary_part)  # type: ignore[type-var]


def _waves(length: int, have: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and -sin of 2π·k·m/length, float32 [have, wanted]."""
    turns = np.outer(np.arange(have), np.arange(wanted)) % length  # whole turns, so that the angle stays exact
    angles = 2 * np.pi * turns / length
    return np.cos(angles).astype(np.float32), (-np.sin(angles)).astype(np.float32)


def _cut(graph: Graph, value: Value, *axes: tuple[int, int]) -> str:
    """The last axes, each (length, size), without what is beyond their lengths."""
    over = [(place - len(axes), length) for place, (length, size) in enumerate(axes) if size > length]
    if not over:
        return value.name
    places, ends = zip(*over, strict=True)
    return graph.node("Slice", [value.name, graph.ints([0] * len(over), "starts"), graph.ints(ends, "ends"),
                                graph.ints(places, "axes")])  # fmt: skip


def _across(graph: Graph, found: dict[str, str], height: int, rows: int) -> dict[str, str]:
    """The transform over the rows of what was transformed along them: (C + iS)·(R + iI)."""
    cosines, sines = (graph.shared(array.T, word) for array, word in zip(_waves(height, rows, height),
                                                                         ("cosines", "sines"), strict=True))  # fmt: skip
    real, imaginary = found["real"], found["imaginary"]
    terms = [[graph.node("MatMul", pair) for pair in pairs] for pairs in (
        ((cosines, real), (sines, imaginary)), ((cosines, imaginary), (sines, real)),
    )]  # fmt: skip
    return {"real": graph.node("Sub", terms[0]), "imaginary": graph.node("Add", terms[1])}


def _dft(graph: Graph, name: str, height: int, width: int) -> dict[str, str]:
    name = _transformed(graph, graph.node("Unsqueeze", [name, graph.ints([-1], "axes")]), -2, width, onesided=1)
    if height > 1:
        name = _transformed(graph, name, -3, height)
    places = {"real": 0, "imaginary": 1}
    return {part: graph.node("Gather", [name, graph.shared(np.int64(place), "part")], axis=-1)
            for part, place in places.items()}  # fmt: skip


def _transformed(graph: Graph, name: str, axis: int, length: int, **how: int) -> str:
    size = graph.shared(np.int64(length), "length")
    if graph.opset >= 20:
        return graph.node("DFT", [name, size, graph.shared(np.int64(axis), "axis")], **how)
    return graph.node("DFT", [name, size], axis=axis, **how)


@rule("REAL", to="nothing: the real part is a tensor of its own")
def _real(graph: Graph, call: Call) -> Value:
    return replace(call.value(), imaginary=None)


@rule("IMAG", to="nothing: the imaginary part is a tensor of its own")
def _imaginary(graph: Graph, call: Call) -> Value:
    return _parts(call)[1]


@rule("COMPLEX_ABS", to="Mul, Add, Sqrt")
def _magnitude(graph: Graph, call: Call) -> Value:
    """√(x² + y²)."""
    real, imaginary = graph.alike(_parts(call))
    squares = [graph.node("Mul", [part.name, part.name]) for part in (real, imaginary)]
    return graph.beside(call, graph.node("Sqrt", [graph.node("Add", squares)]), real)


def _parts(call: Call) -> Sequence[Value]:
    value = call.value()
    if value.imaginary is None:
        raise Unsupported("of real values is not supported")
    return [replace(value, imaginary=None), value.imaginary]
