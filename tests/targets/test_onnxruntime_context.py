"""Models that an execution provider compiled ahead (EPContext nodes): made, recognised, and refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import edgerun
from edgerun.cli import edgerun as command
from edgerun.errors import EdgerunError, Unsupported
from edgerun.model import Model
from edgerun.runtime import Options
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.targets import onnxruntime as target

WHY = providers.missing(target._runtime(), providers.PROVIDERS["OPENVINO"])
CONTEXT = {"PROVIDER": "OPENVINO", "FORMAT": "context"}


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A file as OpenVINO's provider writes it; its binary is none."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], "part_0", domain="com.microsoft", embed_mode=1, main_context=1,
        ep_cache_context=b"\xff\xfe not a model", source="OpenVINOExecutionProvider", ep_sdk_version="2025.4",
    )  # fmt: skip
    door = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", door[:1], door[1:]), opset_imports=opsets, ir_version=8)
    path = tmp_path / "compiled.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.skipif(WHY is None, reason="OpenVINO's provider is here")
def test_a_file_of_a_provider_that_is_not_here_says_so(compiled: Path) -> None:
    with pytest.raises(Unsupported, match="OpenVINOExecutionProvider compiled this model, and runs it alone") as error:
        edgerun.load(compiled)
    assert "--option PROVIDER=OPENVINO" in str(error.value.do)
    (issue,) = edgerun.check(compiled, target="onnxruntime").refused
    assert (issue.node, issue.op) == ("part_0", "EPContext")
    assert issue.reason == f"compiled by OpenVINOExecutionProvider (2025.4), and runs with it alone: {WHY}"
    done = CliRunner().invoke(command, ["check", str(compiled)])
    assert done.exit_code == 1 and "compiled by OpenVINOExecutionProvider (2025.4)" in done.output


def test_a_file_of_a_provider_that_nobody_knows(compiled: Path) -> None:
    proto = onnx.load(compiled)
    for attribute in proto.graph.node[0].attribute:
        if attribute.name == "source":
            attribute.s = b"SomeExecutionProvider"
    (issue,) = target.check(Model.from_proto(proto))
    assert issue.reason == "compiled by SomeExecutionProvider (2025.4), and runs with it alone"
    with pytest.raises(Unsupported, match="compiled this model, and runs it alone"):
        edgerun.load(proto.SerializeToString())


@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        ({"FORMAT": "context"}, Unsupported, "PROVIDER=CPU compiles nothing ahead"),
        ({"FORMAT": "context", "PROVIDER": "CUDA"}, Unsupported, r"wanted: PROVIDER=TENSORRT\|OPENVINO\|QNN"),
        ({"PROVIDER": "OPENVINO", "DEVICE": "NPUU"}, EdgerunError, "did you mean 'NPU'"),
        ({"DEVICE": "GPU"}, EdgerunError, "PROVIDER=CPU has one DEVICE"),
    ],
)
def test_what_there_is_none_of(
    dense: Model, extra: dict[str, str], kind: type[EdgerunError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        edgerun.compile(dense, "onnxruntime", Options(1, extra), output=tmp_path / "dense.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("provider", ["OPENVINO", "QNN"])
def test_a_build_without_the_provider_makes_no_file(provider: str, dense: Model, tmp_path: Path) -> None:
    if providers.missing(target._runtime(), providers.PROVIDERS[provider]) is None:
        pytest.skip("this build of ONNX Runtime has it")
    options = Options(1, {"PROVIDER": provider, "FORMAT": "context"})
    with pytest.raises(Unsupported, match=f"cannot run on {provider} here.*\n.*this build of ONNX Runtime has no"):
        edgerun.compile(dense, "onnxruntime", options, output=tmp_path / "dense.onnx")
    assert not list(tmp_path.iterdir())


def test_every_choice_is_said() -> None:
    def listed(**extra: str) -> tuple[str, dict[str, str]]:
        return providers.choice(Options(extra=extra)).listed(3)[0]

    assert listed(PROVIDER="OPENVINO") == (
        "OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"}
    )  # fmt: skip
    assert listed(PROVIDER="OPENVINO", DEVICE="NPU")[1] == {
        "device_type": "NPU", "precision": "ACCURACY", "num_of_threads": "3"
    }  # fmt: skip
    assert listed(PROVIDER="QNN") == ("QNNExecutionProvider", {"backend_type": "htp"})
    assert providers.choice(Options(extra={"PROVIDER": "QNN"})).device()["hardware"] == "HTP"


@pytest.mark.skipif(WHY is not None, reason=f"no OpenVINO provider: {WHY}")
def test_openvinos_provider_computes_the_same(dense: Model) -> None:
    engine = edgerun.compile(dense, "onnxruntime", Options(1, {"PROVIDER": "OPENVINO"}))
    assert engine.check is not None and engine.check.relative_error < 1e-5
    assert engine.device["provider"] == "OPENVINO" and engine.device["hardware"] == "CPU"


@pytest.mark.skipif(WHY is not None, reason=f"no OpenVINO provider: {WHY}")
def test_a_context_is_proven_or_refused(dense: Model, tmp_path: Path) -> None:
    """A build that cannot read its own files (1.22 to 1.24 on CPUs) is told as that; another gives a proven engine."""
    path, options = tmp_path / "context.onnx", Options(1, CONTEXT)
    try:
        engine = edgerun.compile(dense, "onnxruntime", options, output=path)
    except Unsupported as error:
        assert "wrote a file that it cannot read back" in error.what and not path.exists()
        return
    assert engine.check is not None and engine.check.relative_error < 1e-5
    assert [node.op_type for node in onnx.load(path).graph.node] == ["EPContext"]
    x = {"x": np.ones((1, 6), np.float32)}
    with (
        edgerun.load(path, options=Options(1, {"PROVIDER": "OPENVINO"})) as session,
        edgerun.load(dense.to_bytes()) as o,
    ):
        np.testing.assert_allclose(session.run(x)["y"], o.run(x)["y"], rtol=1e-5)
