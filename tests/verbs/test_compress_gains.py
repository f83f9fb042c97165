"""What `edgerun compress` says where a scheme gains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

SQUARE = np.random.default_rng(5).normal(0, 0.1, (128, 128)).astype(np.float32)


@pytest.mark.parametrize(
    ("scheme", "more", "told"),
    [
        ("w8a16", (), None),
        ("w8a16", ("--keep-float", "product"), "its weights took 65.5 kB and take 65.5 kB: they were as small before"),
        ("w8a16", ("again",), "its weights took 16.9 kB and take 16.9 kB: they were as small before, or stay in float"),
        ("fp16", ("again",), "its weights took 16.9 kB and take 32.8 kB: they were smaller before"),
        ("w8a16", ("beside a large constant",), "of its 4.07 MB of weights the scheme makes 3.8 kB less"),
    ],
)
def test_nothing_gained_is_told_with_why(
    tmp_path: Path, cli: Any, scheme: str, more: tuple[str, ...], told: str | None
) -> None:
    """On stderr and in the JSON. 128·128 floats, 65,536 bytes, are 16,384 bytes and 128 scales of 4 in 8 bits."""
    path, weights = tmp_path / "square.onnx", {"w": SQUARE}
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    output: list[str | int | None] = ["n", 128]
    if more == ("beside a large constant",):
        weights = {"w": SQUARE[:, :10], "t": np.ones((1000, 1, 1017), np.float32)}
        nodes[0].output[0] = "m"
        nodes += [onnx.helper.make_node("ReduceMean", ["m"], ["r"], "mean", axes=[1], keepdims=1)]
        nodes += [onnx.helper.make_node("Mul", ["r", "t"], ["y"], "large")]
        output = [1000, "n", 1017]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "square", [onnx.helper.make_tensor_value_info("x", floats, ["n", 128])],
        [onnx.helper.make_tensor_value_info("y", floats, output)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    if more == ("again",):
        assert cli("compress", path, "-o", tmp_path / "first.onnx", "--scheme", "w8a16").code == 0
        path = tmp_path / "first.onnx"
    options = more if more[:1] == ("--keep-float",) else ()
    done = cli("compress", path, "-o", tmp_path / "small.onnx", "--scheme", scheme, *options)
    assert done.code == 0, done.err
    if told is None:
        assert "nothing was gained" not in done.err
        return
    assert "warning: nothing was gained: " in done.err and told in done.err and "no faster" in done.err
    found = json.loads(cli("compress", path, "-o", tmp_path / "b.onnx", "--scheme", scheme, *options, "--json").out)
    assert any(told in warning for warning in found["warnings"])
