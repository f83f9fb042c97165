"""TFLite operators whose kernels want channels first: convolution, pooling, resizing, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._layout import same_pads
from edgerun.converters._tflite_elementwise import activate
from edgerun.converters._tflite_files import Quant
from edgerun.converters._tflite_graph import Call, Graph, Value, rule
from edgerun.errors import Unsupported

_SAME = 0  # Padding


def bias_of(graph: Graph, call: Call, index: int, kernel: Value) -> list[str]:
    """The bias's name, in a list; none where it is left out. In codes it counts in steps of s_x·s_w, as kernels do."""
    bias, value = call.given(index), call.value(0 if call.kind != "TRANSPOSE_CONV" else 2)
    if bias is None:
        return []
    if bias.data is not None and bias.data.dtype == np.int32 and value.quant and kernel.quant:
        scale = np.atleast_1d(value.quant.scale[0] * kernel.quant.scale)
        bias = replace(bias, quant=Quant(scale, np.zeros(scale.shape, np.int32)), dtype="float32")
    elif bias.dtype != "float32":
        raise Unsupported(f"a bias of {bias.dtype} is not supported")
    return [graph.placed(bias, [0], "bias").name]


def unmixed(call: Call, kernel: Value) -> None:
    """Raise Unsupported for weights in codes that are computed, beside values in float (`_tflite_hybrid`)."""
    if kernel.quant is not None and kernel.data is None and call.outputs[0].quant is None:
        raise Unsupported("computed codes beside values in float are not supported")


def _strides(options: Any) -> tuple[list[int], list[int]]:
    dilations = [getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)]
    return [options.strideH, options.strideW], dilations


def _pads(call: Call, value: Value, kernel: Sequence[int]) -> dict[str, Any]:
    """The attributes of a window."""
    strides, dilations = _strides(call.options)
    if min(strides) < 1 or min(dilations) < 1:
        raise Unsupported("strides and dilations below 1 are not supported")
    attributes: dict[str, Any] = {"strides": strides}
    if max(dilations) > 1:
        attributes["dilations"] = dilations
    if call.options.padding == _SAME:
        pads = same_pads(value.spatial, kernel, strides, dilations)
        attributes |= {"auto_pad": "SAME_UPPER"} if pads is None else {"pads": pads}
    return attributes


def _taken_in(value: Value, attributes: dict[str, Any]) -> str:
    """The ONNX tensor that the window reads; zeros that were padded right before it join its own padding."""
    if value.padded is None or "auto_pad" in attributes:
        return value.name
    below, more = value.padded
    own = attributes.get("pads", [0] * len(more))
    attributes["pads"] = [a + b for a, b in zip(own, more, strict=True)]
    return below.name


def _convolve(graph: Graph, call: Call, group: int, perm: Sequence[int]) -> Value:
    kernel = call.value(1)
    unmixed(call, kernel)
    sizes = [int(kernel.shape[axis] or 0) for axis in perm[2:]]
    value = graph.first(call.value(0))
    attributes = _pads(call, value, sizes)
    names = [_taken_in(value, attributes), graph.placed(kernel, perm, "kernel").name, *bias_of(graph, call, 2, kernel)]
    if group > 1:
        attributes["group"] = group
    return activate(graph, call, call.made(graph.node("Conv", names, **attributes), first=True))


@rule("CONV_2D", to="Conv")
def _conv(graph: Graph, call: Call) -> Value:
    channels, inner = call.value(0).shape[-1], call.value(1).shape[-1]
    if not channels or not inner or channels % inner:
        raise Unsupported("channels and kernel do not fit")
    return _convolve(graph, call, channels // inner, (0, 3, 1, 2))  # [out, h, w, in/group]


@rule("DEPTHWISE_CONV_2D", to="Conv")
def _depthwise(graph: Graph, call: Call) -> Value:
    channels = call.value(0).shape[-1]
    if not channels:
        raise Unsupported("the number of channels is open")
    return _convolve(graph, call, channels, (3, 0, 1, 2))  # [1, h, w, out]


@rule("TRANSPOSE_CONV", to="ConvTranspose", limits="a spatial size that is known, or n·stride")
def _transposed(graph: Graph, call: Call) -> Value:
    """Output m = (n - 1)·s + k - pads + more: what "same" leaves of m is cut, the smaller half in front."""
    kernel, value = call.value(1), graph.first(call.value(2))
    unmixed(call, kernel)
    strides, _ = _strides(call.options)
    begins, ends, more = [], [], []
    for n, m, k, s in zip(value.spatial, call.outputs[0].shape[1:3], kernel.shape[1:3], strides, strict=True):
        k = int(k or 1)
        same = call.options.padding == _SAME
        if n is None or m is None:
            n, m = 1, s if same else s + max(k - s, 0)
        total = max((n - 1) * s + k - m, 0) if same else 0
        begins.append(total // 2)
        ends.append(total - total // 2)
        more.append(m - ((n - 1) * s + k - total))
    if min(more) < 0 or any(extra >= s for extra, s in zip(more, strides, strict=True)):
        raise Unsupported("an output of that size is not supported", got=call.outputs[0].shape)
    names = [value.name, graph.placed(kernel, (3, 0, 1, 2), "kernel").name, *bias_of(graph, call, 3, kernel)]
    extra: dict[str, Any] = {"output_padding": more} if any(more) else {}
    name = graph.node("ConvTranspose", names, strides=strides, pads=begins + ends, **extra)
    return activate(graph, call, call.made(name, first=True))


_POOLS = {"MAX_POOL_2D": "MaxPool", "AVERAGE_POOL_2D": "AveragePool, GlobalAveragePool"}


@rule(*_POOLS, to=_POOLS)
def _pool(graph: Graph, call: Call) -> Value:
    value = graph.first(call.value())
    kernel = [call.options.filterHeight, call.options.filterWidth]
    op = "MaxPool" if call.kind == "MAX_POOL_2D" else "AveragePool"
    attributes = _pads(call, value, kernel)
    name = value.name
    if op == "MaxPool" and value.padded is not None and value.padded[0].positive:
        if max(value.padded[1]) < min(kernel):  # beside a positive neighbour, zeros never are the maximum
            name = _taken_in(value, attributes)
    if op == "AveragePool" and list(value.spatial) == kernel and not any(attributes.get("pads", [0])):
        name = graph.node("GlobalAveragePool", [name])
    else:
        name = graph.node(op, [name], kernel_shape=kernel, **attributes)
    return activate(graph, call, call.made(name, first=True))


@rule("L2_POOL_2D", to="Mul, AveragePool, Sqrt")
def _l2_pool(graph: Graph, call: Call) -> Value:
    """√mean(x²) over the window."""
    value = graph.first(call.value())
    kernel = [call.options.filterHeight, call.options.filterWidth]
    attributes = _pads(call, value, kernel)
    squares = graph.node("Mul", [value.name, value.name])
    name = graph.node("AveragePool", [squares], kernel_shape=kernel, **attributes)
    return activate(graph, call, call.made(graph.node("Sqrt", [name]), first=True))


@rule("LOCAL_RESPONSE_NORMALIZATION", to="LRN")
def _lrn(graph: Graph, call: Call) -> Value:
    """x / (bias + α·Σx²)^β over 2·radius + 1 channels; ONNX's α is divided by their number."""
    value, options = graph.first(call.value()), call.options
    size = 2 * options.radius + 1
    name = graph.node("LRN", [value.name], size=size, alpha=float(options.alpha) * size, beta=float(options.beta),
                      bias=float(options.bias))  # fmt: skip
    return call.made(name, first=True)


@rule("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", to="Resize", limits="a size that is known", steps=2)
def _resize(graph: Graph, call: Call) -> Value:
    value = graph.first(call.value())
    known = call.value(1).real
    spatial = call.outputs[0].shape[1:3] if known is None else tuple(int(size) for size in known)
    if None in spatial or value.rank != 4:
        raise Unsupported("to a size that is computed while running is not supported")
    corners, half = call.options.alignCorners, call.options.halfPixelCenters
    how: dict[str, Any] = {"mode": "linear" if call.kind == "RESIZE_BILINEAR" else "nearest"}
    how["coordinate_transformation_mode"] = "align_corners" if corners else "half_pixel" if half else "asymmetric"
    if how["mode"] == "nearest":
        how["nearest_mode"] = "round_prefer_ceil" if corners or half else "floor"
    if value.spatial == tuple(spatial):
        return value
    if None not in value.shape[1:]:
        scales = [wide / narrow for wide, narrow in zip(spatial, value.spatial, strict=True)]  # type: ignore[operator]
        exact = [np.float32(scale) for scale in scales]
        if all(scale.is_integer() for scale in scales):
            name = graph.const(np.asarray([1, 1, *exact], np.float32), "scales")
            return call.made(graph.node("Resize", [value.name, "", name], **how), first=True)
    sizes = [-1 if size is None else int(size) for size in (value.shape[0], value.shape[-1], *spatial)]
    if -1 in sizes:
        head = graph.node("Slice", [graph.node("Shape", [value.name]), graph.ints([0], "from"), graph.ints([2], "to")])
        name = graph.node("Concat", [head, graph.ints(sizes[2:], "sizes")], axis=0)
    else:
        name = graph.ints(sizes, "sizes")
    return call.made(graph.node("Resize", [value.name, "", "", name], **how), first=True)


_BLOCKS = {"DEPTH_TO_SPACE": "DepthToSpace", "SPACE_TO_DEPTH": "SpaceToDepth"}


@rule(*_BLOCKS, to=_BLOCKS)
def _blocks(graph: Graph, call: Call) -> Value:
    value, size = graph.first(call.value()), int(call.options.blockSize)
    return call.made(graph.node(_BLOCKS[call.kind], [value.name], blocksize=size), first=True)
