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

# Lengths up to which one matrix is as fast as two small ones in two steps, and up to which it is written where its
# product is multiplied by another matrix, which it joins (`_products`). Measured, one thread, ms for 500 rows of 2048,
# real part, both: one matrix 28, 47; two steps 7, 12; ONNX Runtime's DFT 24, 21. OpenVINO reads DFT along another axis.
SHORT, JOINED = 256, 2048
Parts = tuple[str, str]  # the ONNX tensors of the real and of the imaginary part
BOTH = frozenset({"real", "imaginary"})
READING = ("CAST", "REAL", "IMAG", "COMPLEX_ABS")
MOVING = ("EXPAND_DIMS", "RESHAPE", "SQUEEZE")  # all others are none that TFLite has for complex numbers


def read(net: Net, index: int) -> frozenset[str]:
    """The parts of a complex tensor that anything reads, through what moves them; "alone" where something else than a
    product with a constant matrix does."""
    found, asked = set[str](), [(index, True)]
    while asked:
        one, whole = asked.pop()
        for operator in net.operators:
            if one not in operator.inputs or operator.inputs[0] != one:
                found |= {"alone"} if one in operator.inputs else set()
            elif operator.kind == "SHAPE":
                continue
            elif operator.kind in MOVING:
                asked.append((operator.outputs[0], whole))
            elif whole and operator.kind in ("CAST", "REAL", "IMAG"):
                found.add("imaginary" if operator.kind == "IMAG" else "real")
                asked.append((operator.outputs[0], False))
            elif whole:
                return BOTH | {"alone"}
            elif (
                operator.kind not in ("FULLY_CONNECTED", "BATCH_MATMUL") or net.tensors[operator.inputs[1]].data is None
            ):
                found.add("alone")
    return frozenset(found)


def on_parts(emit: Emit, graph: Graph, call: Call) -> list[Value]:
    """What an operator makes of complex values: one that moves elements moves the real and the imaginary parts.

    Raises Unsupported for any other that does not say what it makes of them.
    """
    if call.kind in READING:
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


@rule("RFFT2D", to="MatMul by cosines and sines", limits="constant lengths, sizes of two axes that are known")
def _rfft(graph: Graph, call: Call) -> Value:
    """X[l, m] = Σⱼₖ x[j, k]·exp(-2πi·(jl/h + km/w)) for m = 0 … w/2, of x cut or padded with zeros to [h, w]."""
    height, width = (int(length) for length in call.constant(1))
    value = graph.plain(call.value())
    rows, columns = value.shape[-2:]
    if rows is None or columns is None:
        raise Unsupported("of an open size is not supported")
    if width & (width - 1) or height & (height - 1):
        raise Unsupported("of a length that is no power of 2 is not supported")  # nor is it by TFLite
    name = _cut(graph, value, (height, rows), (width, columns))
    rows, columns = min(rows, height), min(columns, width)
    joined = height == 1 and call.parts in ({"real"}, {"imaginary"})
    if width > (JOINED if joined else SHORT):
        found = _two_steps(graph, name, value.rank, columns, width)
    else:
        cosines, sines = _waves(graph, width, columns, width // 2 + 1)
        found = (graph.node("MatMul", [name, cosines]), graph.node("MatMul", [name, sines]))
    if height > 1:
        found = _product(graph, "MatMul", _waves(graph, height, height, rows), found)
    shape = call.outputs[0].shape
    return Value(found[0], shape, "float32", imaginary=Value(found[1], shape, "float32"))


def _waves(graph: Graph, length: int, rows: int, columns: int) -> tuple[str, str]:
    """cos and -sin of 2π·k·m/length, float32 [rows, columns]."""
    turns = np.outer(np.arange(rows), np.arange(columns)) % length  # whole turns left out, so that angles are exact
    angles = 2 * np.pi * turns / length
    return (graph.shared(np.cos(angles).astype(np.float32), "cosines"),
            graph.shared(-np.sin(angles).astype(np.float32), "sines"))  # fmt: skip


def _product(graph: Graph, op: str, left: Parts, right: Parts) -> Parts:
    """Real and imaginary part of (a + ib)·(c + id), of matrices or element by element."""
    (a, b), (c, d) = left, right
    ac, bd, ad, bc = (graph.node(op, pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
    return graph.node("Sub", [ac, bd]), graph.node("Add", [ad, bc])


def _cut(graph: Graph, value: Value, *axes: tuple[int, int]) -> str:
    """The last axes, each (length, size), without what is beyond their lengths."""
    over = [(place - len(axes), length) for place, (length, size) in enumerate(axes) if size > length]
    if not over:
        return value.name
    places, ends = zip(*over, strict=True)
    return graph.node("Slice", [value.name, graph.ints([0] * len(over), "starts"), graph.ints(ends, "ends"),
                                graph.ints(places, "axes")])  # fmt: skip


def _two_steps(graph: Graph, name: str, rank: int, columns: int, width: int) -> Parts:
    """The transform of rows by two small matrices, for w = p·q, n = q·n₁ + n₂ and k = k₁ + p·k₂:

    X[k] = Σₙ₂ exp(-2πi·n₂k₂/q)·exp(-2πi·n₂k₁/w)·Σₙ₁ x[n]·exp(-2πi·n₁k₁/p)   (Bailey 1990, the four-step FFT)
    """
    if columns < width:
        pads = graph.ints([0] * (2 * rank - 1) + [width - columns], "pads")
        name = graph.node("Pad", [name, pads])
    first = 1 << (width.bit_length() - 1) // 2
    second, last = width // first, [*range(rank - 1)]
    name = graph.node("Reshape", [name, graph.ints([0] * (rank - 1) + [first, second], "square")])
    waves = _waves(graph, first, first, first)
    found: Parts = (graph.node("MatMul", [waves[0], name]), graph.node("MatMul", [waves[1], name]))
    found = _product(graph, "Mul", found, _waves(graph, width, first, second))
    found = _product(graph, "MatMul", found, _waves(graph, second, second, second // 2 + 1))
    real, imaginary = (
        graph.node("Reshape", [graph.node("Transpose", [part], perm=[*last, rank, rank - 1]),
                               graph.ints([0] * (rank - 1) + [-1], "line")])
        for part in found
    )  # fmt: skip
    ends = [graph.ints([n], "half") for n in (0, width // 2 + 1, rank - 1)]
    return graph.node("Slice", [real, *ends]), graph.node("Slice", [imaginary, *ends])


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
