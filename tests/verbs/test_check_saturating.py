"""`edgerun check`: which layers of any tool's Q/DQ model can leave 16 bits on a CPU without VNNI, counted by loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.verbs.conftest import Ran
from tests.verbs.test_check import needs, quantized, save

Cli = Callable[..., Ran]
OLD = ("--device", "xeon-avx2")
NEW = ("--device", "xeon-avx512-vnni")


def counted(stored: np.ndarray) -> int:
    """Channels of a Conv `[O, I, kh, kw]` of which two neighbours at one place can reach over 32767, or under -32768;
    of an odd number of channels those, too, that are neighbours where the channels of a row follow each other."""
    count = 0
    for channel in stored.astype(int):
        rows = channel.transpose(1, 2, 0)
        pairs = [(p[i], p[i + 1]) for p in rows.reshape(-1, channel.shape[0]) for i in range(0, len(p) - 1, 2)]
        flat = rows.reshape(-1)
        pairs += [(flat[i], flat[i + 1]) for i in range(0, len(flat) - 1, 2)]
        high = max(255 * (max(a, 0) + max(b, 0)) for a, b in pairs)
        low = min(255 * (min(a, 0) + min(b, 0)) for a, b in pairs)
        count += high > 32767 or low < -32767
    return count


def weight_of(path: Path, name: str = "w") -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == name)


def with_weight(path: Path, stored: np.ndarray) -> Path:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(stored, "w"))
    onnx.save(model, path)
    return path


def test_the_layers_are_told_and_strict_fails(cli: Cli, tmp_path: Path) -> None:
    needs("openvino")
    path = quantized(tmp_path / "m.onnx")
    wanted = counted(weight_of(path))
    assert wanted == 4
    ran = cli("check", path, *OLD)
    assert ran.code == 0 and "4 of 4 output channels of a layer can saturate on openvino on xeon-avx2" in ran.out
    assert "conv (Conv): 4 of 4 channels" in ran.out and "compress FP32 --device xeon-avx2" in ran.out
    ran = cli("check", path, *OLD, "--strict")
    assert ran.code == 1 and "can saturate on xeon-avx2" in ran.err and "do: edgerun compress" in ran.err
    told = json.loads(cli("check", path, *OLD, "--json").out)
    assert told["saturating"] == [{"node": "conv", "op": "Conv", "channels": 4, "total": 4}]
    assert json.loads(cli("check", path, *NEW, "--json").out)["saturating"] == []
    assert cli("check", path, *NEW, "--strict").code == 0


@pytest.mark.parametrize("largest", [64, 65, 70, 100])
def test_as_many_channels_as_loops_count(cli: Cli, tmp_path: Path, largest: int) -> None:
    """64 steps never reach 16 bits (2·64·255 = 32,640); a pair of 65 does (33,150)."""
    needs("openvino")
    stored = np.random.default_rng(largest).integers(-largest, largest + 1, (4, 3, 3, 3)).astype(np.int8)
    stored[1] //= 2
    stored[2, 0, 1, 1] = stored[2, 1, 1, 1] = largest
    path = with_weight(quantized(tmp_path / "m.onnx"), stored)
    found = json.loads(cli("check", path, *OLD, "--json").out)["saturating"]
    assert sum(layer["channels"] for layer in found) == counted(stored)
    assert bool(found) == (largest > 64)
    assert cli("check", path, *OLD, "--strict").code == int(largest > 64)


def test_what_compress_makes_for_the_device_passes(cli: Cli, tmp_path: Path) -> None:
    """One model made for VNNI, and again for the device: 1 and 0."""
    needs("openvino")
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((16, 8, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    path = save(
        tmp_path / "f.onnx", [conv], [("x", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [("y", TensorProto.FLOAT, ["n", 16, 6, 6])], {"w": weight}, 19, 9,
    )  # fmt: skip
    np.savez(tmp_path / "c.npz", x=generator.standard_normal((40, 8, 8, 8)).astype(np.float32))
    for name, where in (("new", NEW), ("old", OLD)):
        made = cli("compress", path, "--calibration", tmp_path / "c.npz", *where, "--target", "openvino",
                   "-o", tmp_path / f"{name}.onnx")  # fmt: skip
        assert made.code == 0, made
    assert cli("check", tmp_path / "new.onnx", *OLD, "--strict").code == 1
    assert cli("check", tmp_path / "old.onnx", *OLD, "--strict").code == 0


@pytest.mark.parametrize("form", ["float behind QuantizeLinear", "transposed", "int8 activation", "int16 activation"])
def test_forms_of_other_tools(cli: Cli, tmp_path: Path, form: str) -> None:
    """A weight that is quantized in the graph (NNCF), one that is transposed behind its dequantizer, signed activations
    (ONNX Runtime's own default; kernels shift them into uint8). 16 bits are multiplied otherwise."""
    needs("openvino")
    stored = np.random.default_rng(2).integers(-127, 128, (12, 6)).astype(np.int8)
    kind = {"int8 activation": np.int8, "int16 activation": np.int16}.get(form, np.uint8)
    given: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32), "z": np.array(0, kind), "w": stored, "ws": np.array(0.01, np.float32),
        "wz": np.array(0, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "dequantize"),
    ]
    if form == "float behind QuantizeLinear":
        given |= {"w": stored.astype(np.float32) * np.float32(0.01)}
        nodes.append(helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], "quantize_w"))
    nodes.append(helper.make_node("DequantizeLinear", ["wq" if len(nodes) > 2 else "w", "ws", "wz"], ["wd"], "weights"))
    if form == "transposed":
        given |= {"w": np.ascontiguousarray(stored.T)}
        nodes.append(helper.make_node("Transpose", ["wd"], ["wt"], "turn"))
    nodes.append(helper.make_node("MatMul", ["xd", "wt" if form == "transposed" else "wd"], ["y"], "product"))
    path = save(tmp_path / "m.onnx", nodes, [("x", TensorProto.FLOAT, ["n", 12])],
                [("y", TensorProto.FLOAT, ["n", 6])], given, 21, 10)  # fmt: skip
    found = json.loads(cli("check", path, *OLD, "--json").out)["saturating"]
    wanted = counted(stored.T.reshape(6, 12, 1, 1))
    assert wanted > 0
    assert [layer["channels"] for layer in found] == ([] if form == "int16 activation" else [wanted])


def test_onnxruntimes_own_tool(cli: Cli, tmp_path: Path) -> None:
    """Counted in the file that `onnxruntime.quantization.quantize_static` writes."""
    needs("openvino")
    from onnxruntime import quantization as ort  # type: ignore[import-untyped]

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            x = np.random.default_rng(1).standard_normal((8, 4, 8, 8)).astype(np.float32)
            self._items = iter([{"x": x}])

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self._items, None)

    weight = np.random.default_rng(3).standard_normal((8, 4, 3, 3)).astype(np.float32)
    path = save(
        tmp_path / "f.onnx", [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        [("x", TensorProto.FLOAT, ["n", 4, 8, 8])], [("y", TensorProto.FLOAT, ["n", 8, 6, 6])], {"w": weight}, 17, 8,
    )  # fmt: skip
    ort.quantize_static(path, tmp_path / "q.onnx", Reader(), per_channel=True)
    found = json.loads(cli("check", tmp_path / "q.onnx", *OLD, "--json").out)["saturating"]
    wanted = counted(weight_of(tmp_path / "q.onnx", "w_quantized"))
    assert wanted > 0 and [layer["channels"] for layer in found] == [wanted]
