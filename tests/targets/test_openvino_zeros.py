"""Zero points move into biases where that changes nothing but the time: integers, summed by numpy, are the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

pytest.importorskip("openvino")

import edgerun
from edgerun.model import Model
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_zeros as zeros

ONE = edgerun.Options(threads=1)
STEP = 0.02
PAIR = "xq = QuantizeLinear(x, s, z) d = DequantizeLinear(xq, s, z)"
WEIGHT = "k = DequantizeLinear<axis={axis}>(w, ws, wz)"
DENSE = f"n (float[b,24] x) => (float[b,16] y) {{{{ {PAIR} {WEIGHT} m = MatMul(d, k) y = Add(m, c) }}}}"
GEMM = f"n (float[b,24] x) => (float[b,16] y) {{{{ {PAIR} {WEIGHT} y = Gemm<transB=1>(d, k, c) }}}}"
POINT = (
    f"n (float[b,24,5,5] x) => (float[b,16,5,5] y) {{{{ {PAIR} {WEIGHT} m = Conv<kernel_shape=[1,1]>(d, k)"
    " y = Add(m, c) }}"
)
PADDED = POINT.replace("kernel_shape=[1,1]", "kernel_shape=[1,1], pads=[1,1,1,1]").replace("16,5,5", "16,7,7")
BARE = f"n (float[b,24] x) => (float[b,16] y) {{{{ {PAIR} {WEIGHT} y = MatMul(d, k) }}}}"
SHARED = (
    f"n (float[b,24] x) => (float[b,16] y, float[b,24] o) {{{{ {PAIR} {WEIGHT} m = MatMul(d, k) y = Add(m, c)"
    " o = Relu(d) }}"
)
TWICE = (
    f"n (float[b,24] x) => (float[b,16] y, float[b,16] o) {{{{ {PAIR} {WEIGHT} m = MatMul(d, k) y = Add(m, c)"
    " l = MatMul(d, k) o = Add(c, l) }}"
)


def made(text: str, zero: int, *, kind: str = "uint8", weight_zero: int = 0, one_scale: bool = False) -> Model:
    """A layer on integers of 16 outputs, whose weights have a scale each, or one; its input is zero at `zero`."""
    generator = np.random.default_rng(0)
    spatial = ",5,5]" in text
    shape = (16, 24, 1, 1) if spatial else (16, 24) if "transB" in text else (24, 16)
    axis = 0 if spatial or "transB" in text else 1
    scales = np.float32(0.01) if one_scale else (0.005 + 0.01 * generator.random(16)).astype(np.float32)
    held: dict[str, Any] = {
        "w": generator.integers(-127, 128, shape).astype(np.int8), "ws": scales,
        "wz": np.full(np.shape(scales), weight_zero, np.int8), "s": np.float32(STEP), "z": np.array(zero, kind),
        "c": generator.standard_normal((16, 1, 1) if spatial else 16).astype(np.float32),
    }  # fmt: skip
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text.format(axis=axis)}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in held.items())
    return Model.from_proto(proto)


def by_hand(model: Model, x: np.ndarray) -> np.ndarray:
    """y in float64, of the sums of integers; what is padded is zero."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.to_proto().graph.initializer}
    ends, zero = np.iinfo(held["z"].dtype), int(held["z"])
    codes = np.clip(np.rint(x / np.float32(STEP)) + zero, ends.min, ends.max).astype(np.int64) - zero
    weight = held["w"].astype(np.int64) - int(held["wz"].reshape(-1)[0])
    if x.ndim == 2:
        sums = codes @ (weight if weight.shape[0] == 24 else weight.T)
        return np.asarray(sums * (STEP * held["ws"].astype(np.float64)) + held["c"])
    if any(node.op_type == "Conv" and len(node.attribute) == 2 for node in model.to_proto().graph.node):
        codes = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.einsum("bchw,oc->bohw", codes, weight[..., 0, 0])
    return np.asarray(sums * (STEP * held["ws"].astype(np.float64)).reshape(-1, 1, 1) + held["c"])


def folded(model: Model) -> int:
    graph = ir.read(model.to_bytes())
    from edgerun.targets import _openvino_fq as fq

    ops = ir.by_kind(graph)
    fq.fuse(ops)
    return zeros.fold(ops)


@pytest.mark.parametrize(
    ("text", "options", "count"),
    [
        (DENSE, {"zero": 90}, 1),
        (DENSE, {"zero": 255}, 1),
        (DENSE, {"zero": 90, "one_scale": True}, 1),
        (DENSE, {"zero": -38, "kind": "int8"}, 1),
        (GEMM, {"zero": 90}, 0),  # whose bias is computed, as it is read
        (POINT, {"zero": 90}, 1),
        (TWICE, {"zero": 90}, 1),
        (PADDED, {"zero": 90}, 0),  # what is padded is zero, not the zero point
        (SHARED, {"zero": 90}, 0),
        (BARE, {"zero": 90}, 0),
        (DENSE, {"zero": 90, "weight_zero": 3}, 0),
        (DENSE, {"zero": 0}, 0),
        (DENSE, {"zero": 128}, 0),  # int8, in OpenVINO's hands
        (DENSE, {"zero": 0, "kind": "int8"}, 0),
    ],
    ids=["dense", "all below", "one scale", "int8", "gemm", "point", "twice", "padded", "shared", "no bias",
         "weight zero", "at zero", "middle", "middle of int8"],
)  # fmt: skip
def test_sums_are_the_same(text: str, options: dict[str, Any], count: int) -> None:
    model = made(text, **options)
    assert folded(model) == count
    x = np.random.default_rng(1).normal(0.5, 1.5, (7, 24, 5, 5) if ",5,5]" in text else (7, 24)).astype(np.float32)
    wanted = by_hand(model, x)
    if text == BARE:
        wanted = wanted - numpy_helper.to_array(model.to_proto().graph.initializer[-1])
    engine = edgerun.compile(model, "openvino", ONE)
    for opened in (model.to_bytes(), engine):
        with edgerun.load(opened, "openvino", ONE) as session:
            found = session.run({"x": x})
        for name in ("y", "o") if text == TWICE else ("y",):
            np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        if text == SHARED:
            np.testing.assert_allclose(found["o"], np.maximum(x, 0).clip(0, 165 * STEP), rtol=0, atol=0.51 * STEP)
