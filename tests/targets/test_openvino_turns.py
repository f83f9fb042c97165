"""Transposes of quantized values in another form give the same, whatever is open. Numpy is the judge."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

pytest.importorskip("openvino")

import edgerun
from edgerun.model import Model
from edgerun.targets import _openvino_fq as fq
from edgerun.targets import _openvino_ir as ir
from edgerun.targets import _openvino_turns as turns

ONE = edgerun.Options(threads=1)
BEFORE = """n (float[{dims}] x) => (float[{out}] y) <float s = {{0.05}}, uint8 z = {{100}}>
    {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Transpose<perm=[{perm}]>(d) }}"""
BEHIND = """n (float[{dims}] x) => (float[{out}] y) <float s = {{0.05}}, uint8 z = {{100}}>
    {{ t = Transpose<perm=[{perm}]>(x) q = QuantizeLinear(t, s, z) y = DequantizeLinear(q, s, z) }}"""
FLOAT = "n (float[{dims}] x) => (float[{out}] y) {{ r = Relu(x) y = Transpose<perm=[{perm}]>(r) }}"


def made(text: str, dims: tuple[str | int, ...], perm: tuple[int, ...]) -> Model:
    out = ",".join(str(dims[axis]) for axis in perm)
    filled = text.format(dims=",".join(map(str, dims)), out=out, perm=",".join(map(str, perm)))
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {filled}'))


@pytest.mark.parametrize("text", [BEFORE, BEHIND, FLOAT], ids=["before", "behind", "float"])
@pytest.mark.parametrize(
    ("dims", "perm", "turned"),
    [
        (("b", "s", 4, 6), (0, 2, 3, 1), True),  # attention's keys
        (("b", 12, 7, 1), (0, 2, 1, 3), True),
        (("b", 12, "w"), (0, 2, 1), True),
        ((2, 3, 5), (0, 2, 1), True),
        (("b", 1, 8, 3, 5), (0, 3, 4, 1, 2), True),
        (("b", 5, 6, 3), (0, 3, 1, 2), False),  # fast already
        (("b", "s", "h", 6), (0, 2, 3, 1), False),  # two sizes are open
        (("b", "s", 4, 6), (0, 2, 1, 3), False),  # rows stay whole
        (("b", 3, 4, 5), (0, 3, 2, 1), False),
        ((4, "s", 6), (1, 0, 2), False),
        (("b", 7, 1), (0, 2, 1), False),  # nothing moves
    ],
)  # fmt: skip
def test_what_is_moved_is_the_same(text: str, dims: tuple[str | int, ...], perm: tuple[int, ...], turned: bool) -> None:
    model = made(text, dims, perm)
    graph = ir.read(model.to_bytes())
    ops = ir.by_kind(graph)
    fq.fuse(ops)
    assert turns.turn(ops) == (turned and text is not FLOAT)
    with edgerun.load(edgerun.compile(model, "openvino", ONE), options=ONE) as session:
        for batch, open_size in ((1, 1), (3, 9)):
            sizes = [batch if i == 0 and isinstance(d, str) else open_size if isinstance(d, str) else d
                     for i, d in enumerate(dims)]  # fmt: skip
            x = np.random.default_rng(batch).normal(0, 3, sizes).astype(np.float32)
            codes = np.clip(np.rint(x / np.float32(0.05)) + 100, 0, 255) - 100
            wanted = (np.maximum(x, 0) if text is FLOAT else codes * np.float32(0.05)).transpose(perm)
            (found,) = session.run({"x": x}).values()
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
