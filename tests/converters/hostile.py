"""What the makers of hostile files share: bytes, zip archives, damage, small graphs; and what must come of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

Make = Callable[[Path], object]


def written(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def packed(*members: tuple[str, bytes], compressed: bool = False) -> bytes:
    """A zip archive of the members in order, the same name twice where it is given twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    return buffer.getvalue()


def changed(make: Make, change: Callable[[bytearray], bytearray]) -> Make:
    """What `make` writes, with other bytes."""

    def write(path: Path) -> None:
        make(path)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return write


def half(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def flipped(data: bytearray) -> bytearray:
    for place in range(30, len(data), max(1, len(data) // 40)):
        data[place] ^= 0x5A
    return data


def one_clear_error(told: Any, name: str) -> None:
    """It was refused in few words, and left nothing."""
    error, left = told[name]
    assert error is not None, "it was converted"
    assert error["kind"] in ("EdgerunError", "Unsupported"), error["what"]
    assert len("".join(str(part) for part in error.values())) < 10_000
    assert left == []


def model(nodes: list[Any], *weights: Any, functions: tuple[Any, ...] = (), **more: Any) -> onnx.ModelProto:
    """x float32 [n, 4] -> y, through `nodes`."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    doors = [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["a", "b"])]
    opsets = [helper.make_opsetid("", more.get("opset", 17)), helper.make_opsetid("f", 1)]
    graph = helper.make_graph(nodes, "g", *doors, list(weights))
    return helper.make_model(graph, opset_imports=opsets, ir_version=more.get("ir", 8), functions=list(functions))


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def ints(name: str, *numbers: int) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def graph_file(maker: Callable[[Path], Any]) -> Make:
    """Writes the model, or the bytes, that `maker` gives for its folder."""

    def write(path: Path) -> None:
        made = maker(path.parent)
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())

    return write
