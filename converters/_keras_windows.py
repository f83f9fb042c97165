"""Keras layers with a window over space or time: convolution, pooling, padding, cropping, upsampling.

Written for one, two and three spatial axes at once. Sizes: kernel k, stride s, dilation d, input n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_activations import activate
from edgerun.converters._keras_graph import layer, shape_after, weight
from edgerun.converters._layout import Graph, Shape, Value, same_pads
from edgerun.errors import Unsupported


def _window(operation: Any, graph: Graph, value: Value) -> Value:
    """The value lying channels-first, with its shape counted channels-last whatever the layer's data format."""
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        value = graph.plain(value)
        return replace(value, shape=(value.shape[0], *value.shape[2:], value.shape[1]), first=True)
    return graph.first(value)


def _result(operation: Any, name: str, inputs: Sequence[Value]) -> Value:
    last = getattr(operation, "data_format", "channels_last") == "channels_last"
    return Value(name, shape_after(operation, inputs), first=last)


def _padding(
    padding: str, sizes: Shape, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> dict[str, Any]:
    """The `pads` or `auto_pad` attribute of a window."""
    if padding == "valid":
        return {"pads": [0] * (2 * len(kernel))}
    if padding == "causal":
        return {"pads": [dilations[0] * (kernel[0] - 1), 0]}
    pads = same_pads(sizes, kernel, strides, dilations)
    return {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}


def _convolve(
    graph: Graph, operation: Any, value: Value, kernel: np.ndarray, bias: Any, group: int, strides: Sequence[int]
) -> str:
    """One Conv; `kernel` is [out, in/group, …]. Zero padding written right before it is taken in."""
    sizes, dilations = kernel.shape[2:], tuple(operation.dilation_rate)
    pads: dict[str, Any] = _padding(operation.padding, value.spatial, sizes, strides, dilations)
    if value.padded is not None and "pads" in pads:
        value, more = value.padded
        pads = {"pads": [a + b for a, b in zip(pads["pads"], more, strict=True)]}
    names = [value.name, graph.const(kernel, "kernel")]
    if bias is not None:
        names.append(graph.const(weight(bias), "bias"))
    return graph.node("Conv", names, group=group, strides=list(strides), dilations=list(dilations), **pads)


@layer("Conv1D", "Conv2D", "Conv3D")
def _conv(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    kernel = weight(operation.kernel)  # [k…, in/group, out]
    kernel = np.moveaxis(kernel, (-1, -2), (0, 1))
    value = _window(operation, graph, inputs[0])
    name = _convolve(graph, operation, value, kernel, operation.bias, operation.groups, tuple(operation.strides))
    return activate(graph, operation.activation, _result(operation, name, inputs))


def _depthwise_kernel(variable: Any) -> np.ndarray:
    """[k…, in, multiplier] -> [in·multiplier, 1, k…]"""
    kernel = np.moveaxis(weight(variable), (-2, -1), (0, 1))
    return kernel.reshape(-1, 1, *kernel.shape[2:])


@layer("DepthwiseConv1D", "DepthwiseConv2D")
def _depthwise(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    kernel, channels = _depthwise_kernel(operation.kernel), int(value.shape[-1] or 1)
    name = _convolve(graph, operation, value, kernel, operation.bias, channels, tuple(operation.strides))
    return activate(graph, operation.activation, _result(operation, name, inputs))


@layer("SeparableConv1D", "SeparableConv2D")
def _separable(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    depth, channels = _depthwise_kernel(operation.depthwise_kernel), int(value.shape[-1] or 1)
    name = _convolve(graph, operation, value, depth, None, channels, tuple(operation.strides))
    point = np.moveaxis(weight(operation.pointwise_kernel), (-1, -2), (0, 1))
    names = [name, graph.const(point, "pointwise_kernel")]
    if operation.bias is not None:
        names.append(graph.const(weight(operation.bias), "bias"))
    return activate(graph, operation.activation, _result(operation, graph.node("Conv", names), inputs))


@layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Output n·s for "same", n·s + max(k - s, 0) for "valid"."""
    if operation.output_padding is not None or any(d != 1 for d in operation.dilation_rate):
        raise Unsupported("a transposed convolution with output_padding or dilation is not supported")
    kernel = np.moveaxis(weight(operation.kernel), (-1, -2), (0, 1))  # [k…, out, in] -> [in, out, k…]
    strides = list(operation.strides)
    total = [k - s if operation.padding == "same" else 0 for k, s in zip(kernel.shape[2:], strides, strict=True)]
    missing = [max(s - k, 0) for k, s in zip(kernel.shape[2:], strides, strict=True)]
    begins = [max(t, 0) // 2 for t in total]
    ends = [max(t, 0) - b for t, b in zip(total, begins, strict=True)]
    value = _window(operation, graph, inputs[0])
    names = [value.name, graph.const(kernel, "kernel")]
    if operation.bias is not None:
        names.append(graph.const(weight(operation.bias), "bias"))
    name = graph.node("ConvTranspose", names, strides=strides, pads=begins + ends, output_padding=missing)
    return activate(graph, operation.activation, _result(operation, name, inputs))


@layer(*(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _pool(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    kernel, strides = list(operation.pool_size), list(operation.strides)
    pads: dict[str, Any] = _padding(operation.padding, value.spatial, kernel, strides, [1] * len(kernel))
    op = "MaxPool" if type(operation).__name__.startswith("Max") else "AveragePool"
    ends = pads.get("pads", [0, 1])
    if op == "AveragePool" and ends[: len(ends) // 2] != ends[len(ends) // 2 :]:
        # Some count only the picture, some repeat its border: there is no one answer to convert.
        raise Unsupported("AveragePooling whose 'same' padding is uneven is not supported: Keras's backends disagree")
    if op == "MaxPool" and value.padded is not None and "pads" in pads:
        below, more = value.padded
        if below.positive and max(more) < min(kernel):  # beside a positive neighbour, zeros never are the maximum
            value, pads = below, {"pads": [a + b for a, b in zip(pads["pads"], more, strict=True)]}
    name = graph.node(op, [value.name], kernel_shape=kernel, strides=strides, **pads)
    return _result(operation, name, inputs)


@layer(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def _global_pool(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    op = "GlobalMaxPool" if "Max" in type(operation).__name__ else "GlobalAveragePool"
    name = graph.node(op, [value.name])
    if operation.keepdims:
        return _result(operation, name, inputs)
    return Value(graph.node("Flatten", [name], axis=1), shape_after(operation, inputs))


def _pairs(amount: Any, axes: int) -> list[tuple[int, int]]:
    """Padding or cropping as Keras keeps it, as (begin, end) per axis."""
    pairs = [amount] if axes == 1 else list(amount)
    return [(int(pair), int(pair)) if np.ndim(pair) == 0 else (int(pair[0]), int(pair[1])) for pair in pairs]


@layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def _zero_padding(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    pairs = _pairs(operation.padding, value.rank - 2)
    pads = tuple(begin for begin, _ in pairs) + tuple(end for _, end in pairs)
    axes = len(pairs)
    full = graph.ints([0, 0, *pads[:axes], 0, 0, *pads[axes:]], "pads")
    result = _result(operation, graph.node("Pad", [value.name, full]), inputs)
    return replace(result, padded=(value, pads))


@layer("Cropping1D", "Cropping2D", "Cropping3D")
def _cropping(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value = _window(operation, graph, inputs[0])
    pairs = _pairs(operation.cropping, value.rank - 2)
    starts = graph.ints([begin for begin, _ in pairs], "starts")
    ends = graph.ints([-end if end else np.iinfo(np.int64).max for _, end in pairs], "ends")
    axes = graph.ints(range(2, value.rank), "axes")
    return _result(operation, graph.node("Slice", [value.name, starts, ends, axes]), inputs)


@layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
def _upsampling(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    kind = getattr(operation, "interpolation", "nearest")
    if kind not in ("nearest", "bilinear"):
        raise Unsupported(f"UpSampling2D with {kind} interpolation is not supported")
    value = _window(operation, graph, inputs[0])
    factors = [float(size) for size in np.atleast_1d(operation.size)]
    scales = graph.const(np.asarray([1, 1, *factors], np.float32), "scales")
    how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if kind == "nearest":
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _result(operation, graph.node("Resize", [value.name, "", scales], **how), inputs)
