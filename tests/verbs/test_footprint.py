"""`edgerun check --device`: what memory a run takes at least of the device's, by hand and by what a process holds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerun import devices
from edgerun.devices import Fact
from edgerun.errors import EdgerunError
from edgerun.verbs.check import check
from tests.verbs.conftest import Ran
from tests.verbs.test_check import quantized, save

Cli = Callable[..., Ran]
FLOAT = TensorProto.FLOAT
MEASURED = """
import sys, numpy as np, edgerun
from edgerun.runtime import memory
x = np.ones(eval(sys.argv[2]), np.float32)
with edgerun.load(sys.argv[1], "onnxruntime", edgerun.Options(1)) as session:
    before = memory.held()
    session.run({"x": x})
    print(x.nbytes + memory.peak() - before)
"""


def conv(source: str, result: str, weight: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [result], f"conv_{result}", pads=[1, 1, 1, 1])


def weight(outputs: int, inputs: int) -> np.ndarray:
    return np.ones((outputs, inputs, 3, 3), np.float32)


def chain(path: Path, size: int = 16, batch: int | str = "n") -> Path:
    """3 channels to 8, a Relu, and to 4."""
    nodes = [conv("x", "a", "w"), helper.make_node("Relu", ["a"], ["r"]), conv("r", "y", "v")]
    return save(path, nodes, [("x", FLOAT, [batch, 3, size, size])], [("y", FLOAT, [batch, 4, size, size])],
                {"w": weight(8, 3), "v": weight(4, 8)})  # fmt: skip


def residual(path: Path) -> Path:
    """Two convolutions of 4 channels, and x added to what they make; a sigmoid of it scales it (SiLU)."""
    nodes = [
        conv("x", "a", "w"), conv("a", "b", "w"), helper.make_node("Add", ["b", "x"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["g"]), helper.make_node("Mul", ["s", "g"], ["y"]),
    ]  # fmt: skip
    door = [4, 16, 16]
    return save(path, nodes, [("x", FLOAT, ["n", *door])], [("y", FLOAT, ["n", *door])], {"w": weight(4, 4)})


def attention(path: Path) -> Path:
    """softmax(x·xᵀ)·x for 64 positions of 8."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]), helper.make_node("MatMul", ["p", "x"], ["y"], "mix"),
    ]  # fmt: skip
    return save(path, nodes, [("x", FLOAT, ["n", 64, 8])], [("y", FLOAT, ["n", 64, 8])])


def narrow(path: Path) -> Path:
    """Weights of 4 bits, dequantized, and a branch that reads the graph around it."""
    branch = [helper.make_graph([helper.make_node(op, ["p"], [op])], op, [],
                                [helper.make_tensor_value_info(op, FLOAT, None)]) for op in ("Abs", "Neg")]  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["p"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]  # fmt: skip
    weights = [
        helper.make_tensor("w", TensorProto.INT4, [8, 6], bytes(24), raw=True),
        numpy_helper.from_array(np.array(1, np.float32), "s"), numpy_helper.from_array(np.array(True), "yes"),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "narrow", [helper.make_tensor_value_info("x", FLOAT, ["n", 8])],
                              [helper.make_tensor_value_info("y", FLOAT, ["n", 6])], weights)  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def board(path: Path, *gib: float) -> Path:
    pi = devices.find("raspberry-pi-5")
    facts = {**pi.facts, "memory_gib": Fact(list(gib), "this test")}
    path.write_text(devices.Device("own", "", facts).toml())
    return path


@pytest.mark.parametrize(
    ("made", "values", "weights"),
    [
        (chain, 4 * 256 * (8 + 4), 4 * 9 * (24 + 32)),  # the second: r and y
        (residual, 4 * 256 * (4 + 4), 4 * 9 * 16),  # a and x, and b is added to x where that lies
        (attention, 4 * 64 * (8 + 8), 0),  # x and its transpose, x and y: scores stay in the kernel
        (narrow, 4 * (8 + 6), 24 + 4 + 1),  # what is dequantized is no value of its own
        (quantized, 3 * 64 + 4 * 36 * 4, 3 * 36 + 4 + 1 + 4 + 1),  # bytes in, floats out
        (lambda path: quantized(path, behind=True), 3 * 64 + 4 * 36, 3 * 36 + 4 + 1 + 4 + 1),  # and bytes out
    ],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_least_that_a_run_holds_by_hand(
    cli: Cli, tmp_path: Path, made: Callable[[Path], Path], values: int, weights: int, batch: int
) -> None:
    path = made(tmp_path / "m.onnx")
    told = cli("check", path, "--device", "raspberry-pi-4", *(["--batch", batch] if batch > 1 else []), "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)["memory"]
    assert (found["least"]["values"], found["least"]["weights"]) == (batch * values, weights)
    assert found["device"] == "raspberry-pi-4" and found["gib"] == [1, 2, 4, 8]
    assert f"at once (n = {batch})" in told.err and "of raspberry-pi-4's 1, 2, 4, 8 GiB\n" in told.err


def test_a_process_holds_at_least_that(tmp_path: Path) -> None:
    """ONNX Runtime on 67 MB of values; the operating system says what the run took beside its input."""
    path, shape = chain(tmp_path / "m.onnx", 512), (4, 3, 512, 512)
    found = check(path, device="raspberry-pi-4", batch=shape[0]).memory
    assert found is not None and found.least.values == 4 * 512 * 512 * shape[0] * (8 + 4)
    code = [sys.executable, "-c", MEASURED, str(path), str(shape)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, check=True)
    assert found.least.values < int(done.stdout) < 4 * found.least.values


def test_too_little_memory(cli: Cli, tmp_path: Path) -> None:
    """Strictly it is a failure where no variant has enough; what is too small for one is told with the numbers."""
    path, small = chain(tmp_path / "m.onnx", 64), board(tmp_path / "own.toml", 1e-5, 1e-4)
    told = cli("check", path, "--device", small)
    assert told.code == 0 and "does not fit: memory: 0.00202 MB of weights and at least 0.197 MB" in told.out
    assert "0.199 MB of own's 1e-05, 0.0001 GiB: too much for 1e-05, 0.0001 GiB" in told.out
    strict = cli("check", path, "--device", small, "--strict")
    assert strict.code == 1 and "does not fit into the memory of own" in strict.err and "smaller batch" in strict.err
    told = cli("check", path, "--device", board(tmp_path / "own.toml", 1e-4, 1), "--strict")
    assert told.code == 0 and "does not fit" not in told.out, told.err
    assert "0.199 MB of own's 0.0001, 1 GiB: too much for 0.0001 GiB\n" in told.err


def test_a_batch_is_for_a_device_s_memory(cli: Cli, tmp_path: Path) -> None:
    path = chain(tmp_path / "m.onnx")
    for words in ((), ("--device", "generic-aarch64"), ("--device", "CPU", "--target", "openvino")):
        told = cli("check", path, "--batch", 2, *words)
        assert told.code == 2 and "memory a run takes of a device" in told.err, words
    fixed = cli("check", chain(tmp_path / "f.onnx", batch=2), "--batch", 2, "--device", "raspberry-pi-4")
    assert fixed.code == 2 and "the model's batch is not open" in fixed.err and "float32[2,3,16,16]" in fixed.err
    with pytest.raises(EdgerunError, match="a batch is at least 1"):
        check(path, device="raspberry-pi-4", batch=0)
    assert check(path).memory is None and check(path, device="generic-aarch64").memory is None
