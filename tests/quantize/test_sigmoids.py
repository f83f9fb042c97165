"""Sigmoids behind integer convolutions on OpenVINO: in a kernel of their own where that is faster."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgerun import registry
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compress import compress

BODY = "a = Conv(x, first) b = Relu(a) c = Conv<kernel_shape = [3, 3]>(b, second, bias)"
NARROW = """(float[n,8,16,16] x) => (float[n,4,12,12] y) { %s y = Sigmoid(c) }"""
WIDE = """(float[n,8,16,16] x) => (float[n,32,12,12] y) { %s y = Sigmoid(c) }"""
SILU = """(float[n,8,16,16] x) => (float[n,32,12,12] y) { %s s = Sigmoid(c) m = Mul(c, s) d = Conv(m, third)
          y = Sigmoid(d) }"""
ELSEWHERE = """(float[n,8,16,16] x) => (float[n,4,12,12] y, float[n,4,12,12] c) { %s y = Sigmoid(c) }"""


@pytest.fixture(name="made")
def _made(net: Any, weights: Any) -> Any:
    """A network of a text above, its calibration data, and it compressed for a device."""

    def make(text: str, device: str, channels: int, size: float = 1) -> tuple[Model, np.ndarray, Model]:
        own = {"first": weights(0, 32, 8, 3, 3), "second": weights(1, channels, 32, 3, 3), "bias": weights(2, channels)}
        if "third" in text:
            own["third"] = weights(3, 32, 32, 1, 1)
        x = np.random.default_rng(4).standard_normal((24, 8, 16, 16)).astype(np.float32) * np.float32(size)
        model = net(text % BODY, **own)
        return model, x, compress(model, device=device, calibration={"x": x}, placement="rules")

    return make


@pytest.mark.parametrize(
    ("text", "channels", "device", "sigmoids", "exponentials"),
    [
        (NARROW, 4, "intel-n100", 0, 1),
        (NARROW, 4, "xeon-amx", 0, 1),
        (WIDE, 32, "intel-n100", 1, 0),
        (WIDE, 32, "xeon-amx", 0, 1),
        (SILU, 32, "xeon-avx512-vnni", 2, 0),
        (SILU, 32, "xeon-amx", 0, 2),
        (ELSEWHERE, 4, "xeon-amx", 1, 0),
    ],
)
def test_where_a_sigmoid_is_written_out(
    made: Any, evaluate: Any, ops: Any, text: str, channels: int, device: str, sigmoids: int, exponentials: int
) -> None:
    """Where fewer than 16 channels are written, and with AMX always, unless the layer is read elsewhere too; 30 dB to
    the float model all the same."""
    model, x, result = made(text, device, channels)
    found = ops(result)
    assert (found.get("Sigmoid", 0), found.get("Exp", 0)) == (sigmoids, exponentials)
    wanted, got = (evaluate(each, {"x": x})[0] for each in (model, result))
    assert 10 * np.log10(np.sum(wanted**2) / np.sum((got - wanted) ** 2)) > 30


def test_the_form_is_exact_where_the_exponential_overflows(made: Any, evaluate: Any) -> None:
    """Sums of -1000 to 1000: SiLU is 0 there or the sum itself, and nothing is infinite or NaN; in float64 the same to
    1e-6 of the largest."""
    _, x, result = made(SILU, "xeon-amx", 32, 100)
    proto = result.to_proto()
    shape = ("n", 32, 12, 12)
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("c", "m"))
    _, sums, got = evaluate(Model.from_proto(proto), {"x": x})
    assert sums.min() < -500 and sums.max() > 500
    with np.errstate(over="ignore"):
        wanted = sums / (1 + np.exp(-sums.astype(np.float64)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * float(np.abs(wanted).max()))


def test_openvino_leaves_it_in_a_kernel_of_its_own(made: Any) -> None:
    """In the runtime the integer layer's kernel covers no exponential; written as Sigmoid it would."""
    pytest.importorskip("openvino")
    _, x, apart = made(NARROW, "xeon-amx", 4)
    _, _, wide = made(WIDE, "intel-n100", 32)
    target, inside = registry.target("openvino"), {}
    for name, model in {"apart": apart, "inside": wide}.items():
        engine = target.compile(model, Options(1))
        kernels = target.profile(engine, itertools.repeat({"x": x[:1]}, 3), Options(1))
        last = next(k for k in kernels if k.integer and "c" in k.covers)
        inside[name] = bool({"y", "y/Exp"} & set(last.covers))
    assert inside == {"apart": False, "inside": True}
