"""`edgerun check --target tensorrt`: what the parser takes and the builder refuses, found by a build that nobody keeps.

What is refused here are tensorrt_rtx's own limits: TopK of at most 3840, no float Gemm for compute capability 7.5.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerun import devices, registry
from edgerun.errors import Unsupported
from edgerun.model import Model
from edgerun.runtime.progress import told
from edgerun.targets import _tensorrt_library as tensorrt
from edgerun.targets import _tensorrt_parser as parser
from edgerun.verbs.check import check
from tests.verbs.test_check import Cli

REASON = registry.target("tensorrt", usable=False).available()
rtx_only = pytest.mark.skipif(
    REASON is not None or tensorrt.chosen() != "tensorrt_rtx", reason=REASON or "tensorrt is what builds here"
)
TENSORRT = ("--target", "tensorrt")
TURING = ("--option", "COMPUTE_CAPABILITY=SM75")
TOPK = "(float[2,9000] x) => (float[2,4000] y) { a = Relu(x) y, i = TopK(a, k) }"
DENSE = "(float[n,s,8] x) => (float[n,s,8] y) { h = MatMul(x, w) y = Relu(h) }"
GEMMS = "(float[2,8] x) => (float[2,8] y) { a = Gemm(x, w) r = Relu(a) y = Gemm(r, w) }"
QUANTIZED = """(float[1,8,6,6] x) => (float[1,8,6,6] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    e = DequantizeLinear(c, s, z) y = OP(d, e) }"""
K: dict[str, np.ndarray | np.generic] = {"k": np.array([4000])}
W: dict[str, np.ndarray | np.generic] = {"w": np.eye(8, dtype=np.float32)}
SCALES: dict[str, np.ndarray | np.generic] = {
    "s": np.float32(0.1),
    "z": np.int8(0),
    "c": np.random.default_rng(0).integers(-9, 9, (8, 8, 1, 1)).astype("i1"),
}


def _save(path: Path, text: str, **weights: np.ndarray | np.generic) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def _ada(folder: Path, capability: str = "8.9") -> Path:
    """A device with tensorrt_rtx: an Orin's facts, but for its library and its GPU."""
    text = devices.find("jetson-orin-nano").toml().replace("\ntensorrt = ", "\ntensorrt_rtx = ")
    path = folder / "ada.toml"
    path.write_text(text.replace('"8.7"', f'"{capability}"'))
    return path


@rtx_only
def test_what_the_builder_refuses_is_a_refused_node(cli: Cli, tmp_path: Path) -> None:
    path, part = _save(tmp_path / "m.onnx", TOPK, **K), tmp_path / "part.onnx"
    assert not registry.target("tensorrt").check(Model.load(path)), "the parser takes it"
    found = cli("check", path, *TENSORRT, "--json", "--subgraph", part)
    assert found.code == 1 and "does not run on tensorrt" in found.err
    (issue,) = json.loads(found.out)["refused"]
    assert (issue["node"], issue["op"]) == ("y_node", "TopK") and "maximum value allowed (3840)" in issue["reason"]
    assert [node.op_type for node in onnx.load(part).graph.node] == ["TopK"]
    assert cli("check", path).code == 0, "another target runs it"


@rtx_only
def test_every_node_is_found_though_the_builder_stops_at_the_first(cli: Cli, tmp_path: Path) -> None:
    """For the compute capability that is asked for: a portable engine has kernels for both."""
    path = _save(tmp_path / "m.onnx", GEMMS, **W)
    found = json.loads(cli("check", path, *TENSORRT, *TURING, "--json").out)
    assert [issue["node"] for issue in found["refused"]] == ["a_node", "y_node"]
    assert all(
        "compute capability 7.5 (tensorrt_rtx" in i["reason"] and "SM75" in i["reason"] for i in found["refused"]
    )
    taken = cli("check", path, *TENSORRT)
    assert taken.code == 0 and "all 3 nodes are taken by tensorrt, and built for any of its GPUs" in taken.out, (
        taken.err
    )


@rtx_only
def test_it_is_built_for_the_device(cli: Cli, tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", GEMMS, **W)
    for capability, code, text in (("8.9", 0, "built for compute capability 8.9"), ("7.5", 1, "FP32 GEMM")):
        found = cli("check", path, "--device", _ada(tmp_path, capability))
        assert found.code == code and text in found.out, found.err
    other = cli("check", path, "--device", _ada(tmp_path), *TURING)
    assert other.code == 3 and "does not run on compute capability 8.9" in other.err


@rtx_only
@pytest.mark.parametrize(
    ("capability", "reason"), [(None, "has tensorrt 10.3"), ("9.0", "nothing for compute capability 9.0")]
)
def test_nothing_is_said_of_a_device_that_is_not_built_for(
    cli: Cli, tmp_path: Path, capability: str | None, reason: str
) -> None:
    """The other library has kernels that this one lacks: a refusal here would say nothing."""
    path = _save(tmp_path / "m.onnx", TOPK, **K)
    device = "jetson-orin-nano" if capability is None else _ada(tmp_path, capability)
    found = cli("check", path, "--device", device)
    assert found.code == 0 and "no engine was built" in found.err and reason in found.err
    assert "whether it has kernels for them shows where it runs" in found.err and "built for" not in found.out
    asked = cli("check", path, "--device", device, "--option", "OPTIMIZATION_LEVEL=1")
    assert asked.code == 3 and "leave --option out" in asked.err


@rtx_only
def test_open_sizes_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    path = _save(tmp_path / "m.onnx", DENSE, **W)
    found = cli("check", path, *TENSORRT)
    assert found.code == 0 and "'s' has none (give --size s=" in found.err and "built for" not in found.out
    found = cli("check", path, *TENSORRT, "--size", "s=1,4,16")
    assert found.code == 0 and "built for" in found.out and not found.err
    assert cli("check", path, *TENSORRT, "--size", "t=1,4,16").code == 2


@rtx_only
@pytest.mark.parametrize(
    ("op", "turing", "integers"), [("Conv", False, 1), ("Conv", True, 0), ("ConvTranspose", False, 0)]
)
def test_products_between_qdq_are_those_of_the_engine(
    cli: Cli, tmp_path: Path, op: str, turing: bool, integers: int
) -> None:
    """tensorrt_rtx has int8 kernels for a Conv from 8.0 on, and none for a ConvTranspose."""
    path = _save(tmp_path / "m.onnx", QUANTIZED.replace("OP", op), **SCALES)
    found = cli("check", path, *TENSORRT, *(TURING if turing else ()), "--strict")
    assert found.code == 1 - integers and f"{integers} of 1 products between Q/DQ on integers" in found.out, found.err
    assert ("y_node" in found.err) == (not integers) and "is what was chosen for" in found.err


@rtx_only
def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    heard = list[str]()

    def interrupt(stage: str, done: int, total: int) -> None:
        heard.append(stage)
        if stage == "building the engine":
            raise KeyboardInterrupt

    with told(interrupt), pytest.raises(KeyboardInterrupt):
        check(_save(tmp_path / "m.onnx", GEMMS, **W), target="tensorrt")
    assert heard.count("building the engine") == 1


@pytest.mark.parametrize(
    ("reason", "named"),
    [
        ("Could not find any implementation for node /a/Conv + PWN(/b/Relu).", ["/a/Conv", "/b/Relu"]),
        ("(Could not find any implementation for node {ForeignNode[/a/Conv.../b/Relu]}.)", ["/a/Conv", "/b/Relu"]),
        ("Could not find any implementation for node /b/Relu due to insufficient workspace.", ["/b/Relu"]),
        ("API Usage Error (IConvolutionLayer /a/Conv: kernel too large", ["/a/Conv"]),
        ("DLA Layer /b/Relu does not support dynamic shapes", ["/b/Relu"]),
        ("'/a/Conv_1' has no kernel", ["/a/Conv"]),
        ("out of memory", []),
    ],
)  # fmt: skip
def test_layers_are_nodes(reason: str, named: list[str]) -> None:
    """In the words of TensorRT 8 to 10, whose builder puts several nodes into one layer."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { a = Conv(x) y = Relu(a) }'
    )
    proto.graph.node[0].name, proto.graph.node[1].name = "/a/Conv", "/b/Relu"
    assert [issue.node for issue in parser.blamed(reason, proto)] == named
    refusal = parser.named(Unsupported("no", got=reason), proto)
    assert str(refusal.got).startswith(f"{named[0]} (" if named else reason)
