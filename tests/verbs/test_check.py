"""`edgerun check`: what does not run, or not on integers, the smallest part that still fails, and the rewrites."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgerun import registry
from edgerun.model import Model
from tests.verbs.conftest import Ran

Cli = Callable[..., Ran]
Door = Sequence[tuple[str, int, list[int | str]]]
FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
WEIGHT = np.random.default_rng(3).standard_normal((4, 3, 3, 3))
X: Door = [("x", FLOAT, [2, 8])]
Y: Door = [("y", FLOAT, [2, 8])]


def needs(target: str) -> None:
    if reason := registry.target(target, usable=False).available():
        pytest.skip(f"{target}: {reason}")


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: Door = X, outputs: Door = Y,
    weights: dict[str, np.ndarray] | None = None, opset: int = 17, ir_version: int = 8, domain: str = "",
) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def quantized(path: Path, *, zero: int = 128, behind: bool = False, size: int = 8) -> Path:
    """A Conv between uint8 Q/DQ, with a quantizer behind it or without one, of pictures of so many lines."""
    given: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32), "z": np.array(zero, np.uint8), "ws": np.array(0.01, np.float32),
        "w": np.random.default_rng(1).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "wz": np.array(0, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "weights"),
        helper.make_node("Conv", ["xd", "wd"], ["c" if behind else "y"], "conv"),
    ]
    if behind:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"], "quantize_c"))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"], "dequantize_c"))
    return save(
        path, nodes, [("x", FLOAT, ["n", 3, size, size])], [("y", FLOAT, ["n", 4, size - 2, size - 2])], given, 19, 9
    )


def _evaluated(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The output `y` by the ONNX reference evaluator."""
    outputs: Any = ReferenceEvaluator(proto).run(["y"], {"x": x})
    return np.asarray(outputs[0])


def double_conv(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    return save(path, nodes, [("x", DOUBLE, ["n", 3, 8, 8])], [("y", DOUBLE, ["n", 4, 6, 6])], {"w": WEIGHT})


def test_a_model_that_runs(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")])
    for target in ("onnxruntime", "openvino"):
        needs(target)
        told = cli("check", path, "--strict", "--target", target)
        assert told.code == 0 and f"the one node runs on {target}" in told.out, told.err
    told = cli("check", path, "--fix", tmp_path / "f.onnx", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 0 and "nothing was rewritten" in told.err and "no part was written" in told.err
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_an_unknown_op(cli: Cli, tmp_path: Path, target: str) -> None:
    """Named, alone in the part, and no rewrite is made up for it."""
    needs(target)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "fine"),
        helper.make_node("Frobnicate", ["r"], ["f"], "odd", domain="mine"),
        helper.make_node("Relu", ["f"], ["y"], "fine_too"),
    ]
    path = save(tmp_path / "m.onnx", nodes, domain="mine")
    told = cli("check", path, "--target", target, "--subgraph", tmp_path / "part.onnx", "--fix", tmp_path / "f.onnx")
    assert told.code == 1 and "odd (Frobnicate)" in told.out and "fine" not in told.out
    assert "not rewritten" in told.out and not (tmp_path / "f.onnx").exists()
    part = Model.load(tmp_path / "part.onnx")
    assert [node.op_type for node in part.ir.graph] == ["Frobnicate"]
    assert registry.target(target).check(part), "what is called failing fails"


def test_an_op_without_a_kernel_for_its_dtype(cli: Cli, tmp_path: Path) -> None:
    path = double_conv(tmp_path / "m.onnx")
    told = cli("check", path, "--subgraph", tmp_path / "part.onnx", "--json")
    found = json.loads(told.out)
    assert told.code == 1 and [(i["node"], i["op"]) for i in found["refused"]] == [("conv", "Conv")]
    assert found["part"]["nodes"] == ["conv"] and found["ideas"] == ["cast around conv (Conv in float32)"]
    part = onnx.load(tmp_path / "part.onnx").graph
    assert [t.name for t in part.initializer] == ["w"], "the node with its constants"
    fixed = cli("check", path, "--fix", tmp_path / "f.onnx")
    assert fixed.code == 0 and "rewritten: cast around conv (Conv in float32)" in fixed.out
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    wanted = np.maximum(np.einsum("bchwij,ocij->bohw", windows, WEIGHT), 0)
    np.savez(tmp_path / "x.npz", x=x)
    assert cli("run", tmp_path / "f.onnx", "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz").code == 0
    with np.load(tmp_path / "y.npz") as written:
        assert written["y"].dtype == np.float64
        assert np.abs(written["y"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    step = Model.load(tmp_path / "f.onnx").history[-1]
    assert step.name == "check/fix" and step.options["relative error"] <= 1e-5


@pytest.mark.parametrize(
    ("op", "opset", "ir_version", "device", "written"),
    [
        ("Relu", 28, 14, None, ["Relu"]),
        ("Relu", 28, 14, "jetson-orin-nano", ["Relu"]),
        ("Swish", 24, 12, "jetson-orin-nano", ["Mul", "Sigmoid", "Mul"]),
    ],
)
def test_an_opset_from_the_future(
    cli: Cli, tmp_path: Path, op: str, opset: int, ir_version: int, device: str | None, written: list[str]
) -> None:
    """Renamed where no node needs it, written as older operators where the standard defines it by those."""
    if device:
        needs("tensorrt")
    path = save(tmp_path / "m.onnx", [helper.make_node(op, ["x"], ["y"], "new")], opset=opset, ir_version=ir_version)
    asked = ["--device", device] if device else []
    told = cli("check", path, *asked, "--fix", tmp_path / "f.onnx", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 0, told.err
    newest = 20 if device else registry.target("onnxruntime").limits().opset
    assert f"opset {opset} is newer than {newest}, the newest read {'on ' + device if device else 'here'}" in told.out
    proto = onnx.load(tmp_path / "f.onnx")
    assert proto.opset_import[0].version == newest and [n.op_type for n in proto.graph.node] == written
    assert proto.ir_version == (9 if device else registry.target("onnxruntime").limits().ir_version)
    x = np.random.default_rng(2).standard_normal((2, 8)).astype(np.float32)
    wanted = np.maximum(x, 0) if op == "Relu" else x / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(_evaluated(proto, x) - wanted).max() <= 1e-6
    parts = [[n.op_type for n in onnx.load(part).graph.node] for part in tmp_path.glob("part.onnx")]
    assert parts == ([] if op == "Relu" else [[op]]), "no node is to blame for an opset that none needs"


def test_an_op_that_no_older_opset_has(cli: Cli, tmp_path: Path) -> None:
    needs("tensorrt")
    nodes = [helper.make_node("BitCast", ["x"], ["y"], "bits", to=TensorProto.INT32)]
    door: Door = [("x", FLOAT, [1, 4])]
    path = save(tmp_path / "m.onnx", nodes, door, [("y", TensorProto.INT32, [1, 4])], opset=26, ir_version=13)
    told = cli("check", path, "--device", "jetson-orin-nano", "--fix", tmp_path / "f.onnx")
    assert told.code == 1 and "newer are BitCast (1)" in told.out
    assert "no opset as old as 20 has BitCast" in told.out and not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_control_flow(cli: Cli, tmp_path: Path, target: str) -> None:
    """The part is the node inside the branch, not the If around it."""
    needs(target)
    inner = [("t", FLOAT, [4])]
    yes = helper.make_graph([helper.make_node("Relu", ["x"], ["t"], "relu")], "yes", [],
                            [helper.make_tensor_value_info(*o) for o in inner])  # fmt: skip
    no = helper.make_graph(
        [helper.make_node("Det", ["m"], ["d"], "det"), helper.make_node("Add", ["x", "d"], ["e"], "add")],
        "no", [], [helper.make_tensor_value_info("e", FLOAT, [4])],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "m")],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "greater"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=yes, else_branch=no),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [4])], [("y", FLOAT, [4])], {"zero": np.float32(0)})  # type: ignore[dict-item]
    assert cli("check", path).code == 0, "ONNX Runtime has it"
    told = cli("check", path, "--target", target, "--subgraph", tmp_path / "part.onnx")
    assert told.code == 1 and "det (Det)" in told.out
    assert [n.op_type for n in onnx.load(tmp_path / "part.onnx").graph.node] == ["Det"]


def test_data_dependent_shapes(cli: Cli, tmp_path: Path) -> None:
    needs("tensorrt")
    nodes = [helper.make_node("NonZero", ["x"], ["n"], "nonzero"), helper.make_node("Cast", ["n"], ["y"], "cast", to=1)]
    path = save(tmp_path / "m.onnx", nodes, outputs=[("y", FLOAT, [2, "k"])])
    told = cli("check", path, "--target", "tensorrt", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 1 and "nonzero (NonZero)" in told.out and "cast" not in told.out
    assert [n.op_type for n in onnx.load(tmp_path / "part.onnx").graph.node] == ["NonZero"]
    assert cli("check", path).code == 0


def test_a_part_that_no_door_can_hold_grows(cli: Cli, tmp_path: Path) -> None:
    """A sequence is no tensor: the node that makes one comes with the node that takes it."""
    needs("tensorrt")
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], "construct"),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], "concat", axis=0),
    ]
    path = save(tmp_path / "m.onnx", nodes, outputs=[("y", FLOAT, [4, 8])])
    told = cli("check", path, "--target", "tensorrt", "--subgraph", tmp_path / "part.onnx")
    assert told.code == 1
    ops = [n.op_type for n in onnx.load(tmp_path / "part.onnx").graph.node]
    assert ops == ["SequenceConstruct", "ConcatFromSequence"]


def test_uint8_becomes_int8(cli: Cli, tmp_path: Path) -> None:
    """Exact: the same bits come out. Where the zero point would not be 0, TensorRT refuses that too, and it is said."""
    needs("tensorrt")
    path = quantized(tmp_path / "m.onnx")
    told = cli("check", path, "--target", "tensorrt", "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "uint8 written as int8" in told.out and "relative error 0" in told.out, told.err
    x = np.random.default_rng(4).standard_normal((2, 3, 8, 8)).astype(np.float32)
    fixed = _evaluated(onnx.load(tmp_path / "f.onnx"), x)
    np.testing.assert_array_equal(fixed, _evaluated(onnx.load(path), x))
    told = cli("check", quantized(tmp_path / "z.onnx", zero=0), "--target", "tensorrt", "--fix", tmp_path / "g.onnx")
    assert told.code == 1 and "Non-zero zero point" in told.out and not (tmp_path / "g.onnx").exists()


def test_qlinear_becomes_qdq(cli: Cli, tmp_path: Path) -> None:
    """A QLinearConv with a bias, for a target that has no such operator; ONNX Runtime's own kernel is the oracle."""
    needs("tensorrt")
    generator = np.random.default_rng(5)
    given: dict[str, np.ndarray] = {
        "xs": np.array(0.05, np.float32), "xz": np.array(128, np.uint8), "ys": np.array(0.1, np.float32),
        "yz": np.array(128, np.uint8), "ws": generator.uniform(0.001, 0.01, 4).astype(np.float32),
        "w": generator.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), "wz": np.zeros(4, np.int8),
        "b": generator.integers(-900, 900, 4).astype(np.int32),
    }  # fmt: skip
    names = ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize"),
        helper.make_node("QLinearConv", names, ["yq"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"], "dequantize"),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", FLOAT, [2, 3, 8, 8])], [("y", FLOAT, [2, 4, 8, 8])], given)
    told = cli("check", path, "--target", "tensorrt", "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "QLinear operators written as Q/DQ" in told.out, told.err
    np.savez(tmp_path / "x.npz", x=generator.standard_normal((2, 3, 8, 8)).astype(np.float32))
    outputs = []
    for model in (path, tmp_path / "f.onnx"):
        assert cli("run", model, "--feeds", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--force").code == 0
        with np.load(tmp_path / "y.npz") as written:
            outputs.append(written["y"])
    assert np.abs(outputs[0] - outputs[1]).max() <= 0.1001, "a tie may fall the other way: one step"


def test_a_target_that_does_not_run_here_cannot_be_strict(cli: Cli, tmp_path: Path) -> None:
    needs("tensorrt")
    if not registry.target("tensorrt").runnable():
        pytest.skip("a GPU is here")
    cli("check", quantized(tmp_path / "m.onnx"), "--target", "tensorrt", "--fix", tmp_path / "f.onnx")
    told = cli("check", tmp_path / "f.onnx", "--device", "jetson-orin-nano", "--strict")
    assert told.code == 3 and "cannot be seen here" in told.err and "jetson-orin-nano has tensorrt 10.3" in told.err
    assert cli("check", tmp_path / "f.onnx", "--device", "jetson-orin-nano").code == 0


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    path, taken = double_conv(tmp_path / "m.onnx"), tmp_path / "taken.onnx"
    taken.write_bytes(b"mine")
    for option in ("--fix", "--subgraph"):
        told = cli("check", path, option, taken)
        assert told.code == 2 and "--force" in told.err and taken.read_bytes() == b"mine"
        assert cli("check", path, option, tmp_path / "m.txt").code == 2
    assert cli("check", path, "--fix", taken, "--force").code == 0 and taken.read_bytes() != b"mine"
    for asked in ([tmp_path / "none.onnx"], [path, "--device", "toaster"]):
        assert cli("check", *asked).code == 2
