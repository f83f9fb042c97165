"""Weights are rounded to the second order: nearer to float on data that nothing was fitted to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun.quantize.numerics import gptq

KEY = "rounded to the second order"


def inputs(seed: int, rows: int) -> np.ndarray:
    """Rows of 64 values that six causes explain, all but a tenth."""
    causes = np.random.default_rng(0).standard_normal((6, 64))
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((rows, 6)) @ causes + 0.1 * generator.standard_normal((rows, 64))).astype(
        np.float32
    )


def weights() -> np.ndarray:
    """`[64, 32]`; the largest of each column is ten times the others, so that these have few steps."""
    weight = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    weight[:2] *= 10
    return weight


NETS = {
    "Gemm": "(float[n,64] x) => (float[n,32] y) { y = Gemm(x, w, b) }",
    "MatMul": "(float[n,64] x) => (float[n,32] y) { a = MatMul(x, w) y = Add(a, b) }",
    "Conv": "(float[n,64,3,3] x) => (float[n,32,3,3] y) { y = Conv(x, w, b) }",
}


@pytest.mark.parametrize("kind", NETS)
def test_correlated_inputs_lose_less(net: Any, evaluate: Any, kind: str) -> None:
    weight, bias = weights(), np.zeros(32, np.float32)
    shaped = weight if kind != "Conv" else np.ascontiguousarray(weight.T.reshape(32, 64, 1, 1))
    model = net(NETS[kind], w=shaped, b=bias)

    def data(seed: int, rows: int) -> np.ndarray:
        if kind != "Conv":
            return inputs(seed, rows)
        pixels = inputs(seed, 9 * rows).reshape(rows, 9, 64)
        return np.ascontiguousarray(pixels.transpose(0, 2, 1)).reshape(rows, 64, 3, 3)

    asked: dict[str, Any] = {"calibration": {"x": data(2, 32)}, "ranges": "minmax", "placement": "rules"}
    found = {p: edgerun.compress(model, target="onnxruntime", preset=p, **asked) for p in ("fast", "default")}
    unseen = {"x": data(3, 200)}
    want = evaluate(model, unseen)[0]
    lost = {p: float(np.square(evaluate(m, unseen)[0] - want).mean()) for p, m in found.items()}
    told = found["default"].history[-1].options[KEY]
    assert told["layers"] == told["tried"] == 1 and told["less noise of weights, on data kept apart (median dB)"] > 3
    assert lost["default"] < 0.8 * lost["fast"]
    assert KEY not in found["fast"].history[-1].options


def smooth(seed: int, rows: int, channels: int, *sizes: int) -> np.ndarray:
    """Pictures whose neighbours are alike."""
    values = np.random.default_rng(seed).standard_normal((rows, channels, *(size + 4 for size in sizes)))
    for axis, size in enumerate(sizes, 2):
        values = np.mean([np.take(values, np.arange(size) + shift, axis=axis) for shift in range(5)], axis=0)
    return np.asarray(values, np.float32)


@pytest.mark.parametrize(
    ("layer", "shape", "sizes"),
    [
        ("Conv<pads=[1,1,1,1]>", (8, 16, 3, 3), (12, 12)),
        ("Conv<pads=[1,1,1,1], group=16>", (16, 1, 3, 3), (12, 12)),
        ("Conv<group=4, strides=[2,2]>", (8, 4, 3, 3), (12, 12)),
        ("Conv<pads=[2,2]>", (8, 16, 5), (40,)),
    ],
    ids=["dense", "depthwise", "grouped", "one axis"],
)
def test_windows_lose_less(net: Any, evaluate: Any, layer: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """What a kernel sees of smooth pictures goes together: rounding errors cancel where the picture is smooth."""
    generator = np.random.default_rng(8)
    weight = generator.standard_normal(shape).astype(np.float32)
    weight.reshape(len(weight), -1)[:, 0] *= 20  # few steps for the rest
    dims = ",".join(map(str, sizes))
    model = net(f"(float[n,16,{dims}] x) => (float[n,{shape[0]},{','.join('pqr'[: len(sizes)])}] y) "
                f"{{ y = {layer}(x, w, b) }}", w=weight, b=np.zeros(shape[0], np.float32))  # fmt: skip
    asked: dict[str, Any] = {"calibration": {"x": smooth(2, 32, 16, *sizes)}, "ranges": "minmax", "placement": "rules"}
    found = {p: edgerun.compress(model, target="openvino", preset=p, **asked) for p in ("fast", "default")}
    unseen = {"x": smooth(3, 50, 16, *sizes)}
    want = evaluate(model, unseen)[0]
    lost = {p: float(np.square(evaluate(m, unseen)[0] - want).mean()) for p, m in found.items()}
    told = found["default"].history[-1].options[KEY]
    assert told["layers"] == told["tried"] == 1 and told["less noise of weights, on data kept apart (median dB)"] > 1.5
    assert lost["default"] < 0.9 * lost["fast"]


def test_groups_are_rounded_as_if_alone() -> None:
    """Side by side or one by one: the same codes, but where float32 and float64 fall to different sides."""
    generator = np.random.default_rng(9)
    weight = generator.standard_normal((6, 5, 12)).astype(np.float32)
    x = generator.standard_normal((6, 12, 4)) @ generator.standard_normal((6, 4, 90))
    second = (x @ x.transpose(0, 2, 1)).astype(np.float32)
    second[3] = 0  # reads nothing
    scale = (np.abs(weight).max(axis=2) / 127).astype(np.float32)
    codes = gptq.grouped(weight, scale, second, 127)
    alone = [
        gptq.symmetric(*part, 127) for index, part in enumerate(zip(weight, scale, second, strict=True)) if index != 3
    ]
    assert np.mean(np.delete(codes, 3, axis=0) != np.stack(alone)) < 0.02
    np.testing.assert_array_equal(codes[3], np.rint(weight[3] / scale[3][:, None]))


def test_codes_stay_on_the_grid_and_lose_less_than_nearest() -> None:
    """Six causes: ‖(W − Q)X‖² on other data is under half of nearest rounding's; no code leaves ±127."""
    weight = weights().T
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    seen, unseen = inputs(5, 400), inputs(6, 400)
    codes = gptq.symmetric(weight, scale, seen.T @ seen, 127)
    nearest = np.rint(weight / scale[:, None])
    lost = [float(np.square((weight - c * scale[:, None]) @ unseen.T).sum()) for c in (codes, nearest)]
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= 127
    assert lost[0] < 0.5 * lost[1]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_factor_is_the_one_there_is(size: int, dtype: type) -> None:
    """Against LAPACK's: the Cholesky factor is unique."""
    x = np.random.default_rng(7).standard_normal((size, 2 * size))
    moments: np.ndarray = (x @ x.T).astype(dtype)
    lower, wanted = gptq.cholesky(moments), np.linalg.cholesky(moments.astype(np.float64))
    assert lower.dtype == dtype
    np.testing.assert_allclose(lower, wanted, atol=2e-6 * wanted.max() if dtype == np.float32 else 1e-12 * wanted.max())


def test_the_nearest_plane_is_gptq() -> None:
    """Against the paper's recursion with the inverse of H, column by column."""
    generator = np.random.default_rng(4)
    x = generator.standard_normal((12, 12)) @ generator.standard_normal((12, 50))
    second, weight = x @ x.T, generator.standard_normal((3, 12))
    order = np.argsort(-np.diag(second), kind="stable")
    damped = second[np.ix_(order, order)] + 0.01 * np.diag(second).mean() * np.eye(12)
    upper, left, wanted = np.linalg.cholesky(np.linalg.inv(damped)).T, weight[:, order].copy(), np.empty((3, 12))
    for k in range(12):
        wanted[:, k] = np.clip(np.rint(left[:, k] / 0.05), -127, 127)
        left[:, k + 1 :] -= np.outer((left[:, k] - wanted[:, k] * 0.05) / upper[k, k], upper[k, k + 1 :])
    step = np.full((1, 3), 0.05)
    found = gptq.nearest_plane(
        weight.T.copy(), step, np.zeros_like(step), (-127, 127), gptq.factored(second, 0.01, weight.dtype.type)
    )
    np.testing.assert_array_equal(found.T[:, order], wanted)
