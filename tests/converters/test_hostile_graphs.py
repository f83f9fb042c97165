"""Hostile ONNX graphs, made here: they do not end, or small constants ask for more than there is.

Each ends in one clear error, with nothing run and nothing written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import edgerun  # noqa: E402
from edgerun import guard  # noqa: E402
from edgerun.errors import EdgerunError  # noqa: E402
from edgerun.sandbox import Limits  # noqa: E402
from tests.converters.hostile import graph_file, ints, model, node, one_clear_error  # noqa: E402

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Maker = Callable[[Path], "bytes | onnx.ModelProto"]


def scalar(name: str, number: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(number, dtype), name)


def subgraphs_a_hundred_deep(folder: Path) -> onnx.ModelProto:
    made = model([node("Relu", "x")], scalar("c", True, bool))
    inner = made.graph
    for depth in range(60):
        branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("y", FLOAT, None)])
        inner.node.append(helper.make_node("If", ["c"], [f"o{depth}"], then_branch=branch, else_branch=branch))
        inner = inner.node[-1].attribute[0].g
    return made


def functions_that_double_forty_times(folder: Path) -> onnx.ModelProto:
    chain = tuple(function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(40))
    return model([node("F0", "x", domain="f")], functions=(*chain, function("F40", "Relu")))


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """name(a) calls each of `calls` on its input, one behind the other."""
    names = ["a", *(f"v{i}" for i in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [names[i]], [names[i + 1]], domain="" if call == "Relu" else "f")
        for i, call in enumerate(calls)
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], nodes, opsets)


def loop(count: Any, going: bool) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "still"), node("Relu", "v", "w")], "body",
        [value("i", INT64, []), value("go", TensorProto.BOOL, []), value("v", FLOAT, None)],
        [value("still", TensorProto.BOOL, []), value("w", FLOAT, None)],
    )  # fmt: skip
    weights = [scalar("go0", going, bool), *([] if count is None else [scalar("count", count)])]
    inputs = ["" if count is None else "count", "go0", "x"]
    return model([helper.make_node("Loop", inputs, ["y"], body=body)], *weights)


def asks(op: str, inputs: str, *weights: Any, **attributes: Any) -> onnx.ModelProto:
    """y = x + something that constants alone decide, and that no memory holds."""
    big, one = node(op, inputs, "big", **attributes), node("ReduceMax", "big", "one", keepdims=0)
    return model([big, one, node("Add", "x one")], *weights)


ONE, HUGE = numpy_helper.from_array(np.ones((1, 1), np.float32), "one_by_one"), ints("huge", 1 << 20, 1 << 20)
MAKERS: dict[str, Maker] = {
    "circle_of_two": lambda folder: model([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "a")]),
    "node_that_reads_itself": lambda folder: model([node("Add", "x y")]),
    "subgraphs_a_hundred_deep": subgraphs_a_hundred_deep,
    "function_that_calls_itself": lambda folder: model([node("F", "x", domain="f")], functions=(function("F", "F"),)),
    "functions_that_call_each_other": lambda folder: model(
        [node("F", "x", domain="f")], functions=(function("F", "G"), function("G", "F"))
    ),
    "functions_that_double_forty_times": functions_that_double_forty_times,
    "loop_without_end": lambda folder: loop(None, True),
    "loop_of_a_lifetime": lambda folder: loop((1 << 63) - 1, True),
    "tile_of_terabytes": lambda folder: asks("Tile", "one_by_one huge", ONE, HUGE),
    "expand_to_terabytes": lambda folder: asks("Expand", "one_by_one huge", ONE, HUGE),
    "constant_of_terabytes": lambda folder: asks("ConstantOfShape", "huge", HUGE),
    "constant_of_exabytes": lambda folder: asks("ConstantOfShape", "more", ints("more", 1 << 40, 1 << 40)),
    "constant_of_a_negative_shape": lambda folder: asks("ConstantOfShape", "less", ints("less", -5, 3)),
    "range_of_terabytes": lambda folder: asks(
        "Range", "a b c", scalar("a", 0, np.float32), scalar("b", 1e12, np.float32), scalar("c", 1, np.float32)
    ),
    "range_of_no_step": lambda folder: asks(
        "Range", "a b c", scalar("a", 0, np.float32), scalar("b", 9, np.float32), scalar("c", 0, np.float32)
    ),
    "pad_to_terabytes": lambda folder: asks("Pad", "one_by_one pads", ONE, ints("pads", 0, 0, 1 << 20, 1 << 20)),
    "resize_to_terabytes": lambda folder: model(
        [helper.make_node("Resize", ["one_by_one", "", "", "sizes"], ["big"]),
         node("ReduceMax", "big", "one", keepdims=0), node("Add", "x one")], ONE, ints("sizes", 1 << 20, 1 << 20),
    ),
    "random_of_terabytes": lambda folder: asks("RandomNormal", "", shape=[1 << 20, 1 << 20]),
    "one_hot_of_terabytes": lambda folder: model(
        [node("OneHot", "i d v", "big"), node("ReduceMax", "big", "one", keepdims=0), node("Add", "x one")],
        ints("i", *range(1000)), scalar("d", 1 << 38), numpy_helper.from_array(np.array([0, 1], np.float32), "v"),
    ),
    "reshape_into_a_crowd": lambda folder: asks("Reshape", "one_by_one huge", ONE, HUGE),
    "gather_outside": lambda folder: model([node("Gather", "x far", axis=1)], ints("far", 1 << 40)),
    "integers_divided_by_zero": lambda folder: model(
        [node("Div", "seven zero", "q"), node("Cast", "q", "f", to=FLOAT), node("Add", "x f")],
        ints("seven", 7), ints("zero", 0),
    ),
    "integers_modulo_zero": lambda folder: model(
        [node("Mod", "seven zero", "q"), node("Cast", "q", "f", to=FLOAT), node("Add", "x f")],
        ints("seven", 7), ints("zero", 0),
    ),
    "smallest_integer_over_minus_one": lambda folder: model(
        [node("Neg", "one", "minus"), node("Div", "least minus", "q"), node("Cast", "q", "f", to=FLOAT),
         node("Add", "x f")],
        ints("least", -(1 << 63)), ints("one", 1),
    ),
    "operator_of_a_stranger": lambda folder: model([node("Steal", "x", domain="f")]),
    "attribute_of_another_type": lambda folder: model([node("Softmax", "x", axis="all of them")]),
}  # fmt: skip

# These end their process, or nothing but the clock ends them: each has a child of its own.
ALONE = ("loop_without_end", "loop_of_a_lifetime", "smallest_integer_over_minus_one")


@pytest.fixture(scope="module")
def told(given_to_convert: Any) -> Any:
    return given_to_convert({f"{name}.onnx": graph_file(maker) for name, maker in MAKERS.items() if name not in ALONE})


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ALONE])
def test_one_clear_error_and_nothing_left(told: Any, name: str) -> None:
    one_clear_error(told, f"{name}.onnx")


@pytest.mark.parametrize("name", ALONE)
def test_what_crashes_or_hangs_ends_too(tmp_path: Path, name: str) -> None:
    """By the time that one run of a loop has, long before that of the whole work ends."""
    path = tmp_path / "m.onnx"
    graph_file(MAKERS[name])(path)
    with pytest.raises(EdgerunError, match="killed by SIGFPE|a loop in the model does not end") as ended:
        edgerun.convert(path, output=tmp_path / "out.onnx", limits=Limits(memory=4 << 30))
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert "SIGFPE" in str(ended.value) or f"in {Limits().loop_seconds:g} s" in str(ended.value)


def test_a_run_of_a_loop_has_five_seconds() -> None:
    """So that with what is imported before it a file that never ends is refused within ten."""
    assert Limits().loop_seconds == 5


def test_a_loop_that_ends_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(loop(3, True).SerializeToString())
    assert {node.op_type for node in edgerun.convert(path).ir.graph} == {"Loop"}
    with pytest.raises(EdgerunError, match=r"a loop in the model does not end[^!]*in 0.1 s"):
        path.write_bytes(loop(1 << 40, True).SerializeToString())
        edgerun.convert(path, limits=Limits(loop_seconds=0.1))


def test_a_deep_but_finite_tower_of_functions_is_no_circle(tmp_path: Path) -> None:
    """Forty that call the next one once, and two that share a third."""
    chain = tuple(function(f"F{i}", f"F{i + 1}") for i in range(40))
    shared = (function("A", "B", "C"), function("B", "C"), function("C", "Relu"))
    path = tmp_path / "m.onnx"
    nodes = [node("F0", "x", "z", domain="f"), node("A", "z", domain="f")]
    path.write_bytes(model(nodes, functions=(*chain, function("F40", "Relu"), *shared)).SerializeToString())
    guard.check_onnx(path)
