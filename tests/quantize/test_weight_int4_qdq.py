"""4-bit Q/DQ weights: their numbers by ONNX's reference and by hand, what stays in float, and what TensorRT builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from edgerun import registry
from edgerun.cli import edgerun as commands
from edgerun.metrics import sqnr_db
from edgerun.model import Model
from edgerun.quantize.numerics import blocks
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_build as engines
from edgerun.targets import _tensorrt_kernels as kernels
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.verbs.compress import compress
from tests.quantize.test_schemes import MLP, SHAPES, build, data, run


@pytest.fixture(scope="module")
def small() -> Model:
    return compress(build(MLP, SHAPES), scheme="w4a16_b64", target="tensorrt", calibration=data(128))


def test_the_weights_are_4_bits_around_zero_in_blocks_of_64(small: Model) -> None:
    proto = small.to_proto()
    wide = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    attributes = [{a.name: a.i for a in node.attribute} for node in wide]
    assert [a["block_size"] for a in attributes] == [64, 64, 64] and sorted(a["axis"] for a in attributes) == [0, 0, 1]
    assert all(len(node.input) == 2 for node in wide), "no zero point: TensorRT takes none"
    stored = [t for t in proto.graph.initializer if t.data_type == TensorProto.INT4]
    assert sorted(tuple(t.dims) for t in stored) == [(128, 10), (256, 64), (256, 128)]
    assert all(len(t.raw_data) == np.prod(t.dims) / 2 for t in stored)
    assert next(o.version for o in proto.opset_import if o.domain == "") == 21


def test_it_computes_what_onnx_says_and_stays_near(small: Model) -> None:
    """onnx's own evaluator, which unpacks the codes by itself and rounds every value to float16, where ONNX Runtime
    adds in float32: 1e-3; to the float model 18 dB and more."""
    feeds = data(32)
    evaluated: Any = ReferenceEvaluator(small.to_proto()).run(None, dict(feeds))
    found, wanted = run(small, "onnxruntime", feeds), evaluated[0]
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()
    assert sqnr_db(run(build(MLP, SHAPES), "onnxruntime", feeds), found) > 18


def test_without_data_weights_are_rounded_to_the_nearest() -> None:
    """By hand: the scale of each block is the best of 21 shares of its larger end, in squares."""
    weight = np.random.default_rng(0).standard_normal((128, 10)).astype(np.float32)
    made = compress(build("(float[n,128] x) => (float[n,10] y) { y = MatMul(x, w) }", {}, w=weight),
                    scheme="w4a16_b64", target="tensorrt")  # fmt: skip
    feeds = {"x": np.eye(128, dtype=np.float32)}
    rows = run(made, "onnxruntime", feeds)
    for block in range(2):
        own, got = weight[64 * block :][:64], rows[64 * block :][:64]
        ends = np.maximum(-own.min(axis=0) / 8, own.max(axis=0) / 7)
        best = np.inf
        for share in np.linspace(1, 0.5, 21):
            codes = np.clip(np.rint(own / (ends * share)), -8, 7)
            best = np.minimum(best, ((codes * ends * share - own) ** 2).sum(axis=0))
        np.testing.assert_allclose(((got - own) ** 2).sum(axis=0), best, rtol=1e-3)


def test_a_block_of_zeros_stays_zero() -> None:
    weight = np.random.default_rng(0).standard_normal((128, 10)).astype(np.float32)
    weight[:64, :3] = 0
    model = build("(float[n,128] x) => (float[n,10] y) { y = MatMul(x, w) }", {}, w=weight)
    rows = run(compress(model, scheme="w4a16_b64", target="tensorrt"), "onnxruntime", {"x": np.eye(128, dtype="f")})
    assert not rows[:64, :3].any() and rows[64:, :3].any()


def test_what_has_no_full_blocks_stays_in_float() -> None:
    model = build("(float[n,64] x) => (float[n,8] y) { a = MatMul(x, w1) y = MatMul(a, w2) }",
                  {"w1": (64, 40), "w2": (40, 8)})  # fmt: skip
    kinds = [t.data_type for t in compress(model, scheme="w4a16_b64", target="tensorrt").to_proto().graph.initializer]
    assert kinds.count(TensorProto.INT4) == 1
    assert sorted(kinds) == sorted([TensorProto.INT4, TensorProto.FLOAT16, TensorProto.FLOAT16]), "scales, and w2"


def test_products_read_float16_and_codes(small: Model) -> None:
    """Weights are not unpacked by kernels of their own: the builder joins them with products that read float16."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt_rtx")
    plan = engines.build(tensorrt.library(), small.to_bytes(), Options(1, {"COMPUTE_CAPABILITY": "SM89"}))
    found = kernels.read(plan.kernels)
    unpacked = {node.name for node in small.to_proto().graph.node if node.op_type == "DequantizeLinear"}
    reading = [kernel for kernel in found if unpacked & set(kernel.covers)]
    assert len(unpacked) == 3 == len(reading) and {dtype for kernel in reading for dtype in kernel.read_dtypes} == {
        "Half"
    }


def test_symmetric_grids_have_their_zero_in_the_middle() -> None:
    weight = np.array([[-8.0, 3.0], [7.0, 1.0], [0.0, 0.0]], np.float32)
    grid = blocks.fitted(weight, 2, 4, symmetric=True)
    assert set(grid.zero_point.ravel()) == {8}
    np.testing.assert_allclose(grid.scale.ravel()[:2], [1.0, 1.0])


def test_the_command_line_and_what_tensorrt_makes_of_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt_rtx")
    weight = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    model = build("(float[16,512] x) => (float[16,512] y) { y = MatMul(x, w) }", {}, w=weight)
    model.save(tmp_path / "float.onnx")
    words = ["--scheme", "w4a16_b64", "--target", "tensorrt", "--calibration", "random"]
    result = CliRunner().invoke(
        commands, ["compress", str(tmp_path / "float.onnx"), *words, "-o", str(tmp_path / "small.onnx")]
    )
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"))
    assert (tmp_path / "small.onnx").stat().st_size < 0.16 * weight.nbytes
    target, options = registry.target("tensorrt"), Options(1, {"COMPUTE_CAPABILITY": "SM89"})
    built = [
        bytes(target.compile(Model.load(tmp_path / f"{name}.onnx"), options).payload) for name in ("float", "small")
    ]
    assert len(built[1]) < 0.4 * len(built[0]), "the engine holds 4 bits"
