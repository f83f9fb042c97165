"""Keras's picture layers and operations: resizing, cropping, patches; augmentation, which training alone does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgerun.converters._keras_elementwise import apply
from edgerun.converters._keras_graph import Graph, layer, op
from edgerun.converters._keras_shapes import cut
from edgerun.converters._keras_walk import spec_after
from edgerun.converters._keras_windows import every, padding_of, result, window
from edgerun.converters._layout import Value
from edgerun.errors import Unsupported


@layer(
    "AugMix", "CutMix", "MaxNumBoundingBoxes", "MixUp", "RandAugment", "RandomBrightness",
    "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomCrop", "RandomElasticTransform",
    "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert",
    "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear",
    "RandomTranslation", "RandomZoom", "Solarization",
)  # fmt: skip
def _untouched(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    """Augmentation: pictures pass as they are, in the dtype that the layer computes in."""
    if len(inputs) != 1:
        raise Unsupported(f"{type(operation).__name__} of labels or boxes beside pictures is not supported")
    return graph.cast(inputs[0], operation.compute_dtype)


_CUBIC = {"torch": -0.75}  # Keras's other backends have Keys's -0.5
RESIZE: dict[str, dict[str, Any]] = {  # ONNX Resize for the interpolations that Keras knows and ONNX has
    "nearest": {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    "bilinear": {"mode": "linear"},
    "bicubic": {"mode": "cubic"},
}


def interpolation(graph: Graph, name: str) -> dict[str, Any]:
    """The attributes of a Resize that interpolates so, pixels having their place in the middle."""
    if name not in RESIZE:
        raise Unsupported(f"resizing with {name} interpolation is not supported")
    how = RESIZE[name] | {"coordinate_transformation_mode": "half_pixel"}
    if name == "bicubic":
        if not graph.backend:
            raise Unsupported(
                "bicubic resizing is not supported: Keras's backends disagree; "
                "set KERAS_BACKEND to that which the model was trained on"
            )
        how["cubic_coeff_a"] = _CUBIC.get(graph.backend, -0.5)
    return how


@layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
def _upsampling(graph: Graph, operation: Any, inputs: list[Value]) -> Value:
    value, name = window(operation, graph, inputs[0]), getattr(operation, "interpolation", "nearest")
    factors = every(operation.size, value.rank - 2)
    scales = graph.const(np.asarray([1, 1, *factors], np.float32), "scales")
    how = interpolation(graph, name)
    if name == "nearest":
        how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    made = graph.node("Resize", [value.name, "", scales], **how)
    return result(operation, made, operation.compute_output_shape(inputs[0].shape))


@op("Resize")
def _resize(graph: Graph, operation: Any, images: Value) -> Value:
    """Cut or pad to the wanted proportions where that is asked for, then one Resize."""
    shape = spec_after(operation, [images], {})[0].shape
    if images.rank != 4:
        raise Unsupported("resizing a single picture is not supported: give it a batch axis")
    value = window(operation, graph, graph.cast(images, "float32"))
    height, width = (int(size) for size in operation.size)
    if operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio:
        value = _proportioned(graph, value, height, width, operation)
    how = interpolation(graph, operation.interpolation)
    if operation.antialias and operation.interpolation != "nearest":
        return _smoothed(graph, operation, value, (height, width), shape)
    front = graph.node("Gather", [graph.node("Shape", [value.name]), graph.ints([0, 1], "axes")], axis=0)
    sizes = graph.node("Concat", [front, graph.ints([height, width], "sizes")], axis=0)
    made = graph.node("Resize", [value.name, "", "", sizes], **how)
    found = result(operation, made, shape)
    if images.dtype != "float32" and not images.dtype.startswith("float"):
        found = apply(graph, "Round", found)
    return graph.cast(found, images.dtype)


def _smoothed(graph: Graph, told: Any, value: Value, goal: tuple[int, int], shape: tuple[int | None, ...]) -> Value:
    """Resizing whose filter widens with the scale, by a matrix of shares each way: runtimes differ in it."""
    if None in value.spatial:
        raise Unsupported("resizing a picture of unknown size with antialias is not supported: fix it with --input")
    height, width = (_shares(int(n or 0), m, told.interpolation) for n, m in zip(value.spatial, goal, strict=True))
    name = graph.node("MatMul", [graph.const(height, "rows"), value.name])
    return result(told, graph.node("MatMul", [name, graph.const(width.T, "columns")]), shape)


def _shares(n: int, m: int, kind: str) -> np.ndarray:
    """[m, n]: what of each of n pixels goes into each of m, by a triangle or Keys's cubic (a = -1/2) of max(n/m, 1)."""
    scale = max(n / m, 1.0)
    centre = (np.arange(m)[:, None] + 0.5) * n / m
    far = np.abs(np.arange(n)[None, :] + 0.5 - centre) / scale
    if kind == "bilinear":
        found = np.maximum(1 - far, 0)
    else:
        near, beyond = (1.5 * far - 2.5) * far**2 + 1, ((2.5 - 0.5 * far) * far - 4) * far + 2
        found = np.where(far < 1, near, np.where(far < 2, beyond, 0))
    shares: np.ndarray = found / found.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def _proportioned(graph: Graph, value: Value, height: int, width: int, told: Any) -> Value:
    """The middle with the wanted proportions, or the picture in a frame that has them."""
    if None in value.spatial:
        raise Unsupported("keeping the proportions of a picture of unknown size is not supported: fix it with --input")
    have = [int(size or 0) for size in value.spatial]
    other = [int(have[1] * height / width), int(have[0] * width / height)]
    name = value.name
    if told.crop_to_aspect_ratio:
        keep = [max(min(n, m), 1) for n, m in zip(have, other, strict=True)]
        for axis, (n, m) in enumerate(zip(have, keep, strict=True)):
            if m < n:
                start = int((n - m) / 2)
                name = cut(graph, name, axis + 2, start, start + m)
        return replace(value, name=name, padded=None)
    sides = [int((max(n, m) - n) / 2) for n, m in zip(have, other, strict=True)]
    if any(sides):
        pads = graph.ints([0, 0, *sides, 0, 0, *sides], "pads")
        name = graph.node("Pad", [name, pads, graph.const(np.float32(told.fill_value), "fill")])
    return replace(value, name=name, padded=None)


@op("CropImages", "PadImages")
def _framed(graph: Graph, operation: Any, images: Value) -> Value:
    """Take so many rows and columns away at each side, or put so many of zero there."""
    shape = spec_after(operation, [images], {})[0].shape
    value, word = window(operation, graph, images), "cropping" if type(operation).__name__[0] == "C" else "padding"
    goal = result(operation, "", shape)
    goal_sizes = shape[1:3] if goal.first else shape[2:4]
    if images.rank != 4 or None in value.spatial:
        raise Unsupported("keras.ops: framing a single picture, or one of unknown size, is not supported")
    pairs = []
    for n, m, sides in zip(value.spatial, goal_sizes, (("top", "bottom"), ("left", "right")), strict=True):
        begin = getattr(operation, f"{sides[0]}_{word}")
        end = getattr(operation, f"{sides[1]}_{word}")
        gap = abs(int(n or 0) - int(m or 0))
        begin = gap - end if begin is None and end is not None else (begin or 0)
        pairs.append((begin, gap - begin))
    name = value.name
    if word == "padding":
        pads = [0, 0, *(p[0] for p in pairs), 0, 0, *(p[1] for p in pairs)]
        return result(operation, graph.node("Pad", [name, graph.ints(pads, "pads")]), shape)
    for axis, ((begin, _), size) in enumerate(zip(pairs, goal_sizes, strict=True)):
        name = cut(graph, name, axis + 2, begin, begin + int(size or 0))
    return result(operation, name, shape)


@op("RGBToGrayscale")
def _gray(graph: Graph, operation: Any, images: Value) -> Value:
    """0.2989 R + 0.5870 G + 0.1140 B, by one 1×1 convolution."""
    shape = spec_after(operation, [images], {})[0].shape
    if images.rank != 4:
        raise Unsupported("keras.ops: a single picture without a batch axis is not supported")
    value = window(operation, graph, graph.cast(images, "float32"))
    shares = graph.const(np.array([0.2989, 0.5870, 0.1140], np.float32).reshape(1, 3, 1, 1), "shares")
    return result(operation, graph.node("Conv", [value.name, shares]), shape)


@op("ExtractPatches")
def _patches(graph: Graph, operation: Any, images: Value) -> Value:
    """Every window as one row of channels, by a convolution with a kernel of ones and zeros."""
    shape = spec_after(operation, [images], {})[0].shape
    value = window(operation, graph, graph.cast(images, "float32"))
    axes, channels = value.rank - 2, int(value.shape[-1] or 1)
    sizes = every(operation.size, axes)
    strides = sizes if operation.strides is None else every(operation.strides, axes)
    dilations = every(operation.dilation_rate, axes)
    count = int(np.prod(sizes)) * channels
    kernel = np.eye(count, dtype=np.float32).reshape(count, *sizes, channels)
    names = [value.name, graph.const(np.moveaxis(kernel, -1, 1), "windows")]
    pads = padding_of(operation.padding, value.spatial, sizes, strides, dilations)
    return result(operation, graph.node("Conv", names, strides=strides, dilations=dilations, **pads), shape)


@op("DepthToSpace", "SpaceToDepth")
def _blocks(graph: Graph, operation: Any, x: Value) -> Value:
    shape, name = spec_after(operation, [x], {})[0].shape, type(operation).__name__
    value = window(operation, graph, x)
    return result(operation, graph.node(name, [value.name], blocksize=operation.block_size), shape)


@layer("Pipeline")
def _pipeline(graph: Graph, operation: Any, inputs: list[Value]) -> Sequence[Value]:
    """Layers one after the other."""
    found: Sequence[Value] = inputs
    for one in operation.layers:
        found = graph.walk.layer(one, *found)
    return found
