"""Dynamic range quantization: weights in codes beside values in float.

TFLite's hybrid kernels round those values to 8 bits as they come, each row with a scale of its own, which has no Q/DQ
form. Here the weights stay codes behind DequantizeLinear and the product is computed in float: what the kernel rounds
away stays. So the judge is TFLite's float kernels on the same weights, in a copy of the file that holds them as floats;
and what its hybrid kernels give must lie nearby, which shows that scales and axes are understood.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from edgerun import draws, input_ranges
from edgerun.converters._tflite_files import Net
from edgerun.converters._tflite_source import Source
from edgerun.errors import GateFailed
from edgerun.model import Model

NEARBY = 0.3  # rms of the difference over rms of the outputs: eight bits per value give .005 per layer, wrong scales 1


def weights(net: Net) -> set[int]:
    """The constant codes that an operator reads beside values in float."""
    found = set[int]()
    for operator in net.operators:
        made = net.tensors[operator.outputs[0]] if operator.outputs else None
        if operator.kind != "DEQUANTIZE" and made is not None and made.quant is None and made.dtype == "float32":
            tensors = {index: net.tensors[index] for index in operator.inputs if index >= 0}
            found |= {index for index, t in tensors.items() if t.quant is not None and t.data is not None}
    return found


def twin(data: bytes, net: Net) -> bytes:
    """The file with those weights as float32."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    entries = model.subgraphs[net.subgraph].tensors
    for index in weights(net):
        tensor, entry, buffer = net.tensors[index], entries[index], schema.BufferT()
        assert tensor.data is not None and tensor.quant is not None
        buffer.data = np.frombuffer(tensor.quant.real(tensor.data).tobytes(), np.uint8)
        entry.type, entry.quantization, entry.sparsity = schema.TensorType.FLOAT32, None, None
        entry.buffer = len(model.buffers)
        model.buffers.append(buffer)
    builder = flatbuffers.Builder(2 * len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def difference(model: Model, hybrid: Source, exact: Source) -> dict[str, Any]:
    """How far the hybrid kernels are from the float ones on one draw, for the history.

    Raises GateFailed beyond NEARBY.
    """
    feeds = draws.feeds(model.inputs, draws.sizes(model.inputs, 1, 32), 0, input_ranges.ranges(model.ir))
    got, wanted = hybrid.run(feeds), exact.run(feeds)
    far = {
        name: float(np.sqrt(np.square(got[name] - want, dtype=np.float64).mean() / max(_power(want), 1e-30)))
        for name, want in wanted.items()
        if want.dtype.kind == "f" and want.size
    }
    worst = max(far.values(), default=0.0)
    if not worst <= NEARBY:
        raise GateFailed(
            "TFLite's hybrid kernels compute something else than the weights in float",
            got=f"rms of the difference {worst:.2g} of the outputs'",
            wanted=f"at most {NEARBY}",
        )
    return {"weights": "codes, computed in float", "hybrid_kernels_differ": worst}


def _power(array: np.ndarray) -> float:
    return float(np.square(array, dtype=np.float64).mean())
