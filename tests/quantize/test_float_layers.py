"""Layers that stay float where a model would else be too far off: found whatever its last layers write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgerun import quantize, registry
from edgerun.data import open_data
from edgerun.metrics import Difference, sqnr_db
from edgerun.mixed import order
from edgerun.passes import Request
from edgerun.quantize import _precision
from edgerun.verbs.compress import compress
from edgerun.verbs.making import opened

PICTURES = "(float[n,8,16,16] x) => (float[n,8,14,14] y) { %s y = Conv(c, last) }"
SCORES = """(float[n,8,16,16] x) => (float[n,8] y)
            { %s p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, last) }"""
BODY = "a = Conv(x, first) k = Clip(a, low, high) b = Conv(k, second) c = Conv(b, third)"


@pytest.mark.parametrize(
    ("text", "last"), [(PICTURES, (8, 256, 1, 1)), (SCORES, (256, 8))], ids=["positions", "values"]
)
def test_a_layer_stays_float_whose_input_has_peaks(net: Any, text: str, last: tuple[int, ...]) -> None:
    """One number of 500 to 1000 in noise of 1, which a Clip cuts: a step of the input's grid is 4, and rounds the noise
    away. Scores are single values, whose mean over one sample would hide all of that."""
    generator = np.random.default_rng(0)
    shapes = {"first": (8, 8, 3, 3), "second": (128, 8, 1, 1), "third": (256, 128, 1, 1), "last": last}
    weights = {name: (generator.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    ends = {"low": np.float32(-2), "high": np.float32(2)}
    x = generator.standard_normal((48, 8, 16, 16)).astype(np.float32)
    x[:, 0, 8, 8] = 500 * (1 + generator.random(48))
    result = compress(net(text % BODY, **weights, **ends), calibration={"x": x}, placement="rules", memory_cap=1)
    told = result.history[-1].options
    assert "a" in told["float layers"]
    assert 20 < told["dB won in float"]["stem"] < 50
    assert told["calibration SQNR (dB)"] > 25


def test_trials_run_the_samples_that_say_something(net: Any) -> None:
    """Six of the 40 samples that are judged have all that the model gives; the others, 1e-5 of their size, are not run
    to learn what the first layer brings in float."""
    generator = np.random.default_rng(0)
    shapes = {"first": (8, 8, 3, 3), "second": (128, 8, 1, 1), "third": (256, 128, 1, 1), "last": (8, 256, 1, 1)}
    weights = {name: (generator.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    ends = {"low": np.float32(-2), "high": np.float32(2)}
    x = generator.standard_normal((48, 8, 16, 16)).astype(np.float32)
    x[:, 0, 8, 8] = 500 * (1 + generator.random(48))
    told = {}
    for quiet in (1.0, 1e-5):
        x[np.arange(48) % 8 != 3] *= np.float32(quiet)
        result = compress(
            net(PICTURES % BODY, **weights, **ends), calibration={"x": x}, placement="rules", memory_cap=1
        )
        told[quiet] = result.history[-1].options
    steps = {q: next(s for s in own["steps"] if s["step"] == "float layers: stem") for q, own in told.items()}
    loud = int((order(48)[:40] % 8 == 3).sum())
    assert steps[1.0]["n"] == 40 and steps[1e-5]["n"] == loud
    assert told[1e-5]["float layers"] == told[1.0]["float layers"]
    assert told[1e-5]["dB won in float"]["stem"] > 10


def test_the_first_product_with_a_matrix_stays_float_whose_columns_differ(net: Any, evaluate: Any) -> None:
    """Columns of a table from 0.01 to 1,000, all of the same weight: in one grid for all the small ones are nothing."""
    generator = np.random.default_rng(0)
    spread = np.geomspace(0.01, 1000, 16).astype(np.float32)
    w = (generator.standard_normal((16, 64)) / spread[:, None]).astype(np.float32)
    v, u = ((generator.standard_normal(shape) / 8).astype(np.float32) for shape in ((64, 64), (64, 4)))
    model = net("(float[n,16] x) => (float[n,4] y) { a = Gemm(x, w) r = Relu(a) b = Gemm(r, v) s = Relu(b)"
                " y = Gemm(s, u) }", w=w, v=v, u=u)  # fmt: skip
    x = (generator.standard_normal((256, 16)) * spread).astype(np.float32)
    result = compress(model, calibration={"x": x[:128]}, placement="rules", memory_cap=1)
    assert result.history[-1].options["float layers"] == ["a"]
    (reference,), (value,) = (evaluate(one, {"x": x[128:]}) for one in (model, result))
    assert sqnr_db(reference, value) > 30


@pytest.mark.parametrize(("gains", "kept"), [((1.0,) * 8, True), ((12.0, *(-1.0,) * 7), False)], ids=["all", "one"])
def test_more_of_the_first_layers_must_bring_something_on_most_samples(
    monkeypatch: pytest.MonkeyPatch, gains: tuple[float, ...], kept: bool
) -> None:
    """Eight samples, the first with most of the noise: a dB less on each is worth 15 % of the model, 12 on that one and
    one more on all others, which is as good in the sum, is not."""

    def totals(decibels: float) -> dict[str, Difference]:
        return {"y": Difference(count=1, signal=1.0, noise=10 ** (-decibels / 10), max_error=1.0)}

    before = [8.0, *(20.0,) * 7]
    after = [totals(db + gain) for db, gain in zip(before, gains, strict=True)]
    names = frozenset({"a"})
    cheap = _precision.Cheap({"first 15%": names}, {names: None}, {})  # type: ignore[dict-item]
    monkeypatch.setattr(_precision.Cheap, "_without", lambda self, made, names: "without")
    request = Request(registry.target("tensorrt").quantization(), opened)
    made: Any = "with"
    found: Any = cheap.spared(made, _precision.Lost([totals(db) for db in before], 8), lambda *asked: after, request)
    (step,) = request.found["steps"]
    assert (found == "without") == step["kept"] == kept and step["n"] == 8
    assert request.found["dB won in float"]["first 15%"] > 0.5


@pytest.mark.parametrize(
    ("near", "ratios", "kept"),
    [
        (False, (1.04,), ["a", "b", "c"]),
        (False, (1.2, 1.04), ["a", "b"]),
        (False, (1.2, 1.2, 1.06), ["a"]),
        (False, (None,) * 3, ["a"]),
        (True, (1.0, 1.0, 1.04), ["a", "b"]),
        (True, (1.04,), None),
    ],
    ids=["three", "two", "by the precision", "none runs", "near enough", "near enough, all slower"],
)
def test_first_layers_that_take_no_more_time_stay_float(
    net: Any, monkeypatch: pytest.MonkeyPatch, near: bool, ratios: tuple[float | None, ...], kept: list[str] | None
) -> None:
    """Of three first layers, each 9 % of the work, as many stay float as the clock finds a twentieth slower at most;
    where that are none, those that bring precision: the first one, whose input has peaks. Of a model that is near
    enough by FLOOR, not by MARGIN more, those that are no slower at all, of which the least is asked first."""
    if near:
        monkeypatch.setattr(_precision, "FLOOR", -20.0)
        monkeypatch.setattr(_precision, "MARGIN", 300.0)
    generator = np.random.default_rng(0)
    shapes = {"first": (8, 8, 1, 1), "second": (8, 8, 1, 1), "third": (8, 8, 1, 1), "last": (64, 8, 1, 1)}
    weights = {name: (generator.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    text = """(float[n,8,16,16] x) => (float[n,64,16,16] y) { a = Conv(x, first) k = Clip(a, low, high)
              b = Conv(k, second) c = Conv(b, third) y = Conv(c, last) }"""
    model = net(text, **weights, low=np.float32(-2), high=np.float32(2))
    x = generator.standard_normal((48, 8, 16, 16)).astype(np.float32)
    x[:, 0, 8, 8] = 500 * (1 + generator.random(48))
    timed: list[tuple[int, int]] = []

    def pace(first: ir.Model, bound: float) -> Callable[[ir.Model], float | None]:
        def beside(second: ir.Model) -> float | None:
            timed.append((_integer(first), _integer(second)))
            return ratios[len(timed) - 1]

        return beside

    rules = registry.target("onnxruntime").quantization()
    request = Request(rules, opened, open_data({"x": x}, model.inputs, batch=1), pace=pace)
    told = quantize.apply("static_int8", model, request).history[-1].options
    assert told.get("float layers") == kept
    # Beside all four layers on integers, one after the other of them fewer in float.
    assert timed == [(4, 4 - count) for count in ((1, 2, 3) if near else (3, 2, 1))][: len(ratios)]
    steps = [step["kept"] for step in told["steps"] if step["step"].startswith("float layers")]
    assert any(steps) == bool(kept)


def _integer(graph: ir.Model) -> int:
    """The convolutions between Q/DQ."""
    stored = [node.inputs[1].producer() for node in graph.graph if node.op_type == "Conv"]  # type: ignore[union-attr]
    return sum(producer is not None for producer in stored)
