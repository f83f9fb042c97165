"""Keras layers and operations with a window over space or time: convolution, padding, cropping, upsampling.

Written for one, two and three spatial axes at once. Sizes: kernel k, stride s, dilation d, input n, output ⌈n/s⌉ for
"same" padding, which pads (⌈n/s⌉ - 1)·s + d·(k - 1) + 1 - n in all, the smaller half in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_activations import activate
from edgerun.converters._keras_graph import Graph, layer, op, shape_after, weight
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._layout import Shape, Value, same_pads


def last(operation: Any) -> bool:
    """Does this layer or operation count channels last? What is not told is what Keras is configured to."""
    from keras import config  # type: ignore[import-untyped]

    return str(getattr(operation, "data_format", None) or config.image_data_format()) == "channels_last"


def window(operation: Any, graph: Graph, value: Value) -> Value:
    """The value lying channels-first, with its shape counted channels-last whatever the layer's data format."""
    if not last(operation):
        value = graph.plain(value)
        return replace(value, shape=(value.shape[0], *value.shape[2:], value.shape[1]), first=True)
    return graph.first(value)


def result(operation: Any, name: str, shape: Shape) -> Value:
    """A channels-first ONNX tensor as the layer's result, of the shape that Keras gives it."""
    return Value(name, tuple(shape), first=last(operation))


def every(amount: Any, axes: int) -> list[int]:
    """One number for each spatial axis."""
    return [int(amount)] * axes if np.ndim(amount) == 0 else [int(number) for number in amount]


def padding_of(
    padding: str, sizes: Shape, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> dict[str, Any]:
    """The `pads` or `auto_pad` attribute of a window."""
    if padding == "valid":
        return {"pads": [0] * (2 * len(kernel))}
    if padding == "causal":
        return {"pads": [dilations[0] * (kernel[0] - 1), 0]}
    pads = same_pads(sizes, kernel, strides, dilations)
    return {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}


def _convolve(graph: Graph, operation: Any, value: Value, kernel: Any, bias: Any, group: int) -> str:
    """One Conv; `kernel` is [k…, in/group, out] as Keras has it. Zero padding written right before it is taken in."""
    axes = value.rank - 2
    strides, dilations = every(operation.strides, axes), every(operation.dilation_rate, axes)
    sizes = [int(size) for size in kernel.shape[:-2]]
    pads: dict[str, Any] = padding_of(operation.padding, value.spatial, sizes, strides, dilations)
    if value.padded is not None and "pads" in pads:
        value, more = value.padded
        pads = {"pads": [a + b for a, b in zip(pads["pads"], more, strict=True)]}
    names = [value.name, _kernel(graph, kernel, (-1, -2))]
    if bias is not None:
        names.append(graph.const(weight(bias), "bias"))
    return graph.node("Conv", names, group=group, strides=strides, dilations=dilations, **pads)


def _kernel(graph: Graph, kernel: Any, front: tuple[int, int]) -> str:
    """A kernel with two of its axes moved to the front: a constant, or a Transpose of one that is computed."""
    if isinstance(kernel, Value):
        order = [axis for axis in range(kernel.rank) if axis - kernel.rank not in front]
        perm = [axis % kernel.rank for axis in front] + order
        return graph.node("Transpose", [graph.plain(kernel).name], perm=perm)
    return graph.const(np.moveaxis(weight(kernel), front, (0, 1)), "kernel")


@layer("Conv1D", "Conv2D", "Conv3D")
def _conv(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = window(operation, graph, inputs[0])
    name = _convolve(graph, operation, value, operation.kernel, operation.bias, operation.groups)
    return activate(graph, operation.activation, result(operation, name, shape_after(operation, inputs)))


@op("Conv")
def _conv_op(graph: Graph, operation: Any, inputs: Value, kernel: Any) -> Value:
    value = window(operation, graph, inputs)
    group = int(value.shape[-1] or 1) // int(kernel.shape[-2])
    name = _convolve(graph, operation, value, kernel, None, group)
    return result(operation, name, spec_after(operation, [inputs, kernel], {})[0].shape)


def _depthwise_kernel(variable: Any) -> np.ndarray:
    """[k…, in, multiplier] -> [k…, 1, in·multiplier]"""
    kernel = weight(variable)
    return kernel.reshape(*kernel.shape[:-2], 1, -1)


@layer("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = window(operation, graph, inputs[0])
    kernel, channels = _depthwise_kernel(operation.kernel), int(value.shape[-1] or 1)
    name = _convolve(graph, operation, value, kernel, operation.bias, channels)
    return activate(graph, operation.activation, result(operation, name, shape_after(operation, inputs)))


@op("DepthwiseConv")
def _depthwise_op(graph: Graph, operation: Any, inputs: Value, kernel: Any) -> Value:
    value = window(operation, graph, inputs)
    name = _convolve(graph, operation, value, _depthwise_kernel(kernel), None, int(value.shape[-1] or 1))
    return result(operation, name, spec_after(operation, [inputs, kernel], {})[0].shape)


@layer("SeparableConv1D", "SeparableConv2D")
def _separable(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = window(operation, graph, inputs[0])
    name = _both(graph, operation, value, operation.depthwise_kernel, operation.pointwise_kernel, operation.bias)
    return activate(graph, operation.activation, result(operation, name, shape_after(operation, inputs)))


@op("SeparableConv")
def _separable_op(graph: Graph, operation: Any, inputs: Value, depthwise_kernel: Any, pointwise_kernel: Any) -> Value:
    value = window(operation, graph, inputs)
    name = _both(graph, operation, value, depthwise_kernel, pointwise_kernel, None)
    return result(operation, name, spec_after(operation, [inputs, depthwise_kernel, pointwise_kernel], {})[0].shape)


def _both(graph: Graph, operation: Any, value: Value, depthwise: Any, pointwise: Any, bias: Any) -> str:
    name = _convolve(graph, operation, value, _depthwise_kernel(depthwise), None, int(value.shape[-1] or 1))
    names = [name, _kernel(graph, pointwise, (-1, -2))]
    if bias is not None:
        names.append(graph.const(weight(bias), "bias"))
    return graph.node("Conv", names)


@layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    name = _upwards(graph, operation, window(operation, graph, inputs[0]), operation.kernel, operation.bias)
    return activate(graph, operation.activation, result(operation, name, shape_after(operation, inputs)))


@op("ConvTranspose")
def _transposed_op(graph: Graph, operation: Any, inputs: Value, kernel: Any) -> Value:
    name = _upwards(graph, operation, window(operation, graph, inputs), kernel, None)
    return result(operation, name, spec_after(operation, [inputs, kernel], {})[0].shape)


def _upwards(graph: Graph, operation: Any, value: Value, kernel: Any, bias: Any) -> str:
    """One ConvTranspose; `kernel` is [k…, out, in]. The (n - 1)·s + K, K = d·(k - 1) + 1, are cut at both ends.

    "valid" leaves n·s + max(K - s, 0), "same" n·s, and with output_padding p (n - 1)·s + (K, or K mod 2) + p.
    """
    axes = value.rank - 2
    strides, dilations = every(operation.strides, axes), every(operation.dilation_rate, axes)
    more = [None] * axes if operation.output_padding is None else every(operation.output_padding, axes)
    begins, ends, grown = [], [], []
    for k, s, d, p in zip(kernel.shape[:-2], strides, dilations, more, strict=True):
        reach = d * (int(k) - 1) + 1
        begin, end = 0, -(max(s - reach, 0) if p is None else p)
        if operation.padding == "same":
            extra = s + reach - 2 if p is None else reach + reach % 2 - 2 + p
            ahead = min(extra // 2 + extra % 2, reach - 1)
            begin, end = reach - 1 - ahead, reach - 1 - (extra - ahead)
        begins.append(begin)
        ends.append(max(end, 0))
        grown.append(max(-end, 0))
    names = [value.name, _kernel(graph, kernel, (-1, -2))]
    if bias is not None:
        names.append(graph.const(weight(bias), "bias"))
    extra_sizes: dict[str, Any] = {"pads": begins + ends, "output_padding": grown}
    return graph.node("ConvTranspose", names, strides=strides, dilations=dilations, **extra_sizes)


def _pairs(amount: Any, axes: int) -> list[tuple[int, int]]:
    """Padding or cropping as Keras keeps it, as (begin, end) per axis."""
    pairs = [amount] if axes == 1 else list(amount)
    return [(int(pair), int(pair)) if np.ndim(pair) == 0 else (int(pair[0]), int(pair[1])) for pair in pairs]


@layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def _zero_padding(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = window(operation, graph, inputs[0])
    pairs = _pairs(operation.padding, value.rank - 2)
    pads = tuple(begin for begin, _ in pairs) + tuple(end for _, end in pairs)
    axes = len(pairs)
    full = graph.ints([0, 0, *pads[:axes], 0, 0, *pads[axes:]], "pads")
    made = graph.node("Pad", [value.name, full])
    return replace(result(operation, made, shape_after(operation, inputs)), padded=(value, pads))


@layer("Cropping1D", "Cropping2D", "Cropping3D")
def _cropping(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = window(operation, graph, inputs[0])
    pairs = _pairs(operation.cropping, value.rank - 2)
    starts = graph.ints([begin for begin, _ in pairs], "starts")
    ends = graph.ints([-end if end else np.iinfo(np.int64).max for _, end in pairs], "ends")
    axes = graph.ints(range(2, value.rank), "axes")
    made = graph.node("Slice", [value.name, starts, ends, axes])
    return result(operation, made, shape_after(operation, inputs))
