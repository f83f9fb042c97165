"""Softmax behind a mask: raised where the data is masked and that takes time, and the shares are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgerun.data import open_data
from edgerun.model import Model
from edgerun.passes import Request
from edgerun.quantize import _masked, fold
from edgerun.verbs.compress import compress

ATTENTION = """(float[n,8,16] x, float[n,1,8] mask) => (float[n,8,16] y)
    { q = MatMul(x, wq) k = MatMul(x, wk) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) no = Sub(one, mask)
      off = Mul(no, least) a = Add(s, off) p = Softmax<axis=-1>(a) v = MatMul(x, wv) y = MatMul(p, v) }"""
ALONE = "(float[n,m] x, float[n,m] add) => (float[n,m] y) { s = Add(x, add) y = Softmax<axis=AXIS>(s) }"
LOWEST = float(np.finfo(np.float32).min)


@pytest.fixture
def attention(net: Any) -> Callable[..., Model]:
    def made(least: float = LOWEST, opset: int = 17) -> Model:
        generator = np.random.default_rng(0)
        weights = {name: (generator.standard_normal((16, 16)) / 4).astype(np.float32) for name in ("wq", "wk", "wv")}
        model: Model = net(ATTENTION, opset=opset, one=np.float32(1), least=np.float32(least), **weights)
        return model

    return made


def sentences(lengths: tuple[int, ...], samples: int = 32) -> dict[str, np.ndarray]:
    """Rows of eight, of which so many in turn are not masked."""
    x = np.random.default_rng(1).standard_normal((samples, 8, 16)).astype(np.float32)
    known = np.array([lengths[i % len(lengths)] for i in range(samples)])
    return {"x": x, "mask": (np.arange(8) < known[:, None]).astype(np.float32)[:, None]}


def small(model: Model, data: dict[str, np.ndarray], **options: Any) -> Model:
    return compress(model, calibration=data, **{"placement": "rules", "ranges": "minmax", **options})


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("least", [LOWEST, -1e4, -np.inf])
def test_what_is_masked_is_raised(attention: Any, evaluate: Any, ops: Any, least: float, opset: int) -> None:
    """Compared with the same weights and ranges, and nothing raised."""
    data = sentences((2, 3))
    if least == -np.inf:  # 0 times infinity is no number
        data["mask"][:] = np.where(data["mask"] > 0, np.float32(0.999), 0)
        least = -3e4
    model = attention(least, opset)
    made = small(model, data)
    told = made.history[-1].options[_masked.FOUND]
    assert list(told) == ["p"] and told["p"] == pytest.approx(11 / 16, abs=1 / 16)
    assert ops(made)["Max"] == ops(made)["ReduceMax"] == 1
    other = small(model, data, device="raspberry-pi-5")
    assert _masked.FOUND not in other.history[-1].options and "ReduceMax" not in ops(other)
    fresh = sentences((1, 8, 5), 12) | {"x": np.random.default_rng(5).standard_normal((12, 8, 16)).astype(np.float32)}
    (one,), (two,) = (evaluate(each, fresh) for each in (made, other))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * np.abs(two).max())


@pytest.mark.parametrize(
    ("lengths", "options"),
    [((8,), {}), ((7, 8), {}), ((2,), {"target": "openvino"}), ((2,), {"device": "raspberry-pi-5"})],
    ids=["nothing masked", "a sixteenth", "openvino", "arm"],
)
def test_elsewhere_nothing_is_raised(attention: Any, ops: Any, lengths: tuple[int, ...], options: Any) -> None:
    made = small(attention(), sentences(lengths), **options)
    assert _masked.FOUND not in made.history[-1].options and "ReduceMax" not in ops(made)


@pytest.mark.parametrize("scheme", ["w8a8_dynamic", "w8a16"])
def test_other_schemes_raise_it_too(attention: Any, evaluate: Any, scheme: str) -> None:
    data = sentences((2, 3))
    made = compress(attention(), scheme=scheme, calibration=data, placement=None if scheme == "w8a16" else "rules")
    assert list(made.history[-1].options[_masked.FOUND]) == ["p"]
    bare = compress(attention(), scheme=scheme, placement=None if scheme == "w8a16" else "rules")
    assert _masked.FOUND not in bare.history[-1].options
    (one,), (two,) = (evaluate(each, data) for each in (made, bare))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * np.abs(two).max())


@pytest.mark.parametrize("axis", ["-1", "1"])
def test_shares_are_the_same_whatever_the_values(
    net: Any, evaluate: Any, request_for: Callable[..., Request], axis: str
) -> None:
    """Rows of wide ranges, one value far above, all masked, all but one, infinities; against float64."""
    generator = np.random.default_rng(3)
    x = (generator.standard_normal((64, 50)) * 10.0 ** generator.uniform(-3, 3, (64, 1))).astype(np.float32)
    add = np.where(generator.random((64, 50)) < 0.6, np.float32(LOWEST), np.float32(0))
    add[0], add[1], add[1, 7], x[2, 3], x[4] = LOWEST, LOWEST, 0, 3e38, 0
    model = net(ALONE.replace("AXIS", axis))
    request = request_for("onnxruntime", open_data({"x": x, "add": add}, model.inputs, batch=8))
    raised = fold.apply(model.ir.clone())
    _masked.raised(raised, request)
    assert list(request.found[_masked.FOUND]) == ["y"]
    add[3, :40], x[5, 5] = -np.inf, -np.inf
    (found,) = evaluate(Model.of(raised), {"x": x, "add": add})
    with np.errstate(over="ignore"):
        sums = (x + add).astype(np.float64)
    shares = np.exp(sums - sums.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, shares / shares.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-30)
    assert np.isfinite(found).all()


def test_classes_are_left_alone(net: Any, request_for: Callable[..., Request]) -> None:
    """Behind a product nothing is masked: the data is not looked at."""
    model = net("(float[n,8] x) => (float[n,8] y) { a = Gemm(x, w) y = Softmax(a) }", w=np.eye(8, dtype=np.float32))
    before = fold.apply(model.ir.clone())
    request = request_for("onnxruntime", object())
    _masked.raised(before, request)
    assert not request.found and [node.op_type for node in before.graph] == ["Gemm", "Softmax"]
