"""What TensorRT builds of INT8 and FP8 models, read from what the builder says of its kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import edgerun
from bench import zoo
from edgerun.errors import EdgerunError
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _tensorrt_build as build
from edgerun.targets import _tensorrt_kernels as kernels
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import tensorrt as target
from edgerun.verbs.fallbacks import meant

pytestmark = pytest.mark.skipif(target.available() is not None, reason=str(target.available()))
rtx_only = pytest.mark.skipif(
    target.available() is not None or tensorrt.name_of(tensorrt.library()) != "tensorrt_rtx",
    reason="tensorrt builds for the GPU that is there",
)
ADA = Options(extra={build.CAPABILITY: "SM89"})
RNG = np.random.default_rng(3)
NETS = {
    "residual": (
        "(float[n,8,8,8] x) => (float[n,8,8,8] y)",
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) s = Add(r, c) t = Relu(s) y = Conv(t, w)",
    ),
    "two branches": (
        "(float[n,8,8,8] x) => (float[n,8,8,8] y)",
        "q = Relu(x) a = Conv(q, w, b) c = Conv(q, w2, b) s = Add(a, c) t = Relu(s) y = Conv(t, w)",
    ),
    "inverted residual": (
        "(float[n,8,8,8] x) => (float[n,8,8,8] y)",
        "a = Conv(x, w, b) r = Clip(a, zero, six) d = Conv<group=8, pads=[1,1,1,1]>(r, dw, b) s = Clip(d, zero, six)"
        " e = Conv(s, w, b) f = Add(x, e) y = Conv(f, w, b)",
    ),
    "pool and dense": (
        "(float[n,8,8,8] x) => (float[n,p] y)",
        "a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) c = Conv(p, w, b)"
        " s = Relu(c) h = GlobalAveragePool(s) f = Flatten(h) y = Gemm<transB=1>(f, m, b)",
    ),
    "products": (
        "(float[n,4,8] x) => (float[n,4,8] y)",
        "a = MatMul(x, m) c = Add(a, b) r = Relu(c) d = MatMul(r, m) y = Add(d, b)",
    ),
}  # fmt: skip


def _weights(*shape: int) -> np.ndarray:
    found: np.ndarray = (RNG.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return found


PARTS = {
    "w": _weights(8, 8, 1, 1), "w2": _weights(8, 8, 1, 1), "dw": _weights(8, 1, 3, 3), "m": _weights(8, 8),
    "b": _weights(8, 1).reshape(8),
    "zero": np.array(0, np.float32), "six": np.array(1.5, np.float32),
}  # fmt: skip


def _net(door: str, text: str, opset: int = 17) -> Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> net {door} {{ {text} }}')
    words = set("".join(c if c.isalnum() else " " for c in text).split())
    proto.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in PARTS.items() if name in words)
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def _compressed(case: str, scheme: str = "w8a8") -> Model:
    model = _net(*NETS[case], opset=19)
    shape = (16, *(d for d in model.inputs[0].shape if isinstance(d, int)))
    data = {"x": RNG.standard_normal(shape).astype(np.float32)}
    return edgerun.compress(model, target="tensorrt", scheme=scheme, calibration=data)


def _kernels(model: Model, options: Options = ADA) -> list[kernels.Kernel]:
    return kernels.read(build.build(tensorrt.library(), model.to_bytes(), options).kernels)


@rtx_only
@pytest.mark.parametrize("scheme", ["w8a8", "fp8"])
@pytest.mark.parametrize("case", NETS)
def test_every_layer_runs_on_8_bits_and_no_quantizer_stands_alone(case: str, scheme: str) -> None:
    """What the builder says of its kernels: products read 8 bits, and Q/DQ are part of others, but at the door."""
    model = _compressed(case, scheme)
    found = _kernels(model)
    products = [node for node in model.ir.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    multiplied = [kernel for kernel in found if kernel.multiplies]
    assert len(multiplied) == len(products) and all(kernel.integer for kernel in multiplied)
    assert {dtype for kernel in multiplied for dtype in kernel.read_dtypes} == {"FP8" if scheme == "fp8" else "Int8"}
    if scheme == "fp8":  # its builder makes kernels of their own of quantizers
        return
    inside = {str(n.name) for n in model.ir.graph if n.op_type.endswith("eLinear") and not n.inputs[0].is_graph_input()}  # type: ignore[union-attr]
    assert not [kernel for kernel in found if kernel.covers and set(kernel.covers) <= inside]


@rtx_only
def test_a_float_model_has_no_integer_kernel() -> None:
    found = _kernels(_net(*NETS["residual"]))
    assert any(kernel.multiplies for kernel in found) and not any(kernel.integer for kernel in found)


@rtx_only
def test_turing_computes_int8_models_in_float() -> None:
    """tensorrt_rtx 1.7 has no int8 kernel for 7.5: a change of that is worth knowing."""
    found = _kernels(_compressed("residual"), Options(extra={build.CAPABILITY: "SM75"}))
    assert not any(kernel.integer for kernel in found if kernel.multiplies)


@rtx_only
def test_a_gpu_without_8_bit_floats_is_told_so() -> None:
    with pytest.raises(EdgerunError, match="cannot build") as error:
        _kernels(_compressed("residual", "fp8"), Options(extra={build.CAPABILITY: "SM86"}))
    assert "fp8_e4m3" in str(error.value.got)


@rtx_only
def test_the_same_int8_model_gives_the_same_kernels() -> None:
    """The builder numbers what it names anew in every build, so the bytes may differ; what runs does not."""

    def shape(kernel: kernels.Kernel) -> tuple[Any, ...]:
        return kernel.kind, kernel.read_dtypes, kernel.write_dtypes, frozenset(kernel.covers)

    model = _compressed("residual")
    assert [shape(k) for k in _kernels(model)] == [shape(k) for k in _kernels(model)]


@rtx_only
def test_what_is_built_after_a_refusal_is_not_of_the_refused_kind() -> None:
    """tensorrt_rtx 1.7.1 refuses a float Gemm for 7.5, and would build the next model, for 8.9, without integers."""
    model = _compressed("residual")
    for _ in range(2):
        with pytest.raises(EdgerunError, match="cannot build"):
            _kernels(_net(*NETS["pool and dense"]), Options(extra={build.CAPABILITY: "SM75"}))
        assert all(kernel.integer for kernel in _kernels(model) if kernel.multiplies)


GATE = """a = Conv(x, w, b) r = Relu(a) h = GlobalAveragePool(r) e = Conv(h, w2, b) g = Relu(e) f = Conv(g, w2, b)
          k = Sigmoid(f) s = Mul(r, k) y = Conv(s, w)"""


@rtx_only
def test_the_numbers_of_a_gate_are_not_rounded() -> None:
    """A quantizer behind the mean would be a kernel of its own, as would each behind a product of one position."""
    model = _net("(float[n,8,8,8] x) => (float[n,8,8,8] y)", GATE, opset=19)
    data = {"x": RNG.standard_normal((16, 8, 8, 8)).astype(np.float32)}
    result = edgerun.compress(model, target="tensorrt", calibration=data)
    assert [node.name for node in meant(result, target.quantization())] == ["a", "y"]
    found = _kernels(result)
    assert sum(kernel.multiplies and kernel.integer for kernel in found) == 2
    alone = [kernel.covers for kernel in found if kernel.covers and all("uantizeLinear" in n for n in kernel.covers)]
    assert alone == [("x/QuantizeLinear",)]  # at the door


# Products that have Q/DQ at least: the compressor may leave the first layers of a net in float, where it is nearer so.
ZOO = {"cifar_cnn": 9, "mobilenet_v2": 45, "resnet50": 52, "minilm": 36}


@rtx_only
@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_real_models_run_on_int8(name: str) -> None:
    """Compressed on a few samples, and built for 8.9; the file's graph has been compared with the reference."""
    chosen = zoo.model(name)
    if not chosen.ready:
        pytest.skip(f"{name} is not in the cache: python -m bench.zoo {name}")
    made = edgerun.compress(
        chosen.onnx, target="tensorrt", calibration=chosen.folder / "calibration.npz", limit=8, preset="fast"
    )
    sizes = {"seq": (128, 128, 128)} if name == "minilm" else {}
    wanted = {node.name for node in meant(made, target.quantization())}
    integer = [kernel for kernel in _kernels(made, Options(extra=ADA.extra, sizes=sizes)) if kernel.integer]
    assert len(wanted) >= ZOO[name] and wanted <= {node for kernel in integer for node in kernel.covers}


@rtx_only
@pytest.mark.zoo
@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_real_model_builds(name: str) -> None:
    """In float, for compute capability 8.9: the engine has the model's door, and says what it was built for."""
    chosen = zoo.model(name)
    if not chosen.onnx.exists():
        pytest.skip(f"{name} is not in the cache: python -m bench.zoo {name}")
    model = Model.load(chosen.onnx)
    assert target.check(model) == []
    sizes = {"seq": (1, 128, 128)} if name == "minilm" else {}
    engine = target.compile(model, Options(extra=ADA.extra, sizes=sizes))
    assert engine.inputs == model.inputs and engine.device["capability"] == "8.9"
    assert isinstance(engine.payload, bytes) and len(engine.payload) > 10_000
