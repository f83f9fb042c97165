"""A picture's quantizer stands on the picture's own 256 values and rounds nothing; the float model stays the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize import _precision, fold
from edgerun.quantize.graphs import equalize, lattice, placement, qdq
from edgerun.quantize.graphs.edit import constant, set_constant
from edgerun.quantize.numerics import grid
from edgerun.verbs.compress import compress
from edgerun.verbs.making import opened
from edgerun.verbs.why_wrong import why_wrong

FIRST = """(float[n,3,20,20] x) => (float[n,4] y) {
  c1 = Conv<kernel_shape = [5,5], strides = [2,2], pads = [2,1,2,1]>(x, w1, b1)  r1 = Relu(c1)
  p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r1)
  c2 = Conv<kernel_shape = [3,3]>(p, w2, b2)  r2 = Relu(c2)  g = GlobalAveragePool(r2)  y = Flatten(g)
}"""
LAST = FIRST.replace("float[n,3,20,20] x", "float[n,20,20,3] image").replace(
    "  c1 =", "  x = Transpose<perm = [0,3,1,2]>(image)\n  c1 ="
)
CAFFE = np.array([103.939, 116.779, 123.68]), np.ones(3)
TORCH = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
TARGETS = ["onnxruntime", "openvino"]


def network(net: Any, weights: Any, text: str) -> Model:
    arrays = {"w1": weights(1, 32, 3, 5, 5), "b1": weights(2, 32), "w2": weights(3, 4, 32, 3, 3), "b2": weights(4, 4)}
    made: Model = net(text, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    return made


def pictures(model: Model, form: tuple[np.ndarray, np.ndarray], seed: int, noise: float = 0.0) -> dict[str, np.ndarray]:
    """48 smooth ones of 8 bits, (p − m) / s."""
    draw = np.random.default_rng(seed)
    smooth = np.repeat(np.repeat(draw.uniform(-60, 315, (48, 5, 5, 3)), 4, axis=1), 4, axis=2)
    pixels = np.clip(np.round(smooth + draw.normal(0, 12, smooth.shape)), 0, 255)
    values = ((pixels + draw.uniform(-noise, noise, pixels.shape) - form[0]) / form[1]).astype(np.float32)
    name = model.inputs[0].name
    return {name: values if name == "image" else np.ascontiguousarray(values.transpose(0, 3, 1, 2))}


def told(model: Model) -> list[str]:
    found: list[str] = model.history[-1].options.get("inputs on their own grids", [])
    return found


def first(model: Model) -> str:
    """What the first quantizer reads."""
    source = next(node.inputs[0] for node in model.ir.graph if node.op_type == "QuantizeLinear")
    assert source is not None
    return str(source.name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", [FIRST, LAST], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("form", [CAFFE, TORCH], ids=["mean", "mean and deviation"])
def test_nothing_is_rounded_of_a_picture(
    net: Any, weights: Any, evaluate: Any, ops: Any, target: str, text: str, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other pictures: what the first quantizer alone takes from the outputs is over 10 dB less than
    before (what is left is the border's zero, a part of a step off). `why-wrong` sees through it."""
    model = network(net, weights, text)
    seen, fresh = pictures(model, form, 1), pictures(model, form, 2)
    (want,) = evaluate(model, fresh)
    small = compress(model, target=target, calibration=seen, placement="rules")
    assert len(told(small)) == 1
    assert ops(small)["Pad"] == ops(small)["Add"] == 1 and ops(small).get("Mul", 0) == (form is TORCH)
    monkeypatch.setattr(lattice, "sites", lambda graph, plan: [])
    plain = compress(model, target=target, calibration=seen, placement="rules")
    assert not told(plain) and "Pad" not in ops(plain)
    monkeypatch.undo()
    alone = [db for each in (small, plain) for db in first_alone(model, each, fresh, target)]
    assert len(alone) == 2 and alone[0] > alone[1] + 10 and alone[1] < 60, alone
    ours, before = (sqnr_db(want, evaluate(each, fresh)[0]) for each in (small, plain))
    assert ours > before - 0.5 and ours > 35, (ours, before)


def first_alone(model: Any, made: Any, fresh: Any, target: str) -> list[float]:
    """The SQNR with the first quantizer alone, by why-wrong, which finds all else exact."""
    found = why_wrong(model, made, fresh, target=target, limit=32, top=20)
    assert found.counterpart_db > 90
    return [row.alone_db for row in found.rows if row.tensor == first(made)]


BYTES = FIRST.replace("float[n,3,20,20] x", "uint8[n,20,20,3] image").replace(
    "  c1 =", "  f = Cast<to = 1>(image)  t = Transpose<perm = [0,3,1,2]>(f)  m = Mul(t, by)  x = Add(m, more)\n  c1 ="
)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_rounded_of_bytes_that_the_model_takes_itself(
    net: Any, weights: Any, evaluate: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract's arithmetic in the graph: its padding needs the offsets there; the grid is known without data."""
    mean, deviation = (each.reshape(1, 3, 1, 1) for each in TORCH)
    arrays = {"by": 1 / deviation, "more": -mean / deviation, "w1": weights(1, 32, 3, 5, 5), "b1": weights(2, 32)}
    arrays |= {"w2": weights(3, 4, 32, 3, 3), "b2": weights(4, 4)}
    model = net(BYTES, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})
    same = network(net, weights, LAST)
    seen, fresh = (
        {"image": np.round(pictures(same, (np.zeros(3), np.ones(3)), seed)["image"]).astype(np.uint8)}
        for seed in (1, 2)
    )
    (want,) = evaluate(model, fresh)
    small = compress(model, target=target, calibration=seen, placement="rules")
    (name,) = told(small)
    monkeypatch.setattr(lattice, "sites", lambda graph, plan: [])
    plain = compress(model, target=target, calibration=seen, placement="rules")
    monkeypatch.undo()
    alone = [db for each in (small, plain) for db in first_alone(model, each, fresh, target)]
    assert len(alone) == 2 and alone[0] > alone[1] + 10 and alone[1] < 60, (name, alone)
    assert sqnr_db(want, evaluate(small, fresh)[0]) > 35


@pytest.mark.parametrize("target", TARGETS)
def test_one_grid_that_fits_all_channels_is_taken_as_it_is(net: Any, weights: Any, ops: Any, target: str) -> None:
    model = network(net, weights, FIRST)
    small = compress(model, target=target, calibration=pictures(model, (np.zeros(3), np.full(3, 255.0)), 1))
    assert told(small) == ["x"] and "Pad" not in ops(small) and "Add" not in ops(small)
    (scale,) = [n.inputs[1].const_value.numpy() for n in small.ir.graph if n.op_type == "QuantizeLinear"][:1]  # type: ignore[union-attr]
    assert float(scale) == pytest.approx(1 / 255, rel=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_other_data_and_other_targets_are_left_alone(net: Any, weights: Any, ops: Any, target: str) -> None:
    model = network(net, weights, FIRST)
    small = compress(model, target=target, calibration=pictures(model, CAFFE, 1, noise=0.3))
    assert not told(small) and "Pad" not in ops(small)
    mirrored = compress(model, target="tensorrt", calibration=pictures(model, CAFFE, 1))
    assert not told(mirrored) and "Pad" not in ops(mirrored)


def test_data_beyond_the_grid_widens_the_range(net: Any, weights: Any, ops: Any) -> None:
    """The first samples look like pixels; a later one is twice as bright, and is not clipped."""
    model = network(net, weights, FIRST)
    feeds = pictures(model, TORCH, 1)
    feeds["x"][47] *= 2
    small = compress(model, target="onnxruntime", calibration=feeds)
    scales = [n.inputs[1].const_value.numpy() for n in small.ir.graph if n.op_type == "QuantizeLinear"]  # type: ignore[union-attr]
    assert float(scales[0]) > 1.2


@pytest.mark.parametrize("text", [FIRST, LAST], ids=["NCHW", "NHWC"])
def test_a_first_layer_that_is_left_in_float_is_as_it_was(
    net: Any, weights: Any, evaluate: Any, ops: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trials of a model that is too far off: no Pad and no Add is left, and its weight is the float one."""
    monkeypatch.setattr(_precision, "FLOOR", 300.0)
    monkeypatch.setattr(_precision, "SHARE", 0.98)
    monkeypatch.setattr(_precision, "WORTH", -9.0)
    model = network(net, weights, text)
    small = compress(model, target="onnxruntime", calibration=pictures(model, TORCH, 1), placement="rules")
    assert "c1" in small.history[-1].options["float layers"]
    assert not {"Pad", "Add", "Mul"} & ops(small).keys()
    fresh = pictures(model, TORCH, 2)
    assert sqnr_db(evaluate(model, fresh)[0], evaluate(small, fresh)[0]) > 40
    (layer,) = [node for node in small.ir.graph if node.name == "c1"]
    given = {str(tensor.name): tensor for tensor in model.ir.graph.initializers.values()}["w1"]
    kept = constant(layer.inputs[1].producer().inputs[0])  # type: ignore[union-attr]
    assert kept is not None and kept.dtype == np.float16
    wanted = constant(given)
    assert wanted is not None
    factors = np.median(kept.astype(np.float64) / wanted, axis=(1, 2, 3), keepdims=True)
    # But for equalization's factors, one for each row, and float16's 11 bits.
    np.testing.assert_allclose(kept.astype(np.float64), wanted * factors, rtol=2.0**-10, atol=2.0**-24)


@pytest.mark.parametrize("text", [FIRST, LAST], ids=["NCHW", "NHWC"])
def test_the_float_model_is_the_same_with_it_and_without_it_again(
    net: Any, weights: Any, evaluate: Any, text: str
) -> None:
    """Within float32: applied, and released with weights stored to nearest in between, as layers are that turn out to
    be needed in float."""
    model = network(net, weights, text)
    feeds = pictures(model, TORCH, 3)
    (want,) = evaluate(model, feeds)
    graph = fold.apply(model.clone())
    rules = registry.target("onnxruntime").quantization()
    (site,) = lattice.sites(graph.graph, placement.plan(graph.graph, rules))
    before = np.array(site.reader.inputs[1].const_value.numpy())  # type: ignore[union-attr]
    lattice.apply(graph.graph, site, TORCH[1], TORCH[0])
    (moved,) = evaluate(Model.of(graph.clone()), feeds)
    assert sqnr_db(want, moved) > 90
    (name,) = held = lattice.taken(graph.graph)
    node = next(node for node in graph.graph if node.name == name)
    weight = np.array(constant(node.inputs[1]))
    own = grid.symmetric(grid.channel_bounds(weight, 0), axis=0)
    qdq.store_weight(graph.graph, [node], own, own.quantize(weight))
    lattice.settle(graph.graph, held)
    plan = replace(placement.plan(graph.graph, rules), weights=[])
    scaled = lattice.release(graph.graph, plan)
    set_constant(graph.graph, node, 1, weight)
    for layer, by in scaled:
        equalize.scale_input(graph.graph, layer, by)
    after = constant(node.inputs[1])
    assert after is not None and np.allclose(after, before, rtol=1e-5)
    assert node.attributes.get_ints("pads") == (2, 1, 2, 1)
    assert not {"Pad", "Add", "Mul"} & {each.op_type for each in graph.graph}
    (again,) = evaluate(Model.of(graph), feeds)
    assert sqnr_db(want, again) > 90


@pytest.mark.parametrize("text", [FIRST, LAST], ids=["NCHW", "NHWC"])
def test_a_first_layer_that_another_placement_leaves_in_float_is_as_it_was(
    net: Any, weights: Any, evaluate: Any, ops: Any, text: str
) -> None:
    """As the clock asks for it, of a model prepared with that layer on integers: no Pad and no Add is left."""
    model = network(net, weights, text)
    seen, fresh = pictures(model, TORCH, 1), pictures(model, TORCH, 2)
    request = Request(registry.target("onnxruntime").quantization(), opened, open_data(seen, model.inputs, batch=8))
    variant = quantize.variants("static_int8", model, request)
    first, other = variant(frozenset()), variant(frozenset({"c1"}))
    assert ops(first)["Pad"] == 1 and not {"Pad", "Add", "Mul"} & ops(other).keys()
    (layer,) = [node for node in other.ir.graph if node.name == "c1"]
    assert layer.attributes.get_ints("pads") == (2, 1, 2, 1)
    assert sqnr_db(evaluate(model, fresh)[0], evaluate(other, fresh)[0]) > 40
