"""Writing Q/DQ pairs: a dropped activation changes no output, names stay, scales are shared and constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgerun.model import Model
from edgerun.passes import Quantization
from edgerun.quantize import fold
from edgerun.quantize.graphs import placement, qdq
from edgerun.quantize.numerics import grid
from edgerun.quantize.numerics.grid import Grid

RULES = Quantization(
    schemes=("w8a8",), compute=frozenset({"Conv"}), through=frozenset({"MaxPool"}), join=frozenset({"Add"}),
    absorbed=frozenset({"Relu", "Clip", "Min"}),
)  # fmt: skip
DOOR = "(float[n,8,4,4] x) => (float[n,8,p,q] y)"
# Wide enough that every cap and every end of a range is passed.
X = (np.random.default_rng(0).standard_normal((3, 8, 4, 4)) * 9).astype(np.float32)


def written(model: Model, spans: dict[str, tuple[float, float]], dtype: str, *, absorb: bool) -> Model:
    """`model` with pairs at every point; a group's grid spans what `spans` says, else ±20."""
    graph = fold.apply(model.clone())
    plan = placement.plan(graph.graph, RULES)
    grids = {group: grid.asymmetric(*spans.get(group, (-20.0, 20.0)), dtype) for group in plan.groups()}
    if absorb:
        qdq.absorb(graph.graph, plan, grids)
    qdq.insert_points(graph.graph, plan, grids)
    return Model.of(graph)


BETWEEN = {
    "Relu": "r = Relu(a)",
    "Clip": "r = Clip(a, zero, six)",
    "Clip without end": "r = Clip(a, zero)",
    "Min": "k = Relu(a) r = Min(k, six)",
    "Min for each channel": "k = Relu(a) r = Min(k, caps)",
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", BETWEEN)
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 2.0), (0.0, 5.9), (0.0, 6.0), (0.0, 6.02), (0.0, 30.0), (-1.0, 5.0), (-1e-3, 3.0)]
)
def test_dropping_an_activation_changes_no_output(
    net: Any, evaluate: Any, ops: Any, weights: Any, case: str, dtype: str, low: float, high: float
) -> None:
    """Bit for bit the same with the activation and without, whatever range stands behind it."""
    scalars = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    parts = {**scalars, "caps": np.linspace(3, 8, 8).astype(np.float32).reshape(8, 1, 1)}
    used = {name: array for name, array in parts.items() if name in BETWEEN[case]}
    model = net(f"{DOOR} {{ a = Conv(x, w) {BETWEEN[case]} y = Conv(r, w) }}", w=weights(1, 8, 8, 1, 1), **used)
    kept = written(model, {"r": (low, high)}, dtype, absorb=False)
    dropped = written(model, {"r": (low, high)}, dtype, absorb=True)
    np.testing.assert_array_equal(evaluate(dropped, {"x": X})[0], evaluate(kept, {"x": X})[0])
    cap = {"Clip": 6.0, "Min": 6.0, "Min for each channel": 3.0}.get(case, np.inf)
    left = sum(count for op, count in ops(dropped).items() if op in RULES.absorbed)
    assert (left == 0) == (low > -0.005 and high - low <= cap), "dropped exactly when the quantizer does the clipping"


def test_every_reader_reads_the_pair_and_names_stay(net: Any, weights: Any) -> None:
    text = f"{DOOR} {{ a = Conv(x, w) b = Conv(a, w) s = Sigmoid(a) t = Conv(s, w) y = Add(b, t) }}"
    model = net(text.replace("y)", "y, float[n,8,p,q] a)"), w=weights(1, 8, 8, 1, 1))
    result = written(model, {}, "uint8", absorb=True)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    assert [spec.name for spec in result.outputs] == ["y", "a"] and result.inputs == model.inputs
    quantized = {str(n.inputs[0].name) for n in result.ir.graph if n.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    assert len(quantized) == sum(n.op_type == "QuantizeLinear" for n in result.ir.graph)
    for node in result.ir.graph:
        if node.op_type == "QuantizeLinear":
            assert [user.op_type for user, _ in node.outputs[0].uses()] == ["DequantizeLinear"]
        if node.op_type in ("Conv", "Add") and node.inputs[0] is not None:
            assert node.inputs[0].producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]


def test_a_group_shares_its_scale(net: Any, weights: Any) -> None:
    """MaxPool between: its input and its output have the very same scale and zero point."""
    text = f"{DOOR} {{ a = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(a) y = Conv(p, w) }}"
    result = written(net(text, w=weights(1, 8, 8, 1, 1)), {}, "uint8", absorb=True)
    pool = next(node for node in result.ir.graph if node.op_type == "MaxPool")
    before, behind = pool.inputs[0].producer(), pool.outputs[0].consumers()[0]  # type: ignore[union-attr]
    assert before is not None and before.op_type == "DequantizeLinear" and behind.op_type == "QuantizeLinear"
    assert before.inputs[1:] == behind.inputs[1:]


def test_names_that_the_model_has_already(net: Any, evaluate: Any, weights: Any) -> None:
    """Values, weights and nodes named as ours would be: the result is valid and all of them keep their meaning."""
    text = """(float[n,8,4,4] x) => (float[n,8,4,4] y) { a = Conv(x, w) a__quantized = Sigmoid(a)
        a__dequantized = Conv(a__quantized, w) m = Mul(a__dequantized, a__scale) y = Conv(m, w) }"""
    proto = net(text, w=weights(1, 8, 8, 1, 1), a__scale=np.array(3, np.float32)).to_proto()
    for names in [n for node in proto.graph.node for n in (node.input, node.output)]:
        names[:] = [name.replace("__", "/") for name in names]
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("__", "/")
    model = Model.from_proto(proto)
    result = written(model, {}, "uint8", absorb=True)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    x = X / 9
    error = np.abs(evaluate(result, {"x": x})[0] - evaluate(model, {"x": x})[0]).max()
    assert error < 1.0, "steps are 0.16 here"


@pytest.mark.parametrize("shared", [False, True])
def test_weights_and_biases_come_back_as_their_grids_say(net: Any, weights: Any, shared: bool) -> None:
    """Stored as int8 and int32 with one DequantizeLinear each, per channel; two layers may share the float ones."""
    second = "y = Conv(s, w, b)" if shared else "y = Relu(s)"
    model = net(f"{DOOR} {{ a = Conv(x, w, b) s = Sigmoid(a) {second} }}", w=weights(1, 8, 8, 1, 1), b=weights(2, 8))
    weight, bias, step = weights(1, 8, 8, 1, 1), weights(2, 8), np.asarray(0.05, np.float32)
    graph = model.clone()
    layers = [node for node in graph.graph if node.op_type == "Conv"]
    found: Grid = grid.symmetric(grid.channel_bounds(weight, 0), axis=0)
    for node in layers:
        qdq.store_bias(graph.graph, node, bias, step, found)
        qdq.store_weight(graph.graph, [node], found, found.quantize(weight))
    result = Model.of(graph)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    for node in layers:
        pairs = [value.producer() for value in node.inputs[1:] if value is not None]
        stored = [pair.inputs[0].const_value.numpy() for pair in pairs if pair is not None]
        scales = [pair.inputs[1].const_value.numpy() for pair in pairs if pair is not None]
        assert [array.dtype for array in stored] == [np.int8, np.int32]
        assert all(pair is not None and pair.attributes.get_int("axis", -1) == 0 for pair in pairs)
        np.testing.assert_allclose(
            stored[0] * scales[0].reshape(8, 1, 1, 1), weight, atol=0.51 * float(scales[0].max())
        )
        np.testing.assert_allclose(stored[1] * scales[1], bias, atol=0.51 * float(scales[1].max()))
