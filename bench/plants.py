"""Faults planted into quantized models: plain edits of the protobuf, sharing nothing with what is to find them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass
class File:
    """A Q/DQ model as protobuf, with arrays by name and nodes by the value they write."""

    proto: onnx.ModelProto

    def __post_init__(self) -> None:
        self.makers = {out: node for node in self.proto.graph.node for out in node.output}
        self.tensors = {t.name: t for t in self.proto.graph.initializer}

    def array(self, name: str) -> np.ndarray:
        """An initializer."""
        found: np.ndarray = numpy_helper.to_array(self.tensors[name])
        return found

    def put(self, name: str, array: np.ndarray) -> None:
        """Replace an initializer, or add one."""
        made = numpy_helper.from_array(np.ascontiguousarray(array) if array.ndim else array, name)
        if name not in self.tensors:
            self.tensors[name] = self.proto.graph.initializer.add()
        self.tensors[name].CopyFrom(made)

    def layers(self) -> Iterator[onnx.NodeProto]:
        """Layers whose weight is dequantized and whose input is."""
        for node in self.proto.graph.node:
            if node.op_type in LAYERS and all(self._is_dq(name) for name in node.input[:2]):
                yield node

    def quantizers(self, alone: bool = False) -> Iterator[onnx.NodeProto]:
        """QuantizeLinears whose scale no other one shares, of tensors that a layer computes; `alone`: and one reads."""
        nodes = self.proto.graph.node
        scales = [n.input[1] for n in nodes if n.op_type == "QuantizeLinear"]
        for node in nodes:
            if node.op_type == "QuantizeLinear" and scales.count(node.input[1]) == 1 and node.input[0] in self.makers:
                readers = self.readers(node)
                lone = len(readers) == 1 and readers[0].op_type in LAYERS
                if (lone or not alone) and self.maker(node).op_type in LAYERS:
                    yield node

    def readers(self, quantize: onnx.NodeProto) -> list[onnx.NodeProto]:
        """What reads the values behind a quantizer."""
        nodes = self.proto.graph.node
        outs = [n.output[0] for n in nodes if n.op_type == "DequantizeLinear" and n.input[0] == quantize.output[0]]
        return [n for n in nodes if set(outs) & set(n.input)]

    def maker(self, quantize: onnx.NodeProto) -> onnx.NodeProto:
        """What computes the tensor that a quantizer rounds."""
        found: onnx.NodeProto = self.makers[quantize.input[0]]
        return found

    def stored(self, node: onnx.NodeProto, index: int) -> tuple[str, str, str]:
        """Names of the integers, the scale and the zero point of a layer's constant input."""
        dequantize = self.makers[node.input[index]]
        return dequantize.input[0], dequantize.input[1], dequantize.input[2]

    def values(self, node: onnx.NodeProto, index: int = 1) -> np.ndarray:
        """A layer's constant as floats, float64."""
        if not self._is_dq(node.input[index]):
            return self.array(node.input[index]).astype(np.float64)
        codes, scale, point = (self.array(name).astype(np.float64) for name in self.stored(node, index))
        shape = self.spread(node, codes.ndim) if index == 1 else [-1]
        return (codes - (point.reshape(shape) if point.size > 1 else point)) * (
            scale.reshape(shape) if scale.size > 1 else scale
        )

    def spread(self, node: onnx.NodeProto, rank: int) -> list[int]:
        """The shape that lays a vector along the weight's output channels."""
        return [-1 if i == output_axis(node) % rank else 1 for i in range(rank)]

    def store(self, node: onnx.NodeProto, weight: np.ndarray, scale: np.ndarray) -> None:
        """Store a weight on the given scale (scalar, or one per output channel), biases following."""
        biases = self.biases()
        codes, scale_name, point = self.stored(node, 1)
        by = scale.reshape(self.spread(node, weight.ndim)) if scale.ndim else scale
        self.put(codes, np.clip(np.rint(weight / by), -127, 127).astype(np.int8))
        self.put(scale_name, scale.astype(np.float32))
        self.put(point, np.zeros(scale.shape, np.int8))
        dequantize = self.makers[node.input[1]]
        del dequantize.attribute[:]
        if scale.ndim:
            dequantize.attribute.append(helper.make_attribute("axis", output_axis(node) % weight.ndim))
        self.restore(biases)

    def biases(self) -> dict[str, np.ndarray]:
        """The float value of every integer bias, by its layer's output."""
        return {n.output[0]: self.values(n, 2) for n in self.layers() if len(n.input) > 2 and self._is_dq(n.input[2])}

    def restore(self, biases: dict[str, np.ndarray]) -> None:
        """Store biases on the scales that inputs and weights have now."""
        for output, bias in biases.items():
            node = self.makers[output]
            scale = self.array(self.makers[node.input[0]].input[1]) * self.array(self.stored(node, 1)[1])
            codes, name, point = self.stored(node, 2)
            self.put(codes, np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32))
            self.put(name, scale.astype(np.float32))
            self.put(point, np.zeros(scale.shape, np.int32))
            dequantize = self.makers[node.input[2]]
            del dequantize.attribute[:]
            if scale.ndim:
                dequantize.attribute.append(helper.make_attribute("axis", 0))

    def _is_dq(self, name: str) -> bool:
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"


def output_axis(node: onnx.NodeProto) -> int:
    """Of a layer's weight."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return {"Conv": 0, "Gemm": 0 if transposed else 1}.get(node.op_type, -1)


Plant = Callable[[File, np.random.Generator], str]  # edits, and gives the name of the layer that is wrong now


def range_times(factor: float) -> Plant:
    """A range that is `factor` times what it was."""

    def plant(file: File, draw: np.random.Generator) -> str:
        node = _drawn(list(file.quantizers()), draw)
        biases = file.biases()
        file.put(node.input[1], np.asarray(file.array(node.input[1]) * np.float32(factor)))
        file.restore(biases)
        return file.maker(node).name

    return plant


def outlier(factor: float) -> Plant:
    """One channel is `factor` times as large as the others, and the range goes with it; its reader divides again."""

    def plant(file: File, draw: np.random.Generator) -> str:
        plain = [q for q in file.quantizers(alone=True) if _ungrouped(file.maker(q)) and _ungrouped(file.readers(q)[0])]
        node = _drawn([q for q in plain if len(file.maker(q).input) > 2], draw)
        maker, (reader,) = file.maker(node), file.readers(node)
        weight, bias = file.values(maker), file.values(maker, 2)
        channel = int(np.argmax(bias))  # one that is heard: a Relu would silence others
        gains = np.ones(len(bias))
        gains[channel] = factor
        biases = file.biases()
        if file._is_dq(maker.input[1]):
            scale = np.broadcast_to(file.array(file.stored(maker, 1)[1]), gains.shape) * gains
            file.store(maker, weight * gains.reshape(file.spread(maker, weight.ndim)), np.asarray(scale))
        else:
            file.put(maker.input[1], (weight * gains.reshape(file.spread(maker, weight.ndim))).astype(np.float32))
            file.put(maker.input[2], (bias * gains).astype(np.float32))
        if maker.output[0] in biases:
            biases[maker.output[0]] = bias * gains
        file.put(node.input[1], np.asarray(file.array(node.input[1]) * np.float32(factor)))
        read = file.values(reader)
        axis = 1 if reader.op_type == "Conv" or output_axis(reader) == 0 else 0
        read = read / gains.reshape([-1 if i == axis else 1 for i in range(read.ndim)])
        rest = tuple(i for i in range(read.ndim) if i != output_axis(reader) % read.ndim)
        file.store(reader, read, np.abs(read).max(axis=rest) / 127)
        file.restore(biases)
        return maker.name

    return plant


def dead_channels(file: File, draw: np.random.Generator) -> str:
    """A few channels of a weight have a scale so large that they round to zero."""
    node = _drawn([n for n in file.layers() if file.array(file.stored(n, 1)[1]).size > 8], draw)
    weight, scale = file.values(node), file.array(file.stored(node, 1)[1]).astype(np.float64)
    rest = tuple(i for i in range(weight.ndim) if i != output_axis(node) % weight.ndim)
    loud = np.argsort(-(weight**2).sum(axis=rest))[: max(1, len(scale) // 8)]
    scale[loud] *= 400
    file.store(node, weight, scale)
    return node.name


def bias_shift(share: float) -> Plant:
    """Every bias of a layer is off by `share` of the range that is seen behind it."""

    def plant(file: File, draw: np.random.Generator) -> str:
        node = _drawn([q for q in file.quantizers() if file.maker(q).output[0] in file.biases()], draw)
        maker, biases = file.maker(node), file.biases()
        width = 255 * float(file.array(node.input[1]))
        bias = biases[maker.output[0]]
        biases[maker.output[0]] = bias + share * width * draw.choice([-1.0, 1.0], bias.shape)
        file.restore(biases)
        return maker.name

    return plant


def one_scale(file: File, draw: np.random.Generator) -> str:
    """The layer whose channels differ most in size gets one weight scale for all."""

    def uneven(node: onnx.NodeProto) -> float:
        weight = file.values(node)
        rest = tuple(i for i in range(weight.ndim) if i != output_axis(node) % weight.ndim)
        peaks = np.abs(weight).max(axis=rest)
        return float(peaks.max() / np.median(peaks))

    ordered = sorted(file.layers(), key=uneven)
    node = ordered[-1]
    weight = file.values(node)
    file.store(node, weight, np.asarray(np.abs(weight).max() / 127))
    return node.name


def reduced(file: File, besides: str) -> None:
    """All weights but one layer's on ±63 steps, so that no other can saturate 16 bits."""
    for node in list(file.layers()):
        if node.name != besides:
            weight = file.values(node)
            rest = tuple(i for i in range(weight.ndim) if i != output_axis(node) % weight.ndim)
            peaks = np.abs(weight).max(axis=rest)
            file.store(node, weight, np.where(peaks > 0, peaks, 1.0) / 63)


def _ungrouped(node: onnx.NodeProto) -> bool:
    return not any(a.name == "group" and a.i > 1 for a in node.attribute)


def _drawn(nodes: list[onnx.NodeProto], draw: np.random.Generator) -> onnx.NodeProto:
    return nodes[int(draw.integers(len(nodes)))]
