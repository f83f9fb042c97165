"""Constants whose division ends the process are refused with the file; every other division passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgerun import _passed, guard  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402

LEAST = {"int32": -(1 << 31), "int64": -(1 << 63)}


def _model(op: str, dividend: onnx.TensorProto, divisor: onnx.TensorProto) -> onnx.ModelProto:
    """y = x + op(a, b), with a and b as initializers."""
    kind = dividend.data_type
    dividend.name, divisor.name = "a", "b"
    nodes = [helper.make_node(op, ["a", "b"], ["m"]), helper.make_node("Add", ["x", "m"], ["y"])]
    doors = [helper.make_tensor_value_info(name, kind, None if name == "y" else [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", doors[:1], doors[1:], [dividend, divisor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _array(values: object, dtype: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype))


def _trapping(op: str = "Div", dtype: str = "int32") -> onnx.ModelProto:
    return _model(op, _array([5, LEAST[dtype]], dtype), _array([2, -1], dtype))


def _refused(model: onnx.ModelProto, got: str = "m") -> None:
    with pytest.raises(EdgerunError, match=f"(?s)by -1 overflows.*{got}"):
        guard.check_bytes(model.SerializeToString())


@pytest.mark.parametrize("verb", ["run", "compile", "check"])
def test_the_tool_says_so_and_lives(tmp_path: Path, verb: str) -> None:
    onnx.save(_trapping(), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones(1, np.int32))
    more = {
        "run": ["--feeds", "x.npz", "-o", "y.npz"],
        "compile": ["-o", "e.onnx"],
        "check": ["--target", "onnxruntime"],
    }
    command = [sys.executable, "-m", "edgerun", verb, "m.onnx", *more[verb]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: m.onnx: a constant's Div by -1 overflows, which ends the process\n  got: m\n"


@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_wherever_the_constants_lie(tmp_path: Path, op: str, dtype: str) -> None:
    _refused(_trapping(op, dtype))
    kind, least = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), LEAST[dtype]
    listed = [helper.make_tensor(name, kind, [1], [value]) for name, value in (("a", least), ("b", -1))]
    _refused(_model(op, *listed))
    nodes = _trapping(op, dtype)
    values = {"a": _array([least], dtype), "b": _array([-1], dtype)}
    told = {name: helper.make_node("Constant", [], [name], value=tensor) for name, tensor in values.items()}
    del nodes.graph.initializer[:]
    _ = [nodes.graph.node.insert(0, node) for node in told.values()]
    _refused(nodes)
    beside = _trapping(op, dtype)
    onnx.save(beside, tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(EdgerunError, match="overflows"):
        guard.check_onnx(tmp_path / "m.onnx")


def test_plain_numbers_of_constants() -> None:
    model = _trapping("Mod", "int64")
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["a"], value_int=LEAST["int64"]))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value_ints=[3, -1]))
    _refused(model)


def test_in_branches_and_functions() -> None:
    model = _trapping()
    inside, add = model.graph.node[0], model.graph.node[1]
    branch = helper.make_graph([inside], "branch", [], [helper.make_tensor_value_info("m", TensorProto.INT32, None)])
    del model.graph.node[:]
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.extend([helper.make_node("If", ["c"], ["m"], then_branch=branch, else_branch=branch), add])
    _refused(model)
    model = _trapping()
    nodes = [
        helper.make_node("Constant", [], [n], value=_array(v, "int32")) for n, v in (("p", LEAST["int32"]), ("q", -1))
    ]
    body = [*nodes, helper.make_node("Div", ["p", "q"], ["r"])]
    model.functions.append(helper.make_function("own", "F", [], ["r"], body, [helper.make_opsetid("", 17)]))
    model.graph.node[0].CopyFrom(helper.make_node("F", [], ["m"], domain="own"))
    _refused(model, "r")


def test_other_divisions_pass() -> None:
    least = LEAST["int32"]
    for dividend, divisor, dtype in (
        ([least + 1], [-1], "int32"), ([least], [1], "int32"), ([least], [-1], "int64"), ([-128], [-1], "int8"),
        ([1.0], [-1.0], "float32"), ([5], [0], "int32"),
    ):  # fmt: skip
        guard.check_bytes(_model("Div", _array(dividend, dtype), _array(divisor, dtype)).SerializeToString())
    model = _trapping()
    model.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT32, [2]))
    model.graph.node[0].input[0] = "n"  # what feeds hold nobody knows
    guard.check_bytes(model.SerializeToString())


def test_long_constants_are_looked_at_each_time() -> None:
    """A model is known again by all but its weights; these decide."""
    _passed._passed.clear()
    legal, model = (_model("Div", _array([last] * 600, "int32"), _array([-1], "int32")) for last in (7, LEAST["int32"]))
    guard.check_bytes(legal.SerializeToString())
    _refused(model)


def test_broken_numbers_are_a_damaged_file() -> None:
    model = _model("Div", onnx.TensorProto(data_type=6, dims=[1]), _array([-1], "int32"))
    model.graph.initializer[0].int32_data.append(1)
    data = model.SerializeToString()
    packed = model.graph.initializer[0].SerializeToString()
    broken = packed.replace(b"\x2a\x01\x01", b"\x2a\x01\x81")
    assert data.count(packed) == 1 and broken != packed
    with pytest.raises(EdgerunError, match="the file is (truncated|damaged)"):
        guard.check_bytes(data.replace(packed, broken))


def test_weights_behind_the_divisors_are_none_of_theirs(tmp_path: Path) -> None:
    """External data that says where it begins, not where it ends, in one file with numbers that would trap."""
    (tmp_path / "w").write_bytes(np.array([5, 2, LEAST["int32"], -1], np.int32).tobytes())
    tensors = [onnx.TensorProto(data_type=6, dims=[1], data_location=onnx.TensorProto.EXTERNAL) for _ in range(2)]
    for place, tensor in enumerate(tensors):
        for key, value in (("location", "w"), ("offset", str(4 * place))):
            tensor.external_data.add(key=key, value=value)
    for dims, refused in ((1, False), (3, True)):
        tensors[0].dims[:], tensors[1].dims[:] = [dims], [dims]
        onnx.save(_model("Div", *tensors), tmp_path / f"{dims}.onnx")
        if not refused:
            guard.check_onnx(tmp_path / f"{dims}.onnx")
            continue
        with pytest.raises(EdgerunError, match="by -1 overflows"):
            guard.check_onnx(tmp_path / f"{dims}.onnx")


def test_an_int32_that_is_written_in_four_bytes() -> None:
    """Encoders write -1 in ten bytes; protobuf reads the five of 4294967295 the same."""
    model = _model("Div", _array([LEAST["int32"]], "int32"), onnx.TensorProto(data_type=6, dims=[1]))
    model.graph.initializer[1].int32_data.append(-1)
    packed = model.graph.initializer[1].SerializeToString()
    short = packed.replace(b"\x2a\x0a" + b"\xff" * 9 + b"\x01", b"\x2a\x05\xff\xff\xff\xff\x0f")
    assert short != packed and onnx.TensorProto.FromString(short).int32_data == [-1]
    model.graph.initializer[1].CopyFrom(onnx.TensorProto())
    data = model.SerializeToString()
    empty = b"\x2a\x00"  # initializer (5) of no bytes
    assert data.count(empty) == 1
    told = data.replace(empty, b"\x2a" + bytes([len(short)]) + short)
    size = len(model.graph.SerializeToString())
    graph = b"\x3a" + bytes([size + len(short)]) if size + len(short) < 128 else None
    assert graph is not None
    told = told.replace(b"\x3a" + bytes([size]), graph)
    with pytest.raises(EdgerunError, match="by -1 overflows"):
        guard.check_bytes(told)
