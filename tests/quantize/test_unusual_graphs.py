"""Graphs that are legal and rare: each keeps its door, loads, and stays near the float model, or is refused clearly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgerun.errors import EdgerunError, Unsupported
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.verbs.compress import compress

PLANE, VECTOR = (16, 8, 6, 6), (16, 8)
X: dict[tuple[int, ...], np.ndarray] = {
    shape: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in (PLANE, VECTOR, (8, 8))
}

SAME, OPEN = "(float[n,8,6,6] x) => (float[n,8,6,6] y)", "(float[n,8,h,v] x) => (float[n,8,h,v] y)"
FLAT, SQUARE = "(float[n,8] x) => (float[n,8] y)", "(float[8,8] x) => (float[8,8] y)"
# door, graph, shape of x
GRAPHS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "a dynamic picture that ends in Relu": (OPEN, "a = Conv(x, w) y = Relu(a)", PLANE),
    "a dynamic picture that ends in a norm": (
        OPEN, "a = Conv(x, w) y = BatchNormalization(a, g, o, m, v)", PLANE,
    ),
    "an output of vague shape": ("(float[n,8,6,6] x) => (float[n,c,h,v] y)", "a = Conv(x, w) y = Relu(a)", PLANE),
    "an input that is an output": (
        "(float[n,8,6,6] x) => (float[n,8,6,6] y, float[n,8,6,6] x)", "y = Conv(x, w)", PLANE,
    ),
    "a weight that is an output": (
        "(float[n,8,6,6] x) => (float[n,8,6,6] y, float[8,8,1,1] w)", "y = Conv(x, w)", PLANE,
    ),
    "a constant output": (
        "(float[n,8,6,6] x) => (float[n,8,6,6] y, float two)", "y = Conv(x, w) two = Add(six, six)", PLANE,
    ),
    "every value an output": (
        "(float[n,8,6,6] x) => (float[n,8,6,6] a, float[n,8,6,6] r, float[n,8,6,6] y)",
        "a = Conv(x, w, b) r = Relu(a) y = Conv(r, w)", PLANE,
    ),
    "caps that differ by channel": (
        SAME, "a = Conv(x, w) r = Relu(a) k = Min(r, caps) y = Conv(k, w)", PLANE,
    ),
    "a Min of three": (
        SAME, "a = Conv(x, w) r = Relu(a) k = Min(r, six, caps) y = Conv(k, w)", PLANE,
    ),
    "PRelu": (SAME, "a = Conv(x, w) r = PRelu(a, slope) y = Conv(r, w)", PLANE),
    "pieces of a Split": (
        SAME,
        "a = Conv(x, w) p, q = Split<axis=1>(a) c = Concat<axis=1>(q, p) r = Relu(c) y = Conv(r, w)", PLANE,
    ),
    "pooling with indices": (
        "(float[n,8,6,6] x) => (float[n,8,3,3] y, int64[n,8,3,3] i)",
        "a = Conv(x, w) p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) y = Conv(p, w)", PLANE,
    ),
    "half precision inside": (
        SAME,
        "a = Conv(x, w) h = Cast<to=10>(a) r = Relu(h) e = Cast<to=1>(r) y = Conv(e, w)", PLANE,
    ),
    "a branch reads a layer": (
        SAME,
        "a = Conv(x, w) t = ReduceMax<keepdims=0>(x) k = Greater(t, zero) y = If(k) <"
        "then_branch = yes () => (float[n,8,6,6] p) { p = Relu(a) },"
        "else_branch = no () => (float[n,8,6,6] q) { q = Neg(x) }>", PLANE,
    ),
    "a branch adds the bias": (
        FLAT,
        "a = MatMul(x, f) t = ReduceMax<keepdims=0>(x) k = Greater(t, zero) y = If(k) <"
        "then_branch = yes () => (float[n,8] p) { p = Add(a, b) },"
        "else_branch = no () => (float[n,8] q) { q = Neg(x) }>", VECTOR,
    ),
    "a norm behind which channels move": (
        SQUARE,
        "r = Relu(x) k = BatchNormalization(r, g, o, m, v) t = Transpose<perm=[1,0]>(k) y = Gemm(t, f)", (8, 8),
    ),
    "a matrix in place of a bias": (
        SQUARE, "a = Gemm(x, f, matrix) r = Relu(a) y = Gemm(r, f, b)", (8, 8),
    ),
    "a column in place of a bias": (
        SQUARE, "a = Gemm(x, f, column) r = Relu(a) y = Gemm(r, f, b)", (8, 8),
    ),
    "a row as a bias": (FLAT, "a = Gemm(x, f, row) r = Relu(a) y = Gemm(r, f, b)", VECTOR),
    "a bias that widens": (FLAT, "a = MatMul(x, thin) y = Add(a, b)", VECTOR),
}  # fmt: skip


@pytest.fixture
def parts(weights: Any, norm: Any) -> dict[str, np.ndarray]:
    numbers = {"zero": 0.0, "six": 6.0}
    return {
        "w": weights(1, 8, 8, 1, 1), "f": weights(2, 8, 8), "thin": weights(3, 8, 1), "matrix": weights(4, 8, 8),
        "column": weights(5, 8, 1), "row": weights(6, 1, 8), "b": weights(7, 8), "slope": np.full((8, 1, 1), 0.2, "f"),
        "caps": np.array([0.1, 0.3, *[9] * 6], np.float32).reshape(8, 1, 1), **norm(8, 8),
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
    }  # fmt: skip


def built(net: Any, parts: dict[str, np.ndarray], door: str, text: str) -> Model:
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    taken = {name for name, array in parts.items() if name in words}
    found: Model = net(f"{door} {{ {text} }}", **{name: parts[name] for name in taken})
    return found


@pytest.mark.parametrize("case", GRAPHS)
def test_result(net: Any, evaluate: Any, parts: dict[str, np.ndarray], case: str) -> None:
    """The same door, a valid graph, and every output 20 dB or more from the float model's (integers: equal to 90 %)."""
    door, text, shape = GRAPHS[case]
    model, feeds = built(net, parts, door, text), {"x": X[shape]}
    result = compress(model, calibration=feeds, ranges="minmax")
    assert (result.inputs, result.outputs) == (model.inputs, model.outputs)
    onnx.checker.check_model(result.to_proto(), full_check=True)
    for want, got in zip(evaluate(model, feeds), evaluate(result, feeds), strict=True):
        assert want.dtype == got.dtype and want.shape == got.shape
        if want.dtype.kind == "f":
            assert sqnr_db(want, got) > 20
        else:
            assert (want == got).mean() > 0.9


COUNTED = "(float[n,8] x) => (float[n,8] y, int64[two,k] places)", "a = MatMul(x, f) r = Relu(a) y = MatMul(r, f)"


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16_b32", "w8a8_dynamic"])
def test_an_output_of_a_size_that_the_data_decide(
    net: Any, evaluate: Any, parts: dict[str, np.ndarray], scheme: str
) -> None:
    """How many numbers lie above zero is another after rounding: the other output is what the model is judged by."""
    door, text = COUNTED
    x = np.random.default_rng(2).standard_normal((200, 8)).astype(np.float32)
    model = built(net, parts, door, f"{text} s = Relu(y) places = NonZero(s)")
    result = compress(model, scheme=scheme, calibration={"x": x})
    assert result.outputs == model.outputs
    (want, float_places), (got, places) = (evaluate(each, {"x": x}) for each in (model, result))
    np.testing.assert_array_equal(places, np.nonzero(np.maximum(got, 0)))
    assert places.shape != float_places.shape
    assert result.history[-1].options["calibration SQNR (dB)"] == pytest.approx(
        sqnr_db(want, got),
        abs=4,  # of some of the samples; a scale that is found while it runs is one for all that run
    )


def test_nothing_but_an_output_of_a_size_that_the_data_decide(net: Any, parts: dict[str, np.ndarray]) -> None:
    _, text = COUNTED
    x = np.random.default_rng(2).standard_normal((200, 8)).astype(np.float32)
    model = built(net, parts, "(float[n,8] x) => (int64[two,k] places)", f"{text} s = Relu(y) places = NonZero(s)")
    with pytest.raises(Unsupported, match="'places' has depends on the data(?s:.*)add an output of a fixed size"):
        compress(model, calibration={"x": x})


@pytest.mark.parametrize("dead", [[3, 4, 5], list(range(8))])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_channels_without_weights_keep_their_bias(
    net: Any, evaluate: Any, weights: Any, dead: list[int], target: str
) -> None:
    """Raw pixels 0..255 make coarse input steps; a channel that is only a bias must not be rounded to them."""
    weight = weights(1, 8, 8, 1, 1) * np.float32(0.001)
    weight[dead] = 0
    model = net("(float[n,8,6,6] x) => (float[n,8,6,6] y) { y = Conv(x, w, b) }",
                w=weight, b=np.linspace(-0.5, 0.5, 8).astype(np.float32))  # fmt: skip
    feeds = {"x": np.random.default_rng(1).uniform(0, 255, PLANE).astype(np.float32)}
    result = compress(model, target=target, calibration=feeds)
    assert sqnr_db(evaluate(model, feeds)[0], evaluate(result, feeds)[0]) > 40


def test_a_single_sample_without_a_batch_axis(net: Any, evaluate: Any, weights: Any) -> None:
    model = net("(float[8] x) => (float[6] y) { a = MatMul(x, f) y = Add(a, b) }", f=weights(1, 8, 6), b=weights(2, 6))
    row = {"x": np.random.default_rng(1).standard_normal(8).astype(np.float32)}
    result = compress(model, calibration=row, ranges="minmax")
    assert sqnr_db(evaluate(model, row)[0], evaluate(result, row)[0]) > 25


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_precisions_are_refused(weights: Any, dtype: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weight = onnx.numpy_helper.from_array(weights(1, 8, 8).astype(kind), "w")
    door = [helper.make_tensor_value_info(name, dtype, ["n", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w"], ["y"])], "g", door[:1], door[1:], [weight])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(Unsupported, match="float32"):
        compress(model, calibration={"x": X[VECTOR].astype(kind)})


def test_only_strings_come_out(weights: Any) -> None:
    """A classifier that answers with names gives nothing to compare; the message says what to do."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["c"]), helper.make_node("ArgMax", ["c"], ["i"], axis=1, keepdims=0),
             helper.make_node("Gather", ["names", "i"], ["y"])]  # fmt: skip
    names = onnx.numpy_helper.from_array(np.array([f"class {i}" for i in range(8)], object), "names")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
        [onnx.numpy_helper.from_array(weights(1, 8, 8), "w"), names],
    )  # fmt: skip
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    with pytest.raises(Unsupported, match="add the scores as an output"):
        compress(model, calibration={"x": X[VECTOR]})


def test_keeping_what_is_never_quantized_is_refused(net: Any, parts: dict[str, np.ndarray]) -> None:
    model = built(net, parts, SAME, "a = Conv(x, w) r = Relu(a) y = Conv(r, w)")
    with pytest.raises(EdgerunError, match="no effect"):
        compress(model, calibration={"x": X[PLANE]}, keep_float=["r"])
