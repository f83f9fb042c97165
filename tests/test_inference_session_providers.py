"""Which provider an InferenceSession runs on, and the keywords of its constructor."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from edgerun import registry
from edgerun.errors import EdgerunError, Unsupported
from edgerun.runtime import InferenceSession

CPU = ["CPUExecutionProvider"]
TENSORRT, CUDA, XNNPACK, QNN = (f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA", "Xnnpack", "QNN"))
BOTH: Any = (onnxruntime.InferenceSession, InferenceSession)


@pytest.fixture
def folding() -> bytes:
    """y = x·(v + w), whose sum is constant."""
    text = "g (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {3, 4}> { c = Add(v, w)  y = Mul(x, c) }"
    return bytes(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}').SerializeToString())


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT is installed, and no GPU answers."""
    target = registry.target("tensorrt", usable=False)
    monkeypatch.setattr(target, "available", lambda: None)
    monkeypatch.setattr(target, "runnable", lambda: "no GPU answers")


def _ran(model: bytes, asked: list[Any]) -> InferenceSession:
    session = InferenceSession(model, providers=asked)
    assert session.run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [4, 6]
    return session


def test_cuda_is_never_the_cpu_in_silence(folding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    built = [CUDA, *CPU]
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    with pytest.warns(UserWarning, match="'CUDAExecutionProvider' is not in available provider names"):
        assert _ran(folding, built).get_providers() == CPU
    with pytest.raises(Unsupported, match="cannot run on CUDA here") as refused, pytest.warns(UserWarning):
        InferenceSession(folding, providers=built[:1])
    assert "onnxruntime-gpu" in str(refused.value.do)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built)
    with pytest.raises(Unsupported, match="cannot run on CUDA here"):
        InferenceSession(folding, providers=[(CUDA, {"device_id": 0, "use_tf32": 1}), *CPU])
    with pytest.raises(Unsupported, match="gpu_mem_limit"):
        InferenceSession(folding, providers=[(CUDA, {"gpu_mem_limit": 1}), *CPU])


@pytest.mark.usefixtures("idle")
def test_tensorrt_without_a_gpu_is_left_out(folding: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime leaves out what it cannot load: the next that is listed runs, and a warning says so."""
    with pytest.warns(UserWarning) as told:
        assert _ran(folding, [(TENSORRT, {}), CUDA, *CPU]).get_providers() == CPU
    first, second = (str(warning.message) for warning in told)
    assert f"{TENSORRT!r} is not in available" in first and f"{CUDA!r} is not in available" in second
    assert told[0].filename == __file__
    assert TENSORRT not in first.partition("Available providers: ")[2] and CPU[0] in first
    path = tmp_path / "m.onnx"
    path.write_bytes(folding)
    target = registry.target("tensorrt")
    with pytest.raises(Unsupported, match="does not run here"), pytest.warns(UserWarning):
        monkeypatch.setattr(target, "load", lambda engine, options: _refuse())
        InferenceSession(path, providers=[TENSORRT])


def _refuse() -> None:
    raise Unsupported("an engine for TensorRT does not run here")


def test_a_runtime_that_is_not_installed_is_left_out(folding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.target("openvino", usable=False), "available", lambda: "needs openvino")
    with pytest.warns(UserWarning, match="'OpenVINOExecutionProvider' is not in available"):
        assert _ran(folding, ["OpenVINOExecutionProvider", *CPU]).get_providers() == CPU
    with pytest.raises(Unsupported, match="target 'openvino' is unavailable"), pytest.warns(UserWarning):
        InferenceSession(folding, providers=["OpenVINOExecutionProvider"])


def test_all_that_the_build_lists_may_be_asked_for(folding: bytes) -> None:
    """`providers=onnxruntime.get_available_providers()` is common, and Azure's is among them."""
    with pytest.warns(UserWarning, match="'AzureExecutionProvider' is none that edgerun's InferenceSession opens"):
        assert _ran(folding, ["AzureExecutionProvider", *CPU]).get_providers() == CPU


def test_providers_of_another_build(folding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """XNNPACK, ACL and QNN are asked of the runtime where it has them, by the options that the target gives them."""
    for name, asked in ((XNNPACK, "XNNPACK"), ("ACLExecutionProvider", "ACL"), (QNN, "QNN")):
        with pytest.warns(UserWarning, match=f"'{name}' is not in available"):
            assert _ran(folding, [name, *CPU]).get_providers() == CPU
        with pytest.raises(Unsupported, match=f"cannot run on {asked} here"), pytest.warns(UserWarning):
            InferenceSession(folding, providers=[name])
    seen, own = list[Any](), onnxruntime.InferenceSession

    def opened(source: Any, settings: Any, providers: Any, **how: Any) -> Any:
        seen.append(providers)
        session = own(source, settings, providers=CPU, **how)
        monkeypatch.setattr(session, "get_providers", lambda: [providers[0][0], *CPU])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [XNNPACK, QNN, *CPU])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = InferenceSession(folding, settings, [XNNPACK, *CPU])
        assert session.get_providers() == [XNNPACK]
        InferenceSession(folding, providers=[(QNN, {"backend_type": "gpu"}), *CPU])
    assert seen == [[(XNNPACK, {"intra_op_num_threads": "3"})], [(QNN, {"backend_type": "gpu"})]]
    with pytest.raises(Unsupported, match="QNNExecutionProvider cannot be honoured.*\n?.*backend_path"):
        InferenceSession(folding, providers=[(QNN, {"backend_path": "libQnnHtp.so"})])


def test_optimizers_are_disabled_as_there(folding: bytes, tmp_path: Path) -> None:
    for number, kind in enumerate(BOTH):
        for names, left in ((["ConstantFolding", "MatMulAddFusion"], ["Add", "Mul"]), ([], ["Mul"]), (None, ["Mul"])):
            settings = onnxruntime.SessionOptions()
            settings.optimized_model_filepath = str(tmp_path / f"{number}.onnx")
            kind(folding, settings, CPU, enable_fallback=0, disabled_optimizers=names)
            assert [node.op_type for node in onnx.load(tmp_path / f"{number}.onnx").graph.node] == left
    InferenceSession(folding, disabled_optimizers={"ConstantFolding"})
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [2], np.array([0, 56], np.uint8).tobytes(), raw=True)
    one = helper.make_tensor("s", TensorProto.FLOAT, [], [1])
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, one])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    with pytest.raises(Unsupported, match="8-bit floats takes no disabled_optimizers"):
        InferenceSession(proto.SerializeToString(), disabled_optimizers=["ConstantFolding"])


def test_keywords_are_honoured_or_refused(folding: bytes) -> None:
    for value in (0, 1, False, True):
        InferenceSession(folding, enable_fallback=value)
    for word in ("read_config_from_model", "nonsense"):
        other: dict[str, Any] = {word: 1}
        with pytest.raises(Unsupported, match=f"cannot honour this\n  got: {word}"):
            InferenceSession(folding, **other)
    if registry.target("openvino", usable=False).available() is None:
        elsewhere = ["OpenVINOExecutionProvider"]
        InferenceSession(folding, providers=elsewhere, enable_fallback=0)
        with pytest.raises(Unsupported, match="never falls back"):
            InferenceSession(folding, providers=elsewhere, enable_fallback=1)
        with pytest.raises(EdgerunError, match="no option optimization.disable_specified_optimizers"):
            InferenceSession(folding, providers=elsewhere, disabled_optimizers=["ConstantFolding"])
