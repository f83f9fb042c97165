"""`edgerun check` claims no more than it saw: reasons are a node's own, and what was only asked does not run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from edgerun import registry
from edgerun.model import Model
from tests.verbs.conftest import Ran

Cli = Callable[..., Ran]
ODD = "mine.Frobnicate"
DOUBLE = "d = Cast<to = 11>(h)  odd = Acosh(d)  {out} = Cast<to = 1>(odd)"


def needs(target: str) -> None:
    if reason := registry.target(target, usable=False).available():
        pytest.skip(f"{target}: {reason}")


def save(path: Path, text: str, opset: int = 17, ir_version: int = 8) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}, "mine": 1]> net {text}')
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    onnx.save(proto, path)
    return path


BRANCH = """(float[n,8] x, bool c) => (float[n,8] y) { h = Relu(x)
    y = If(c)<then_branch = a () => (float[n,8] p) { p = MatMul(h, w) },
              else_branch = b () => (float[n,8] q) { BODY }> }"""
LOOP = """(float[n,8] h0, int64 m, bool c) => (float[n,8] y) {
    y = Loop(m, c, h0)<body = l (int64 i, bool g, float[n,8] v) => (bool g2, float[n,8] q)
        { g2 = Identity(g)  h = MatMul(v, w)  BODY }> }"""


@pytest.mark.parametrize("around", [BRANCH, LOOP])
@pytest.mark.parametrize(("body", "op", "reason"), [
    (DOUBLE.format(out="q"), "Acosh", "Could not find an implementation for Acosh(9)"),
    (f"q = {ODD}(h)", "Frobnicate", "is not a registered function/op"),
])  # fmt: skip
def test_the_node_inside_a_branch_is_named_with_its_own_reason(
    cli: Cli, tmp_path: Path, around: str, body: str, op: str, reason: str
) -> None:
    """Not the If or Loop, whose outer values are missing when it stands alone."""
    path = save(tmp_path / "m.onnx", around.replace("BODY", body))
    told = cli("check", path, "--subgraph", tmp_path / "part.onnx", "--json")
    found = json.loads(told.out)
    assert told.code == 1 and [issue["op"] for issue in found["refused"]] == [op]
    assert found["refused"][0]["reason"].endswith(reason) and found["part"]["ops"] == [op]
    again = json.loads(cli("check", tmp_path / "part.onnx", "--json").out)
    assert [issue["reason"] for issue in again["refused"]] == [found["refused"][0]["reason"]]


def test_every_unknown_op_is_named(cli: Cli, tmp_path: Path) -> None:
    """Those behind another one too, whose types nobody knows; no known op there is blamed for a guessed type."""
    path = save(
        tmp_path / "m.onnx",
        f"(float[n,8] x) => (float[n,8] y) {{ a = {ODD}(x)  g = Gather(w, a)  b = mine.Other(g)  y = {ODD}(b) }}",
    )
    found = json.loads(cli("check", path, "--json").out)
    assert [(issue["node"], issue["op"]) for issue in found["refused"]] == [
        ("a", "Frobnicate"), ("b", "Other"), ("y", "Frobnicate"),
    ]  # fmt: skip


def test_a_node_is_not_blamed_without_its_constants(cli: Cli, tmp_path: Path) -> None:
    """OpenVINO takes an Unsqueeze whose axes are known, and none whose rank depends on an input."""
    needs("openvino")
    path = save(
        tmp_path / "m.onnx",
        """(float[5] x, int64 m, bool c, seq(float[k]) s) => (seq(float[k]) y) {
        y = Loop(m, c, s)<body = l (int64 i, bool g, seq(float[k]) t) => (bool g2, seq(float[k]) u) {
            g2 = Identity(g)  a = Constant<value_ints = [0]>()  e = Unsqueeze(i, a)
            b = Constant<value_ints = [0]>()  p = Slice(x, b, e)  u = SequenceInsert(t, p) }> }""",
    )
    refused = json.loads(cli("check", path, "--target", "openvino", "--json").out)["refused"]
    assert [issue["op"] for issue in refused] == ["SequenceInsert"]


@pytest.mark.parametrize(("target", "text", "reason"), [
    ("tensorrt", "(float[1,3,8,8] x) => (float[1,3,h,k] y) { s = Constant<value_floats = [1.0,1.0,2.0,2.0]>()"
     ' y = Resize<mode = "cubic", antialias = 1>(x, , s) }', "Antialiasing is not supported currently."),
    ("openvino", "(float[n,8] x) => (float[m,8] y) { s = SplitToSequence(x)  y = ConcatFromSequence<axis = 0>(s) }",
     "SplitToSequence: scalar 'split' input requires static dimension on the split axis"),
])  # fmt: skip
def test_reasons_are_sentences(cli: Cli, tmp_path: Path, target: str, text: str, reason: str) -> None:
    """No condition and no source file of the runtime's."""
    needs(target)
    told = cli("check", save(tmp_path / "m.onnx", text, 18), "--target", target, "--json")
    given = json.loads(told.out)["refused"][0]["reason"]
    assert told.code == 1 and given.endswith(reason) and not re.search(r"\.cpp|&&|==", given)


@pytest.mark.parametrize("dtype", ["string", "bfloat16"])
def test_tensorrt_is_not_said_to_take_what_it_cannot_be_fed(cli: Cli, tmp_path: Path, dtype: str) -> None:
    """One line a node, and nothing printed past edgerun by the library."""
    needs("tensorrt")
    path = save(tmp_path / "m.onnx", f"({dtype}[n,8] x) => ({dtype}[n,8] y) {{ h = Identity(x)  y = Identity(h) }}")
    told = cli("check", path, "--target", "tensorrt", "--json")
    found, name = json.loads(told.out), "text" if dtype == "string" else dtype
    assert told.code == 1 and [issue["reason"] for issue in found["refused"]] == [
        f"TensorRT takes and gives no {name}: 'x'", f"TensorRT takes and gives no {name}: 'y'",
    ]  # fmt: skip


def test_what_was_only_asked_is_not_said_to_run(cli: Cli, tmp_path: Path) -> None:
    needs("tensorrt")
    if not registry.target("tensorrt").runnable():
        pytest.skip("a GPU is here")
    path = save(tmp_path / "m.onnx", "(float[n,8] x) => (float[n,8] y) { h = MatMul(x, w)  y = Relu(h) }")
    told = cli("check", path, "--device", "jetson-orin-nano")
    assert told.code == 0 and "all 2 nodes are taken by tensorrt on jetson-orin-nano" in told.out
    assert "whether it has kernels for them shows where it runs" in told.err
    assert json.loads(cli("check", path, "--device", "jetson-orin-nano", "--json").out)["idle"] is True
    assert "all 2 nodes run on onnxruntime" in cli("check", path).out


def test_open_sizes_are_no_reason_not_to_rewrite(cli: Cli, tmp_path: Path) -> None:
    """TensorRT compiles for sizes: the rewritten model is built for usual ones."""
    needs("tensorrt")
    path = save(tmp_path / "m.onnx", "(float[b,s,8] x) => (float[b,s,8] y) { y = RMSNormalization(x, g) }", 23, 11)
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "g"))
    onnx.save(proto, path)
    told = cli("check", path, "--device", "jetson-orin-nano", "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "written with other operators: RMSNormalization (1)" in told.out, told.err
    made = Model.load(tmp_path / "f.onnx")
    assert made.inputs == Model.load(path).inputs and not registry.target("tensorrt").check(made)


def test_an_ir_version_that_never_carried_the_opset_is_raised(cli: Cli, tmp_path: Path) -> None:
    """Opset 23 wants IR version 11, which the file has not, and 20, the newest that the device reads, wants 9."""
    needs("tensorrt")
    path = save(tmp_path / "m.onnx", "(float[2,8] x) => (float[2,8] y) { y = Relu(x) }", 23, 8)
    told = cli("check", path, "--device", "jetson-agx-orin", "--fix", tmp_path / "f.onnx")
    assert told.code == 0 and "opset 23 -> 20" in told.out and "IR version 8 -> 9" in told.out, told.err
    made = onnx.load(tmp_path / "f.onnx")
    assert (made.opset_import[0].version, made.ir_version) == (20, 9)


def test_ideas_are_told_only_where_nobody_asked_to_try_them(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "(float[n,8] h) => (float[n,8] y) { " + DOUBLE.format(out="y") + " }")
    assert "--fix would try: cast around odd (Acosh in float32)" in cli("check", path).out
    fixed = cli("check", path, "--fix", tmp_path / "f.onnx")
    assert fixed.code == 0 and "would try" not in fixed.out and "f.onnx: runs; compared" in fixed.out
    new = save(tmp_path / "new.onnx", "(float[n,8] x) => (float[n,8] y) { y = Relu(x) }", 28, 14)
    assert json.loads(cli("check", new, "--json").out)["ideas"] == ["opset 28 -> 26", "IR version 14 -> 13"]


def test_two_outputs_need_two_names(cli: Cli, tmp_path: Path) -> None:
    path, both = save(tmp_path / "m.onnx", f"(float[n,8] x) => (float[n,8] y) {{ y = {ODD}(x) }}"), tmp_path / "o.onnx"
    told = cli("check", path, "--fix", both, "--subgraph", both)
    assert told.code == 2 and "one file" in told.err and not both.exists()
