"""How much a model computes, counted from its shapes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("onnx")
import onnx  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from edgerun.model import Model  # noqa: E402
from edgerun.verbs import work  # noqa: E402


def _macs(op: str, first: list[int | str], second: list[int | str], **attributes: int) -> float:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("a", first), ("b", second))
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node: Any = helper.make_node(op, ["a", "b"], ["y"], **dict[str, Any](attributes))
    graph = helper.make_graph([node], "g", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return work.least_macs(Model.from_proto(onnx.shape_inference.infer_shapes(made)))


def test_a_free_size_counts_as_one() -> None:
    assert _macs("MatMul", ["batch", 3], [3, 4]) == 12


@pytest.mark.parametrize(
    ("first", "second", "macs"),
    [([5, 3], [3, 4], 60), ([5, 3], [3], 15), ([3], [3, 4], 12), ([2, 5, 3], [3, 4], 120), ([5, 3], [2, 3, 4], 120)],
)
def test_products(first: list[int | str], second: list[int | str], macs: int) -> None:
    assert _macs("MatMul", first, second) == macs


def test_transposed_products() -> None:
    assert _macs("Gemm", [3, 5], [4, 3], transA=1, transB=1) == 60


def test_convolutions_and_their_groups() -> None:
    """3×3 kernels: 4 channels to 8 on 6×6 places; of two groups each sees half the channels."""
    assert _macs("Conv", [1, 4, 8, 8], [8, 4, 3, 3]) == 6 * 6 * 8 * 4 * 9
    assert _macs("Conv", [1, 4, 8, 8], [8, 2, 3, 3], group=2) == 6 * 6 * 8 * 2 * 9
    assert _macs("ConvTranspose", [1, 4, 8, 8], [4, 8, 3, 3]) == 8 * 8 * 4 * 8 * 9


def test_unknown_shapes_count_nothing() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["a", "sizes"], ["r"]), helper.make_node("MatMul", ["r", "r"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, ["rank"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert work.least_macs(Model.from_proto(made)) == 0
