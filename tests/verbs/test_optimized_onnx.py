"""Optimized models as `.onnx`: fused for a device, and bound to no CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import edgerun
from edgerun import devices, ort_file
from edgerun.model import Model, Step
from edgerun.runtime import Options
from edgerun.targets import _onnxruntime_ort as ort
from edgerun.targets import onnxruntime as target

ONE = Options(1)
RNG = np.random.default_rng(3)
X = {"x": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)}
ALL = ("--option", "graph_optimization_level=all")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Conv and Relu over 16 channels, which ONNX Runtime lays out for the CPU; in a branch, too; with a history."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[batch,3,8,8] x, bool b) => (float[batch,16,8,8] y, float[n,16,8,8] z) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(c)
            z = If(b)<then_branch = t () => (t) { d = Conv<pads = [1, 1, 1, 1]>(x, w) t = Relu(d) },
                      else_branch = e () => (e) { e = Neg(y) }>
        }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=(16, 3, 3, 3)).astype("f"), "w"))
    Model.from_proto(proto).with_step(Step("a step", "1", {}, "before", "after")).save(tmp_path / "conv.onnx")
    return tmp_path / "conv.onnx"


@pytest.mark.parametrize("device", [None, "raspberry-pi-5"])
def test_it_is_bound_to_no_cpu(tmp_path: Path, cli: Any, model: Path, device: str | None) -> None:
    """Fused as far as it is the same everywhere: ONNX Runtime by itself computes the same of it."""
    made, feeds = tmp_path / "made.onnx", {**X, "b": np.array(True)}
    words = ["compile", model, "-o", made, "--option", "FORMAT=optimized", *(["--device", device] if device else [])]
    ran = cli(*words, "--json")
    assert ran.code == 0 and json.loads(ran.out)["again"] == [], ran.err
    proto = onnx.load(made)
    assert proto.graph.node[0].op_type == "FusedConv" and "nchwc" not in str(proto)
    assert [opset.domain for opset in proto.opset_import] == ["", "com.microsoft"]
    told = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    digest, version = Model.load(model).digest(), target.device()["version"]
    assert told[ort.KEY] == {"level": "extended", "digest": digest, "version": version}
    assert Model.load(made).history == Model.load(model).history
    raw = target._runtime().InferenceSession(str(made), providers=["CPUExecutionProvider"])
    with edgerun.load(model, options=ONE) as plain:
        for got, want in zip(raw.run(None, feeds), plain.run(feeds).values(), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    ran = cli(*words, "--force", *ALL)
    assert ran.code == 3 and "an .onnx does not say for which" in ran.err and "-o NAME.ort" in ran.err


def test_integer_products_are_as_the_device_s_cpu_wants_them(tmp_path: Path, cli: Any) -> None:
    """ONNX Runtime makes integer kernels of int8 activations on ARM; on x86 they become uint8 first."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[n,4] x) => (float[n,4] y)
        <float s = {0.05}, int8 z = {0}, int8[4,4] w = {1,2,3,4,5,6,7,8,9,-1,-2,-3,-4,-5,-6,-7}> {
            q = QuantizeLinear(x, s, z) f = DequantizeLinear(q, s, z) g = DequantizeLinear(w, s, z)
            m = MatMul(f, g) r = QuantizeLinear(m, s, z) y = DequantizeLinear(r, s, z) }"""
    onnx.save(parser.parse_model(text), tmp_path / "q.onnx")
    kinds = {}
    for name in ("raspberry-pi-5", "xeon-avx2"):
        words = ("--target", "onnxruntime", "--device", name, "--option", "FORMAT=optimized")
        ran = cli("compile", tmp_path / "q.onnx", "-o", tmp_path / f"{name}.onnx", *words)
        assert ran.code == 0, ran.err
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        (first,) = (node for node in graph.node if node.op_type == "QuantizeLinear")
        kinds[name] = next(t.data_type for t in graph.initializer if t.name == first.input[2])
        assert "QLinearMatMul" in {node.op_type for node in graph.node}
    assert kinds == {"raspberry-pi-5": onnx.TensorProto.INT8, "xeon-avx2": onnx.TensorProto.UINT8}


def test_an_ort_engine_in_memory_is_for_the_device_too(model: Path) -> None:
    asked = Options(1, {"FORMAT": "ort"})
    engine = edgerun.compile(model, "onnxruntime", asked, device=devices.find("raspberry-pi-5"))
    assert isinstance(engine.payload, bytes) and not ort_file.blocked(engine.payload)
