"""`edgerun check --option, --device WORD`: a provider or hardware, and the nodes that it leaves to the CPU.

No provider is here but the CPU's: one is played by a session on the CPU that says of some nodes that they were left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edgerun import devices, registry
from edgerun.errors import EdgerunError
from edgerun.passes import Issue
from edgerun.runtime import Options
from edgerun.targets import _onnxruntime_providers as providers
from edgerun.verbs.check import check
from tests.verbs.test_check import DOUBLE, Cli, double_conv, needs, quantized, save

NODES = [
    helper.make_node("Relu", ["x"], ["r"], "relu"),
    helper.make_node("Erf", ["r"], ["e"], "erf"),
    helper.make_node("Abs", ["e"], ["y"], "abs"),
]
CUDA = ("--option", "PROVIDER=CUDA")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """onnxruntime has PROVIDER=CUDA, which refuses the op Gelu; it leaves the ops of this set to the CPU."""
    left, target = {"Erf"}, registry.target("onnxruntime")
    opens = target.load

    def load(engine: Any, options: Options) -> Any:
        if options.extra.get("PROVIDER") != "CUDA":
            return opens(engine, options)
        nodes = onnx.load_from_string(engine.payload).graph.node
        if any(node.op_type == "Gelu" for node in nodes):
            raise EdgerunError("ONNX Runtime refuses the model", got="no kernel of Gelu")
        session: Any = opens(engine, Options(1))
        session.left = tuple(Issue(n.name, n.op_type, "runs on CPU") for n in nodes if n.op_type in left)
        return session

    monkeypatch.setattr(target, "load", load)
    return left


def test_nodes_that_a_provider_leaves_are_told(cli: Cli, tmp_path: Path, played: set[str]) -> None:
    path = save(tmp_path / "m.onnx", NODES)
    for words in (CUDA, ("--device", "CUDA"), ("--device", "CUDA", "--target", "onnxruntime")):
        told = cli("check", path, *words)
        assert told.code == 0 and "not on PROVIDER=CUDA: erf (Erf): runs on CPU" in told.out, told.err
        assert "all 3 nodes run on onnxruntime with PROVIDER=CUDA, 1 of them not on PROVIDER=CUDA" in told.out
    told = cli("check", path, *CUDA, "--strict", "--json", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 1
    assert "not all nodes run on PROVIDER=CUDA\n  got: erf (Erf): runs on CPU" in told.err
    found = json.loads(told.out)
    assert found["hardware"] == "PROVIDER=CUDA" and [node["node"] for node in found["left"]] == ["erf"]
    assert [node.op_type for node in onnx.load(tmp_path / "part.onnx").graph.node] == ["Erf"]
    played.clear()
    told = cli("check", path, *CUDA, "--strict")
    assert told.code == 0 and told.out.endswith("all 3 nodes run on onnxruntime with PROVIDER=CUDA\n"), told.err


def test_what_a_provider_refuses_does_not_run(cli: Cli, tmp_path: Path, played: set[str]) -> None:
    """Though the CPU takes it; and what is written instead is run on the provider too."""
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Gelu", ["r"], ["y"], "gelu")]
    path = save(tmp_path / "m.onnx", nodes, opset=20, ir_version=9)
    assert cli("check", path).code == 0
    told = cli("check", path, *CUDA, "--fix", tmp_path / "f.onnx")
    assert "does not run: gelu (Gelu): no kernel of Gelu" in told.out and told.code == 0, told.err
    ops = [node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node]
    assert "Gelu" not in ops and "not on PROVIDER=CUDA: " in told.out, "what is left is told of the rewritten model"
    told = cli("check", path, *CUDA)
    assert told.code == 1 and "m.onnx does not run on onnxruntime with PROVIDER=CUDA" in told.err


def test_what_the_cpu_refuses_has_its_reason_by_the_node(cli: Cli, tmp_path: Path) -> None:
    told = cli("check", double_conv(tmp_path / "m.onnx"), "--option", "PROVIDER=CPU")
    assert told.code == 1 and "does not run: conv (Conv): " in told.out


def test_integer_kernels_are_known_of_the_cpu_alone(
    cli: Cli, tmp_path: Path, played: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = quantized(tmp_path / "q.onnx", behind=True)
    told = cli("check", path, *CUDA)
    assert told.code == 0 and "known of the CPU alone, not of PROVIDER=CUDA" in told.err
    told = cli("check", path, *CUDA, "--strict")
    assert told.code == 3 and "cannot be seen here" in told.err
    assert cli("check", path, "--strict", "--option", "PROVIDER=CPU").code == 0
    # An older runtime says nothing of where nodes run: that is no yes.
    target = registry.target("onnxruntime")
    opens = target.load

    def load(engine: Any, options: Options) -> Any:
        session: Any = opens(engine, options)
        session.left = providers.left(object(), providers.choice(options))
        return session

    monkeypatch.setattr(target, "load", load)
    told = cli("check", save(tmp_path / "m.onnx", NODES), *CUDA, "--strict")
    assert told.code == 3 and "does not say which nodes run on PROVIDER=CUDA" in told.err


def test_own_options_are_profiled_with(cli: Cli, tmp_path: Path) -> None:
    path = quantized(tmp_path / "q.onnx", behind=True)
    told = cli("check", path, "--strict", "--option", "graph_optimization_level=off")
    assert told.code == 1 and "in float (1 of 1 products between Q/DQ)" in told.out, told.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--option", "PROVIDER=XNNPACK"], 3, "ONNX Runtime cannot run on XNNPACK here"),
        (["--option", "PROVIDER=AZURE"], 2, "unknown execution provider 'AZURE'"),
        (["--option", "FOO=1"], 2, "no option FOO=1"),
        (["--option", "FOO"], 2, "KEY=VALUE"),
        (["--device", "GPU"], 2, "takes an execution provider, not hardware"),
        (["--device", "rasberry-pi-5"], 2, "did you mean 'raspberry-pi-5'"),
        (["--device", "CPU", "--target", "reference"], 2, "reference has no choice of hardware"),
        (["--device", "raspberry-pi-5", "--option", "PROVIDER=ACL"], 3, "ONNX Runtime cannot run on ACL here"),
    ],
)
def test_what_is_not_here_is_refused(cli: Cli, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    """Whether or not the model itself would run."""
    good, bad = save(tmp_path / "m.onnx", NODES), double_conv(tmp_path / "d.onnx")
    for path in (good, bad):
        told = cli("check", path, *words)
        assert told.code == code and message in told.err and not told.out, told.err


def test_hardware_of_openvino(cli: Cli, tmp_path: Path) -> None:
    needs("openvino")
    path = save(tmp_path / "m.onnx", NODES)
    for words in (["--device", "CPU"], ["--option", "INFERENCE_PRECISION_HINT=f32"]):
        told = cli("check", path, "--target", "openvino", *words)
        assert told.code == 0 and "all 3 nodes run on openvino\n" in told.out, told.err
    told = cli("check", path, "--target", "openvino", "--device", "NPU.7")
    assert told.code == 3 and "OpenVINO has no NPU.7 here" in told.err


def test_options_of_a_target_that_builds_engines(cli: Cli, tmp_path: Path) -> None:
    """An engine is built by them; what there is none of is misuse, whether or not the model itself would run."""
    needs("tensorrt")
    good, bad = save(tmp_path / "m.onnx", NODES), double_conv(tmp_path / "d.onnx")
    for path in (good, bad):
        told = cli("check", path, "--target", "tensorrt", "--option", "LEVEL=1")
        assert told.code == 2 and "unknown option of TensorRT 'LEVEL'" in told.err and not told.out
    told = cli("check", good, "--target", "tensorrt", "--option", "OPTIMIZATION_LEVEL=1")
    assert told.code == 0 and "and built for" in told.out, told.err


def test_a_device_of_python(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")], [("x", DOUBLE, [2])],
                [("y", DOUBLE, [2])])  # fmt: skip
    found = check(path, device=devices.find("raspberry-pi-5"), options=Options(extra={"PROVIDER": "CPU"}))
    assert (found.device, found.hardware, found.left) == ("raspberry-pi-5", "", ()) and not found.refused
