"""Attention through compress: Q·Kᵀ on integers where the target has the kernel, tables of rows in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerun import registry
from edgerun.metrics import Difference
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.verbs.compile import compile
from edgerun.verbs.compress import compress

HEADS = "[0,2,1,3]"
NET = f"""(int64[n,l] ids) => (float[n,l,32] y) {{
    e = Gather(table, ids) t = LayerNormalization(e, g, b)
    qm = MatMul(t, wq) qb = Add(qm, b) km = MatMul(t, wk) kb = Add(km, b) vm = MatMul(t, wv) vb = Add(vm, b)
    q4 = Reshape(qb, heads) k4 = Reshape(kb, heads) v4 = Reshape(vb, heads)
    q = Transpose<perm={HEADS}>(q4) k = Transpose<perm=[0,2,3,1]>(k4) v = Transpose<perm={HEADS}>(v4)
    s = MatMul(q, k) p = Softmax(s) m = MatMul(p, v) m4 = Transpose<perm={HEADS}>(m) m3 = Reshape(m4, rows)
    o = MatMul(m3, wo) y = Add(o, t) }}"""


@pytest.fixture
def model(net: Any, weights: Any) -> Model:
    table = np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32)
    matrices = {name: weights(seed, 32, 32) for seed, name in enumerate(("wq", "wk", "wv", "wo"))}
    sizes = {"heads": np.array([0, 0, 4, 8], np.int64), "rows": np.array([0, 0, 32], np.int64)}
    norm = {"g": np.ones(32, np.float32), "b": weights(9, 32)}
    built: Model = net(NET, opset=20, table=table, **matrices, **sizes, **norm)
    return built


def ids(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 600, (64, 12))


def outputs(model: Model, target: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with registry.target(target).load(compile(model, target), Options(threads=1)) as session:
        return session.run(feeds)["y"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_attention_on_integers(model: Model, target: str) -> None:
    small = compress(model, target=target, calibration={"ids": ids(1)})
    fresh = {"ids": ids(2)}
    wanted, got = outputs(model, "onnxruntime", fresh), outputs(small, target, fresh)
    assert Difference.of(wanted, got).sqnr_db > 28  # 8 bits behind an unscaled softmax: 30 to 32 dB
    assert small.history[-1].options["tables in 8 bits"] == 1
    stored = {name: value.const_value for name, value in small.ir.graph.initializers.items()}
    assert {t.dtype.name for t in stored.values() if t is not None and t.shape == (600, 32)} == {"INT8"}
    scores = next(node for node in small.ir.graph if node.name == "s")
    movers = {value.producer().op_type for value in scores.inputs}  # type: ignore[union-attr]
    pays = registry.target(target).quantization().pair_matmul
    assert movers == ({"DequantizeLinear"} if pays else {"Transpose"})


def test_the_kernel_multiplies_integers(model: Model) -> None:
    """OpenVINO runs Q·Kᵀ of the compressed model in i8: its Transpose moves bytes."""
    target = registry.target("openvino")
    engine = compile(compress(model, target="openvino", calibration={"ids": ids(1)}), "openvino")
    kernels = target.profile(engine, [{"ids": ids(2)[:1]}], Options(threads=1))
    moved = [kernel for kernel in kernels if kernel.op == "Transpose"]
    assert moved and all(kernel.integer for kernel in moved)


def test_a_table_stays_float_when_asked(model: Model) -> None:
    kept = compress(model, calibration={"ids": ids(1)}, keep_float=["e"])
    assert kept.history[-1].options["tables in 8 bits"] == 0
