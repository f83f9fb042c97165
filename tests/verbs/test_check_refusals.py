"""`edgerun check` lists every node that is refused, of targets too that stop at the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerun.model import Model
from edgerun.passes import Issue
from edgerun.verbs import refusals
from tests.verbs.test_check import Cli, needs

DOOR = '<ir_version: 8, opset_import: ["": 18, "own": 1]> g '


def _model(text: str, **weights: np.ndarray | np.generic) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(DOOR + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    return proto


def _refused(cli: Cli, path: Path, proto: onnx.ModelProto) -> list[str]:
    onnx.save(proto, path)
    told = cli("check", path, "--target", "tensorrt", "--json")
    assert told.code == 1, told.err
    return [issue["op"] for issue in json.loads(told.out)["refused"]]


def test_what_is_refused_for_its_use_beside_what_no_use_is_taken_of(cli: Cli, tmp_path: Path) -> None:
    """TensorRT's parser lists the operators that it lacks, and reads no node then."""
    needs("tensorrt")
    proto = _model("""(float[2,3,3] x, int32[2] i, float[1,16,1] s)
        => (float[2] a, float[2] b, int32[2] c, float[1,9,4,2] d)
        { a = Det(x) b = Det(x) c = BitwiseNot(i) d = STFT(s, step) }""", step=np.int64(4))  # fmt: skip
    assert sorted(_refused(cli, tmp_path / "m.onnx", proto)) == ["BitwiseNot", "Det", "Det", "STFT"]


def test_every_quantizer_with_a_zero_point(cli: Cli, tmp_path: Path) -> None:
    needs("tensorrt")
    text = "".join(
        f"q{i} = QuantizeLinear({read}, scale, zero) d{i} = DequantizeLinear(q{i}, scale, zero) m{i} = MatMul(d{i}, w) "
        for i, read in enumerate(("x", "m0", "m1"))
    )
    weights: dict[str, np.ndarray | np.generic] = {
        "w": np.ones((4, 4), np.float32),
        "scale": np.float32(0.1),
        "zero": np.int8(3),
    }
    proto = _model(f"(float[2,4] x) => (float[2,4] m2) {{ {text} }}", **weights)
    assert _refused(cli, tmp_path / "m.onnx", proto) == ["QuantizeLinear", "DequantizeLinear"] * 3
    weights["zero"] = np.int8(0)
    onnx.save(_model(f"(float[2,4] x) => (float[2,4] m2) {{ {text} }}", **weights), tmp_path / "n.onnx")
    assert cli("check", tmp_path / "n.onnx", "--target", "tensorrt").code == 0


def test_recurrent_weights_behind_the_cut_are_not_accused(cli: Cli, tmp_path: Path) -> None:
    """As inputs they would be refused: what wrote them is, and they are not."""
    needs("tensorrt")
    rng = np.random.default_rng(0)
    proto = _model("""(float[5,1,4] x) => (float[5,1,1,3] y)
        { w = DequantizeLinear(v, scale, zero) y = LSTM<hidden_size = 3>(x, w, r) }""",
        v=rng.integers(-9, 9, (1, 12, 4)).astype(np.int8), r=np.ones((1, 12, 3), np.float32),
        scale=np.float32(0.1), zero=np.int8(3))  # fmt: skip
    assert _refused(cli, tmp_path / "m.onnx", proto) == ["DequantizeLinear"]


def _first_of(*ops: str) -> tuple[list[list[str]], Callable[[Model], list[Issue]]]:
    """A target that refuses `ops`, the first of them alone, and the nodes that it was asked about."""
    asked = list[list[str]]()

    def issues(model: Model) -> list[Issue]:
        nodes = model.to_proto().graph.node
        asked.append([node.op_type for node in nodes])
        return [Issue(node.name, node.op_type, "no") for node in nodes if node.op_type in ops][:1]

    return asked, issues


@pytest.mark.parametrize(
    ("text", "ops", "found"),
    [
        ("{ a = Relu(x) b = Exp(a) y = Abs(b) }", ("Exp", "Abs"), ["Exp", "Abs"]),  # floats are an input like others
        ("{ a = Exp(k) y = Add(x, a) }", ("Exp", "Add"), ["Exp"]),  # a constant is not
        ("{ a = Cast<to = 7>(x) b = Cast<to = 1>(a) c = Neg(b) y = Abs(c) }", ("Cast", "Abs"), ["Cast", "Abs"]),
        ("{ a = own.Odd(x) b = Neg(a) c = Abs(x) y = Add(b, c) }", ("Odd", "Neg", "Abs"), ["Odd", "Abs"]),
        ("{ y = Relu(x) }", (), []),
    ],
)
def test_the_target_is_asked_until_it_names_none(text: str, ops: tuple[str, ...], found: list[str]) -> None:
    weights = {"k": np.ones(2, np.float32)} if "(k)" in text else {}
    model = Model.from_proto(_model(f"(float[2] x) => (float[2] y) {text}", **weights))
    asked, issues = _first_of(*ops)
    assert [issue.op for issue in refusals.every(model, issues)] == found
    assert len(asked) <= 1 + len(ops) + ("Cast" in ops)


def test_a_target_that_names_no_node_is_asked_once() -> None:
    model = Model.from_proto(_model("(float[2] x) => (float[2] y) { y = Relu(x) }"))
    asked = list[Model]()

    def issues(given: Model) -> list[Issue]:
        asked.append(given)
        return [Issue("", "", "too large")]

    assert refusals.every(model, issues) == [Issue("", "", "too large")] and len(asked) == 1
