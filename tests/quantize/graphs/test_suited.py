"""What is rewritten for ONNX Runtime: blocks of channels, earlier scales and rounding, stacked upsampling. The model
without it is the oracle."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest

from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize import diagnosis, fold
from edgerun.quantize.diagnosis import trials
from edgerun.quantize.graphs import blocked, early, edit, factored, subpixel
from edgerun.verbs.compress import compress
from edgerun.verbs.why_wrong import opened_here

X = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
CONV = "Conv<kernel_shape = [3,3], pads = [1,1,1,1]>"
NEAREST = 'Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">'
SCALES = np.array([1, 1, 2, 2], np.float32)


def shaped(model: Model) -> Any:
    """A clone's graph with all shapes."""
    made = model.clone()
    fold.infer_shapes(made)
    return made


def same(evaluate: Any, before: Model, after: Any, db: float = 110.0) -> None:
    feeds = {"x": X}
    for want, got in zip(evaluate(before, feeds), evaluate(Model.of(after), feeds), strict=True):
        assert want.shape == got.shape and sqnr_db(want, got) > db


@pytest.fixture
def affine(net: Any, weights: Any) -> Model:
    made: Model = net(
        f"""(float[n,3,16,16] x) => (float[n,8,16,16] y) {{
          c1 = {CONV}(x, w1, b1)  s1 = HardSwish(c1)  m1 = Mul(half, s1)  a1 = Add(m1, t)
          y = {CONV}(a1, w2, b2)
        }}""",
        w1=weights(1, 16, 3, 3, 3), b1=weights(2, 16), w2=weights(3, 8, 16, 3, 3), b2=weights(4, 8),
        half=np.array(0.5, np.float32), t=weights(5, 1, 16, 1, 1),
    )  # fmt: skip
    return made


def reorders(model: Model, folder: Path) -> int:
    """How often ONNX Runtime puts a tensor into its blocks or back."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that such a file is for this CPU alone
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    made = onnx.load(options.optimized_model_filepath)
    return sum(node.op_type in ("ReorderInput", "ReorderOutput") for node in made.graph.node)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="blocks of channels are for x86")
def test_sums_with_constants_stay_in_blocks(affine: Model, evaluate: Any, ops: Any, tmp_path: Path) -> None:
    after = shaped(affine)
    assert blocked.keep(after.graph) == 1
    same(evaluate, affine, after)
    assert ops(Model.of(after)) == {"Conv": 2, "HardSwish": 1, "BatchNormalization": 1}
    assert (reorders(affine, tmp_path), reorders(Model.of(after), tmp_path)) == (3, 1)


@pytest.mark.parametrize("change", ["no Add", "read in order", "other channels", "a batch of constants"])
def test_what_gains_nothing_stays(net: Any, weights: Any, change: str) -> None:
    step = "a1 = Mul(s1, t)" if change == "no Add" else "a1 = Add(s1, t)"
    last = "y = Softmax<axis = 1>(a1)" if change == "read in order" else f"y = {CONV}(a1, w2)"
    shapes = {"other channels": (1, 1, 16, 16), "a batch of constants": (2, 16, 1, 1)}
    t = weights(5, *shapes.get(change, (1, 16, 1, 1)))
    outputs = 16 if change == "read in order" else 8
    model = net(
        f"(float[n,3,16,16] x) => (float[n,{outputs},16,16] y) {{ c1 = {CONV}(x, w1) s1 = Relu(c1) {step} {last} }}",
        w1=weights(1, 16, 3, 3, 3), t=t, **({} if outputs == 16 else {"w2": weights(3, 8, 16, 3, 3)}),
    )  # fmt: skip
    assert blocked.keep(shaped(model).graph) == 0


PYRAMID = f"""(float[n,3,16,16] x) => (float[n,4,32,32] y) {{
  a = {CONV}(x, wa)
  ga = GlobalAveragePool(a)  ha = Conv(ga, wg)  sa = HardSigmoid(ha)  va = Mul(a, sa)
  up = {NEAREST}(va, , scales)
  b0 = {NEAREST}(x, , scales)
  b = Conv(b0, wb)
  gb = GlobalAveragePool(b)  hb = Conv(gb, wg)  sb = HardSigmoid(hb)  vb = Mul(b, sb)
  SUM
  q = QuantizeLinear(e, s, z)  d = DequantizeLinear(q, s, z)
  y = Conv(d, wy)
}}"""
JOINS = {
    "Add": "j = Add(vb, up)  e = Mul(j, f)",
    "Concat": "j = Concat<axis = 1>(vb, up)  e = Mul(j, f)",
}


@pytest.fixture(params=JOINS)
def pyramid(net: Any, weights: Any, request: Any) -> Model:
    """Two levels, each with a gate, of which one is repeated; joined, evened out and rounded."""
    channels = 6 if request.param == "Add" else 12
    made: Model = net(
        PYRAMID.replace("SUM", JOINS[request.param]),
        wa=weights(1, 6, 3, 3, 3), wb=weights(2, 6, 3, 1, 1), wg=weights(3, 6, 6, 1, 1), scales=SCALES,
        f=np.abs(weights(4, channels, 1, 1)) + 0.5, s=np.array(0.05, np.float32), z=np.array(128, np.uint8),
        wy=weights(5, 4, channels, 1, 1),
    )  # fmt: skip
    return made


def test_scales_and_rounding_move_to_where_there_is_less(pyramid: Model, evaluate: Any, ops: Any) -> None:
    after = shaped(pyramid)
    moved = early.move(after.graph)
    edit.drop_unused(after)
    made = Model.of(after)
    same(evaluate, pyramid, after, 45)  # a tie that falls to the other side is a step of the grid
    large = [node for node in after.graph if node.op_type == "Mul" and list(node.outputs[0].shape)[2:] == [32, 32]]
    assert len(large) == 1  # by b's gate, which has taken the factors
    joined = ops(pyramid)["QuantizeLinear"] == 1 and any(node.op_type == "Concat" for node in after.graph)
    assert ops(made)["QuantizeLinear"] == (4 if joined else 1) and moved == (3 if joined else 2)
    means = {str(n.inputs[0].name) for n in after.graph if n.op_type == "GlobalAveragePool"}
    assert means == {"a", "b0"}  # b's, of six channels, is of what it is computed from, of three


def test_rounding_before_repeating_is_exact(net: Any, weights: Any, evaluate: Any, ops: Any) -> None:
    model = net(
        f"""(float[n,3,16,16] x) => (float[n,4,32,32] y) {{
          a = {CONV}(x, wa)  up = {NEAREST}(a, , scales)  xx = {NEAREST}(x, , scales)  b = {CONV}(xx, wb)
          j = Concat<axis = 1>(b, up)  q = QuantizeLinear(j, s, z)  d = DequantizeLinear(q, s, z)  y = Conv(d, wy)
        }}""",
        wa=weights(1, 6, 3, 3, 3), wb=weights(2, 6, 3, 3, 3), scales=SCALES, s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8), wy=weights(3, 4, 12, 1, 1),
    )  # fmt: skip
    after = shaped(model)
    assert early.move(after.graph) == 1
    assert ops(Model.of(after))["QuantizeLinear"] == 4  # of both levels, of what is repeated, and the one behind
    (want,), (got,) = evaluate(model, {"x": X}), evaluate(Model.of(after), {"x": X})
    np.testing.assert_array_equal(got, want)


def test_a_scaled_value_that_is_read_otherwise_too_stays(net: Any, weights: Any, evaluate: Any) -> None:
    model = net(
        f"""(float[n,3,16,16] x) => (float[n,6,16,16] y) {{
          a = {CONV}(x, w)  e = Mul(a, f)  g = GlobalAveragePool(e)  s = Sigmoid(g)  v = Mul(e, s)  y = Add(v, e)
        }}""",
        w=weights(1, 6, 3, 3, 3), f=np.abs(weights(2, 6, 1, 1)) + 0.5,
    )  # fmt: skip
    after = shaped(model)
    assert early.move(after.graph) == 0
    same(evaluate, model, after, 140)


def test_what_is_joined_with_integers_is_rounded_before(
    net: Any, weights: Any, evaluate: Any, fused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A U-Net's level, whose ConvTranspose has no integer kernel: the Concat is one on integers, and but for what lies
    between two steps nothing differs from rounding what it gives."""
    model = net(
        """(float[n,3,16,16] x) => (float[n,4,16,16] y) {
          a = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(x, wa)  skip = Relu(a)
          p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(skip)
          b = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(p, wb)  r = Relu(b)
          up = ConvTranspose<kernel_shape = [2,2], strides = [2,2]>(r, wu)
          j = Concat<axis = 1>(skip, up)  y = Conv<kernel_shape = [3,3], pads = [1,1,1,1]>(j, wy)
        }""",
        wa=weights(1, 8, 3, 3, 3), wb=weights(2, 16, 8, 3, 3), wu=weights(3, 16, 8, 2, 2), wy=weights(4, 4, 16, 3, 3),
    )  # fmt: skip
    x = np.random.default_rng(1).standard_normal((40, 3, 16, 16)).astype(np.float32)
    small = compress(model, target="onnxruntime", calibration={"x": x[:32]}, placement="rules")
    found = fused(small)
    assert found["QLinearConcat"] == 1 and "Concat" not in found
    monkeypatch.setattr(early, "move", lambda graph: 0)
    behind = compress(model, target="onnxruntime", calibration={"x": x[:32]}, placement="rules")
    assert "Concat" in fused(behind)
    (want,), (got,), (rounded,) = (evaluate(each, {"x": x[32:]}) for each in (model, small, behind))
    assert sqnr_db(want, got) > sqnr_db(want, rounded) - 0.5


def upsampling(net: Any, weights: Any, outputs: int, **change: Any) -> Model:
    """Two ConvTransposes with activations, the second to `outputs` channels."""
    told = {"strides": "[2,2]", "extra": "", **change}
    made: Model = net(
        f"""(float[n,3,16,16] x) => (float[n,{outputs},h,w] y) {{
          c = {CONV}(x, w0)  r = Relu(c)
          t = ConvTranspose<strides = [2,2]>(r, w1, b1)  u = LeakyRelu<alpha = 0.1>(t)
          v = ConvTranspose<strides = {told["strides"]}{told["extra"]}>(u, w2, b2)  y = Sigmoid(v)
        }}""",
        w0=weights(1, 40, 3, 3, 3), w1=weights(2, 40, 24, 2, 2), b1=weights(3, 24), w2=weights(4, 24, outputs, 2, 2),
        b2=weights(5, outputs),
    )  # fmt: skip
    return made


@pytest.mark.parametrize("outputs", [1, 2])
def test_stacked_upsampling_is_computed_below(net: Any, weights: Any, evaluate: Any, ops: Any, outputs: int) -> None:
    model = upsampling(net, weights, outputs)
    after = shaped(model)
    assert subpixel.stack(after.graph) == 1
    same(evaluate, model, after)
    assert ops(Model.of(after)) == {"Conv": 3, "Relu": 1, "LeakyRelu": 1, "Sigmoid": 1, "DepthToSpace": 1}


@pytest.mark.parametrize(
    ("outputs", "change"),
    [(3, {}), (1, {"strides": "[3,3]"}), (1, {"extra": ", pads = [1,1,1,1]"}), (1, {"extra": ", dilations = [2,2]"})],
)
def test_other_upsampling_stays(net: Any, weights: Any, outputs: int, change: dict[str, str]) -> None:
    """More products than before, tiles that leave gaps or overlap."""
    assert subpixel.stack(shaped(upsampling(net, weights, outputs, **change)).graph) == 0


def test_a_compressed_pyramid_is_the_same_and_why_wrong_sees_through_it(
    net: Any, weights: Any, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `compress` for ONNX Runtime: with the rewrites it computes what it does without, and with nothing rounded
    what the float model does."""
    loud = np.ones((24, 1, 1, 1), np.float32)
    loud[5] = 30
    model = net(
        f"""(float[n,3,16,16] x) => (float[n,8,32,32] y) {{
          a = {CONV}(x, wa)  sw = HardSwish(a)  t = Add(sw, ta)
          c = Conv(t, wc, bc)  gc = GlobalAveragePool(c)  hc = Conv(gc, wg)  sc = HardSigmoid(hc)  vc = Mul(c, sc)
          up = {NEAREST}(vc, , scales)
          b0 = {NEAREST}(x, , scales)  b1 = {CONV}(b0, wb)  b2 = HardSwish(b1)
          j = Concat<axis = 1>(b2, up)
          k = {CONV}(j, wk, bk)  r = Relu(k)  y = Conv(r, wy)
        }}""",
        wa=weights(1, 16, 3, 3, 3), ta=weights(2, 1, 16, 1, 1), wc=weights(3, 24, 16, 1, 1) * loud, bc=weights(4, 24),
        wg=weights(5, 24, 24, 1, 1), scales=SCALES, wb=weights(6, 24, 3, 3, 3) * loud, bk=weights(7, 64),
        wk=weights(8, 64, 48, 3, 3), wy=weights(9, 8, 64, 1, 1),
    )  # fmt: skip
    rng = np.random.default_rng(3)
    data = {"x": rng.standard_normal((32, 3, 16, 16)).astype(np.float32)}
    after = compress(model, target="onnxruntime", calibration=data)
    for module, name in ((early, "move"), (subpixel, "stack"), (blocked, "keep")):
        monkeypatch.setattr(module, name, lambda graph: 0)
    before = compress(model, target="onnxruntime", calibration=data)
    assert len(list(after.ir.graph)) != len(list(before.ir.graph))
    (want,), (plain,), (got,) = (evaluate(each, data) for each in (model, before, after))
    assert abs(sqnr_db(want, plain) - sqnr_db(want, got)) < 0.5
    known = {str(node.name) for node in model.ir.graph}
    assert len(factored.evened(after.ir.graph, known)) == len(factored.evened(before.ir.graph, known)) > 0
    judged = trials.collect(opened_here, model.ir, [data], ["y"], 32, lambda *_: None)
    told = diagnosis.diagnose(after.ir, model.ir, judged, 3, lambda *_: None)
    assert told.counterpart_db > 90 and not told.notes
