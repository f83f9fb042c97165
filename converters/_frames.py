"""Frames of a signal times a matrix are a convolution: a spectrogram's frames overlap, and need not be written out.

Row i of the frames holds x[i·hop : i·hop + K]; its product with M [K, m] is the convolution of x with the columns of M,
`hop` apart. Measured for 511 frames of 2048 and m = 96, one thread: 2.3 ms in place of 6.5 on ONNX Runtime, and of 4.5
on OpenVINO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgerun.converters._products import matrix, rows
from edgerun.converters._torch_graph import initializer, instead

if TYPE_CHECKING:
    import onnx_ir as ir

Known = Mapping[str, tuple[int, Sequence[int | None] | None]]  # a value's element type and sizes


def convolved(node: ir.Node, known: Known) -> bool:
    """Let a MatMul or Gemm whose rows are frames that a Gather cuts out of a signal be a Conv over the signal.

    The signal is [batch, n, c], the indices [frames, J] with index s·i + j at [i, j]: hop s·c, K = J·c.
    """
    import onnx_ir as ir

    weight, (view, gather) = matrix(node), rows(node)
    if weight is None or view is None or gather is None or gather.op_type != "Gather":
        return False
    signal, held = gather.inputs[0], gather.inputs[1].const_value if gather.inputs[1] is not None else None
    sizes = known.get(signal.name or "", (0, None))[1] if signal is not None else None
    if held is None or signal is None or sizes is None or len(sizes) != 3 or sizes[1] is None or sizes[2] is None:
        return False
    indices, width, length = held.numpy(), sizes[2], sizes[1] * sizes[2]
    hop = _step(indices)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = bias is None or (bias.const_value is not None and bias.const_value.shape.numpy() == weight.shape[1:])
    beta = node.attributes.get_float("beta", 1.0)
    if gather.attributes.get_int("axis", 0) not in (1, -2) or hop is None or not plain or beta != 1:
        return False
    if indices.shape[1] * width != len(weight):
        return False
    count = (length - len(weight)) // (hop * width) + 1
    if count < len(indices):  # they reach beyond the signal
        return False
    made = _Row(node)
    x = made.node("Reshape", [signal, initializer(node, np.array([-1, 1, length], np.int64), 3)])
    reach = (len(indices) - 1) * hop * width + len(weight)
    if count > len(indices):
        ends = [initializer(node, np.array([n], np.int64), 4 + i) for i, n in enumerate((0, reach, 2))]
        x = made.node("Slice", [x, *ends])
    kernel = initializer(node, np.ascontiguousarray(weight.T[:, None]), 1)
    x = made.node("Conv", [x, kernel, *([bias] if bias is not None else [])], strides=[hop * width])
    x = made.node("Transpose", [x], perm=[0, 2, 1])
    target = initializer(node, np.array([*view[:-1], weight.shape[1]], np.int64), 2)
    instead(node, ir.node("Reshape", [x, target], name=node.name))
    return True


def _step(indices: np.ndarray) -> int | None:
    """s of indices s·i + j; None for others."""
    if indices.ndim != 2 or len(indices) < 2 or not indices.size:
        return None
    step = int(indices[1, 0] - indices[0, 0])
    wanted = step * np.arange(len(indices))[:, None] + np.arange(indices.shape[1])
    return step if step > 0 and np.array_equal(indices, wanted) else None


class _Row:
    """New nodes right before one, named after it."""

    def __init__(self, before: ir.Node) -> None:
        self._before = before

    def node(self, op: str, inputs: Sequence[ir.Value | None], **attributes: int | list[int]) -> ir.Value:
        import onnx_ir as ir

        made = ir.node(op, inputs, attributes, name=f"{self._before.name}/{op}")
        made.outputs[0].name = made.name
        assert self._before.graph is not None
        self._before.graph.insert_before(self._before, made)
        return made.outputs[0]
