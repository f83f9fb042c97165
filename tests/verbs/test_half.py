"""Models in half precision: the self-check passes what rounding leaves, and refuses a few steps more. Numpy's float64
is the judge."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import edgerun
from edgerun import registry
from edgerun.errors import GateFailed
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.runtime import Engine, Options
from edgerun.verbs import work

ONE = Options(1)
NUMPY = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
STEP = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # of 1
RUN = [(target, dtype) for target, dtype in
       (("openvino", "bfloat16"), ("openvino", "float16"), ("onnxruntime", "float16"))
       if registry.target(target, usable=False).available() is None]  # fmt: skip
# Rounded at each of nine operators by the evaluator, and less often by the runtimes.
BODY = "e = Exp(x) n = ReduceSum(e, k) s = Div(e, n) c = Cos(x) p = Mul(s, c) q = Sin(p) r = Tanh(q) t = Mul(r, two)"
CHAIN = "half ({0}[n,64] x) => ({0}[n,64] y) <int64[1] k = {{1}}> {{ {1} y = Sigmoid(t) }}"


def _model(text: str, **constants: np.ndarray) -> Model:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 22]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return Model.from_proto(proto)


def _chain(dtype: str) -> Model:
    return _model(CHAIN.format(dtype, BODY), two=np.array(2, NUMPY[dtype]))


def _feeds(dtype: str, *names: str) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(5)
    return [{name: random.standard_normal((3, 64)).astype(NUMPY[dtype]) for name in names}]


def _truth(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    t = 2 * np.tanh(np.sin(e / e.sum(1, keepdims=True) * np.cos(x)))
    return np.asarray(1 / (1 + np.exp(-t)))


def _off(monkeypatch: pytest.MonkeyPatch, target: str, factor: float) -> None:
    """Let the target compile another model: the last two is `factor` times that."""
    module = registry.target(target)
    honest = module.compile

    def wrong(model: Model, options: Options) -> Engine:
        other = model.to_proto()
        kind = NUMPY.get(TensorProto.DataType.Name(other.graph.output[0].type.tensor_type.elem_type).lower())
        if kind is None:  # the judge's own form
            return honest(model, options)
        at = next(index for index, node in enumerate(other.graph.node) if node.output[0] == "y")
        other.graph.node[at].output[0] = "before"
        other.graph.node.append(helper.make_node("Mul", ["before", "factor"], ["y"]))
        other.graph.initializer.append(numpy_helper.from_array(np.array(factor, kind), "factor"))
        return honest(Model.from_proto(other), options)

    monkeypatch.setattr(module, "compile", wrong)


@pytest.mark.parametrize(("target", "dtype"), RUN)
def test_rounding_passes(target: str, dtype: str) -> None:
    """Whatever the evaluator rounds on its way, the engine is within two steps of what is exact."""
    feeds = _feeds(dtype, "x")
    engine = edgerun.compile(_chain(dtype), target, ONE, feeds=feeds)
    with edgerun.load(engine, options=ONE) as session:
        got = session.run(feeds[0])["y"].astype(np.float64)
    assert np.abs(got - _truth(feeds[0]["x"].astype(np.float64))).max() <= 2 * STEP[dtype]


@pytest.mark.parametrize(("target", "dtype"), RUN)
def test_a_few_steps_more_are_refused(target: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, of what rounds nine times."""
    _off(monkeypatch, target, 1 + 4 * STEP[dtype])
    with pytest.raises(GateFailed, match="does not compute what the model says"):
        edgerun.compile(_chain(dtype), target, ONE, feeds=_feeds(dtype, "x"))


@pytest.mark.skipif("openvino" not in dict(RUN), reason="needs openvino, which has bfloat16")
def test_one_rounding_has_no_step_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model itself rounds once, an engine that is a step off is not as near to what is exact."""
    model = _model("one (bfloat16[n,64] x, bfloat16[n,64] z) => (bfloat16[n,64] y) { y = Mul(x, z) }")
    assert edgerun.compile(model, "openvino", ONE, feeds=_feeds("bfloat16", "x", "z")).check is not None
    _off(monkeypatch, "openvino", 1 + 2.0**-7)
    with pytest.raises(GateFailed, match="relative error 0.001"):
        edgerun.compile(model, "openvino", ONE, feeds=_feeds("bfloat16", "x", "z"))


def test_nothing_is_rounded_in_the_judge() -> None:
    """Constants, Casts, nodes in branches and loops: all in float32, with the values that the file has."""
    model = _model(
        """net (bfloat16[n,4] x, bool c) => (bfloat16[n,4] y) {
        h = Cast<to = 10>(x) t = Constant<value_float = 0.3>() k = Cast<to = 10>(t) m = Mul(h, k) b = Cast<to = 16>(m)
        y = If(c)<then_branch = a () => (bfloat16[n,4] p) { p = Mul(b, w) },
                  else_branch = o () => (bfloat16[n,4] q) { e = CastLike(k, w) q = Add(b, e) }> }""",
        w=np.array([1.5, 0.1, 3.0, -2.0], NUMPY["bfloat16"]),
    )
    before = model.to_bytes()
    plain = work.unrounded(model)
    assert model.to_bytes() == before, "it is a copy"
    assert plain is not None and [spec.dtype for spec in (*plain.inputs, *plain.outputs)] == [
        "float32",
        "bool",
        "float32",
    ]
    x = np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32)
    w = np.array([1.5, 0.1, 3.0, -2.0], ml_dtypes.bfloat16).astype(np.float64)
    k = float(np.float32(0.3))
    with edgerun.load(plain.to_bytes(), "reference") as session:
        got = {c: session.run({"x": x, "c": np.array(c)})["y"] for c in (True, False)}
    assert sqnr_db(x * k * w, got[True]) > 120 and sqnr_db(x * k + k, got[False]) > 120
    assert not work.halved(plain) and work.unrounded(plain) is None


def test_quantizers_have_other_steps() -> None:
    model = _model(
        """q (float16[n,4] x) => (float16[n,4] y) {
        c = QuantizeLinear(x, s, z) y = DequantizeLinear(c, s, z) }""",
        s=np.array(0.1, np.float16),
        z=np.array(7, np.uint8),
    )
    assert not work.halved(model) and work.unrounded(model) is None
