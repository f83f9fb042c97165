"""Quantizers before a Transpose: where rounding joins an elementwise op, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import registry
from edgerun.metrics import sqnr_db
from edgerun.quantize.graphs import placement
from edgerun.runtime import Options
from tests.quantize.graphs.test_placement import RULES

JOINS = replace(RULES, joins_rounding=True)
DOOR = "(float[n,8,6,4] x) => (float[n,8,p,q] y)"
TURNED = "b = Transpose<perm=[0,3,1,2]>(%s) c = Reshape(b, shape) y = Conv(c, w)"
CASES = {
    "behind a sum": (JOINS, "a = Tanh(x) %s" % (TURNED % "a"), {"a", "b", "c"}),
    "a target that does not join it": (RULES, "a = Tanh(x) %s" % (TURNED % "a"), {"c"}),
    "behind a product": (JOINS, "a = MatMul(x, x) %s" % (TURNED % "a"), {"c"}),
    "with another reader": (JOINS, "a = Tanh(x) %s z = Relu(a)" % (TURNED % "a"), {"c"}),
    "views alone": (JOINS, "a = Tanh(x) c = Reshape(a, shape) y = Conv(c, w)", {"c"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_where_it_stands(net: Any, case: str) -> None:
    rules, text, wanted = CASES[case]
    model = net(f"{DOOR} {{ {text} }}", shape=np.array([0, 8, 4, 6]), w=np.ones((8, 8, 1, 1), np.float32))
    found = {str(value.name) for value in placement.plan(model.ir.graph, rules).points}
    assert found & {"a", "b", "c"} == wanted


def test_it_computes_the_same_on_openvino(net: Any) -> None:
    """One grid for all numbers rounds them alike on either side of what moves them; 30 dB to float and more."""
    rng = np.random.default_rng(0)
    text = "(float[n,8,6,4] x) => (float[n,16,8,6] y) { a = Tanh(x) b = Transpose<perm=[0,3,1,2]>(a) y = Conv(b, w) }"
    model = net(text, w=(rng.standard_normal((16, 4, 1, 1)) / 2).astype(np.float32))
    data = {"x": rng.standard_normal((40, 8, 6, 4)).astype(np.float32)}
    result = edgerun.compress(model, target="openvino", calibration=data, placement="rules")
    turned = next(node for node in result.ir.graph if node.op_type == "Transpose")
    assert turned.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    outputs = []
    for one, target in ((model, "onnxruntime"), (result, "openvino")):
        with edgerun.load(edgerun.compile(one, target, Options(1)), target) as session:
            outputs.append(session.run(data)["y"])
    assert sqnr_db(*outputs) > 30
    assert registry.target("openvino").quantization().joins_rounding
