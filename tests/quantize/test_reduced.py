"""What is rounded behind a maximum or a minimum is rounded once, and a mean that counts padding counts zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

import edgerun
from edgerun.metrics import sqnr_db
from edgerun.verbs.compress import compress

ONE = edgerun.Options(threads=1)
REDUCED = """(float[b,8,10,10] x) => (float[b,8,{size}] y)
    {{ a = Conv(x, v) {between} y = Conv(m, w) }}"""


def dense(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) / 3).astype(np.float32)


@pytest.mark.parametrize(
    ("between", "size"),
    [
        ("m = GlobalMaxPool(a)", "1,1"),
        ("r = GlobalMaxPool(a) m = Relu(r)", "1,1"),
        ("m = ReduceMax<axes=[2,3]>(a)", "1,1"),
        ("m = ReduceMin<axes=[2,3]>(a)", "1,1"),
        ("m = ReduceMax<axes=[2]>(a)", "1,10"),
        ("m = ReduceMean<axes=[2,3]>(a)", "1,1"),
        ("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a)", "10,10"),
        ("r = Relu(a) m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(r)", "10,10"),
        ("m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a)", "10,10"),
    ],
)
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_the_file_is_as_near_as_the_graph(net: Any, target: str, between: str, size: str) -> None:
    """Above 25 dB of new data, float on ONNX Runtime being the judge, as the integers themselves are."""
    model = net(REDUCED.format(size=size, between=between), v=dense(0, 8, 8, 1, 1), w=dense(1, 8, 8, 1, 1))
    x = np.random.default_rng(2).standard_normal((48, 8, 10, 10)).astype(np.float32)
    small = compress(model, target=target, calibration={"x": x[:32]}, placement="rules")
    assert small.history[-1].options["integer nodes"] >= (2 if target == "openvino" else 1)
    wanted, found = (
        edgerun.load(engine, options=ONE).run({"x": x[32:]})["y"]
        for engine in (edgerun.compile(model, "onnxruntime", ONE), edgerun.compile(small, target, ONE))
    )
    assert sqnr_db(wanted, found) > 25
