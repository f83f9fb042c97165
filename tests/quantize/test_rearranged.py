"""Weights that are only moved: the same numbers to the bit, no node left, and nothing where it would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgerun
from edgerun import rearranged
from edgerun.model import Model
from tests.quantize.test_fold import Ops, folded

HIDDEN = 520  # more than 2²⁰ weights of the state
LSTM = f"""(float[9,n,8] x) => (float[d,n,{HIDDEN}] y) {{
    i, f, c, o = Split<axis=0, num_outputs=4>(r)
    wi = Slice(w, zero, one, zero) wc = Slice(w, one, four, zero)
    gates = Concat<axis=0>(i, o, f, c) own = Unsqueeze(gates, zero)
    both = Concat<axis=0>(wi, wc) turned = Transpose<perm=[1,0]>(both) back = Transpose<perm=[1,0]>(turned)
    first = Reshape(back, sizes) h, y, k = LSTM<hidden_size={HIDDEN}>(x, first, own) }}"""


def lstm(net: Any, weights: Any) -> Model:
    numbers = {"zero": [0], "one": [HIDDEN], "four": [4 * HIDDEN], "sizes": [1, 4 * HIDDEN, 8]}
    arrays = {name: np.array(n, np.int64) for name, n in numbers.items()}
    made: Model = net(LSTM, opset=18, w=weights(1, 4 * HIDDEN, 8), r=weights(2, 4 * HIDDEN, HIDDEN) / 8, **arrays)
    return made


def test_the_weights_of_a_large_lstm(net: Any, evaluate: Any, ops: Ops, weights: Any) -> None:
    model = lstm(net, weights)
    after = folded(model)
    assert ops(after) == {"LSTM": 1}
    assert after.weight_bytes() <= model.weight_bytes()
    feeds = {"x": np.random.default_rng(0).standard_normal((9, 2, 8)).astype(np.float32)}
    np.testing.assert_allclose(evaluate(after, feeds)[0], evaluate(model, feeds)[0], rtol=0, atol=1e-6)
    first, own = (value.const_value.numpy() for value in after.ir.graph[0].inputs[1:3])  # type: ignore[union-attr]
    i, f, c, o = np.split(weights(2, 4 * HIDDEN, HIDDEN) / 8, 4)
    np.testing.assert_array_equal(own, np.concatenate([i, o, f, c])[None])
    np.testing.assert_array_equal(first, weights(1, 4 * HIDDEN, 8)[None])


def test_a_large_lstm_goes_on_integers(net: Any, weights: Any, tmp_path: Path) -> None:
    lstm(net, weights).save(tmp_path / "lstm.onnx")
    found = edgerun.compress(tmp_path / "lstm.onnx", scheme="w8a8_dynamic", target="onnxruntime")
    assert [node.op_type for node in found.ir.graph] == ["DynamicQuantizeLSTM"]


STAYS = {
    "another reader": "t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w)",
    "more bytes": "s = Slice(w, zero, three, zero) t = Concat<axis=0>(w, s) u = Transpose(t) y = MatMul(x, u)",
    "an output": "t = Transpose(w) y = MatMul(x, t)",
    "a computed place": "k = Shape(x) t = Reshape(w, k) y = Add(x, t)",
}


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(net: Any, ops: Ops, weights: Any, case: str) -> None:
    end = ", float[a,b] t" if case == "an output" else ""
    text = f"(float[4,4] x) => (float[c,d] y{end}) {{ {STAYS[case]} }}"
    model = net(text, w=weights(1, 4, 4), **{k: np.array([n], np.int64) for k, n in (("zero", 0), ("three", 3))})
    graph = model.clone()
    assert rearranged.weights(graph) == 0
    assert ops(Model.of(graph)) == ops(model)


def test_beyond_its_memory_nothing_is_moved(net: Any, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two weights of 1,024 bytes, 1,500 bytes are enough for one."""
    text = "(float[n,16] x) => (float[n,16] y) { a = Transpose(v) b = Transpose(w) c = MatMul(x, a) y = MatMul(c, b) }"
    graph = net(text, v=weights(1, 16, 16), w=weights(2, 16, 16)).clone()
    monkeypatch.setattr(rearranged, "MOST", 1500)
    assert rearranged.weights(graph) == 1
